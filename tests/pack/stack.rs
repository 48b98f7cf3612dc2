//! Several weights as one.

use crate::SEED;
use flute_cube::{
    Bits, Error, Format, Group, PackedWeight, Quantized, QuantizedParts, Table,
    pack::{self, Order},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Rows of 200.
fn weight(rng: &mut StdRng, n: usize, format: Format) -> Quantized {
    let codes = (0..n * 200).map(|_| rng.random_range(0..format.bits.codes()) as u8).collect();
    let scales = (0..n * format.group.count(200)).map(|_| rng.random_range(0.5..1.5)).collect();
    let table = Table::nf(format.bits);
    Quantized::new(QuantizedParts { n, k: 200, format, codes, scales, table }).expect("valid")
}

fn add(packing: &mut pack::Packing, part: &Quantized) -> Result<(), Error> {
    let codes = pack::to_canonical(part.codes(), part.k(), part.format().bits.get());
    let row_bytes = packing.row_bytes();
    packing.add(part.n(), part.scales(), |row, bytes| {
        bytes.copy_from_slice(&codes[row * row_bytes..][..bytes.len()]);
        Ok(())
    })
}

#[test]
fn weights_one_below_the_other_pack_to_the_packed_ones_in_a_row() {
    let mut rng = StdRng::seed_from_u64(SEED ^ 2);
    for bits in Bits::ALL {
        let format = Format { bits, group: Group::Size(64) };
        let parts = [32, 16, 21].map(|n| weight(&mut rng, n, format));
        let all = QuantizedParts {
            n: 69,
            k: 200,
            format,
            codes: parts.iter().flat_map(|part| part.codes()).copied().collect(),
            scales: parts.iter().flat_map(|part| part.scales()).copied().collect(),
            table: Table::nf(bits),
        };
        let expected = PackedWeight::pack(&Quantized::new(all).expect("valid"));
        let packed = parts.each_ref().map(PackedWeight::pack).to_vec();
        assert!(
            PackedWeight::stack(packed.clone(), Order::Stacked).as_ref() == Ok(&expected),
            "{bits} bits"
        );
        let mut packing = pack::Packing::new(69, 200, format, &Table::nf(bits)).expect("valid");
        parts.iter().for_each(|part| add(&mut packing, part).expect("it fits"));
        assert!(packing.finish() == Ok(expected), "{bits} bits, part by part");

        let packing = || pack::Packing::new(38, 200, format, &Table::nf(bits)).expect("valid");
        let wrong = |lengths: (usize, usize)| {
            move |error: Error| match error {
                Error::WrongLength { found, expected, .. } => (found, expected) == lengths,
                _ => false,
            }
        };
        assert!(packing().finish().is_err_and(wrong((0, 38))), "no row has arrived");
        let mut begun = packing();
        assert_eq!(add(&mut begun, &parts[2]), Ok(()));
        assert!(
            add(&mut begun, &parts[1]).is_err_and(wrong((21, 32))),
            "21 rows end within a block"
        );
        assert!(add(&mut begun, &parts[0]).is_err_and(wrong((32, 17))), "more than are missing");
        let broken =
            packing().add(16, parts[1].scales(), |row, _| Err(Error::DirtyPadding { row }));
        assert_eq!(broken, Err(Error::DirtyPadding { row: 0 }), "what reading says is handed on");

        let apart = |weights: Vec<PackedWeight>| {
            PackedWeight::stack(weights.clone(), Order::Stacked) == Err(weights)
        };
        let mut reversed = packed.clone();
        reversed.reverse();
        assert!(apart(reversed), "21 rows end within a block");
        let mut other = packed.clone();
        other[1].pairs[3][0] += 0.5;
        assert!(apart(other), "another table");
        let mut other = packed;
        other[1] = PackedWeight::pack(&weight(&mut rng, 16, Format { bits, group: Group::Whole }));
        assert!(apart(other) && apart(vec![]), "another group");
    }
}

#[test]
fn weights_by_turns_pack_to_what_their_rows_by_turns_do() {
    let mut rng = StdRng::seed_from_u64(SEED ^ 3);
    for bits in Bits::ALL {
        for (n, group) in [(8, Group::Size(32)), (24, Group::Size(64)), (48, Group::Whole)] {
            let format = Format { bits, group };
            let parts = [weight(&mut rng, n, format), weight(&mut rng, n, format)];
            // Row by row, so that no turn is taken for granted.
            let rows = (0..2 * n).map(|row| (row / 8 % 2, row / 16 * 8 + row % 8));
            let groups = group.count(200);
            let (mut codes, mut scales) = (vec![], vec![]);
            for (at, (part, row)) in rows.enumerate() {
                assert_eq!(pack::turn_of(at), (part, row));
                codes.extend(&parts[part].codes()[row * 200..][..200]);
                scales.extend(&parts[part].scales()[row * groups..][..groups]);
            }
            let scales_by_turns = pack::by_turns(parts[0].scales(), parts[1].scales(), groups);
            assert_eq!(scales_by_turns, scales);
            let all =
                QuantizedParts { n: 2 * n, k: 200, format, codes, scales, table: Table::nf(bits) };
            let expected = PackedWeight::pack(&Quantized::new(all).expect("valid"));
            let packed = parts.each_ref().map(PackedWeight::pack).to_vec();
            let found = PackedWeight::stack(packed, Order::ByTurns);
            assert!(found == Ok(expected), "{n} rows each, {format}");
        }
        let format = Format { bits, group: Group::Size(64) };
        let packed = |n: usize| {
            let mut rng = StdRng::seed_from_u64(SEED ^ n as u64);
            PackedWeight::pack(&weight(&mut rng, n, format))
        };
        let apart = |weights: Vec<PackedWeight>| {
            PackedWeight::stack(weights.clone(), Order::ByTurns) == Err(weights)
        };
        assert!(apart(vec![packed(16), packed(8)]), "of different widths");
        assert!(apart(vec![packed(12), packed(12)]), "12 rows end within a turn");
        assert!(apart(vec![packed(8)]) && apart(vec![packed(8), packed(8), packed(8)]));
        let mut other = packed(8);
        other.pairs[3][0] += 0.5;
        assert!(apart(vec![packed(8), other]), "another table");
    }
}
