//! FLUTE's own order of codes, against matrices that its `pack()` made and vectors worked out by hand.

use crate::golden;
use anyhow::{Context, Result, ensure};
use flute_burn::checkpoint::import::FluteTiles;
use flute_burn::error::Error;
use flute_cube::Bits;
use safetensors::SafeTensors;

#[test]
fn what_flute_packed_unpacks_to_its_codes_and_packs_to_its_bytes() -> Result<()> {
    let bytes = std::fs::read(golden("flute_pack.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let cases = [
        ("b2_tp32", Bits::Two, 32),
        ("b2_tp64", Bits::Two, 64),
        ("b3_tp32", Bits::Three, 32),
        ("b4_tp32", Bits::Four, 32),
        ("b4_tp64", Bits::Four, 64),
    ];
    assert_eq!(file.len(), 2 * cases.len());
    for (name, bits, tile) in cases {
        let (packed, codes) =
            (file.tensor(&format!("{name}.packed"))?, file.tensor(&format!("{name}.codes"))?);
        let &[n, k] = codes.shape() else { panic!("{name}: {:?}", codes.shape()) };
        let tiles = FluteTiles::with_tile(bits, tile)?;
        assert_eq!(packed.shape(), [tiles.rows(n), k], "{name}");
        ensure!(tiles.unpack(packed.data(), n, k)? == codes.data(), "{name}: codes");
        ensure!(tiles.pack(codes.data(), n, k)? == packed.data(), "{name}: bytes");
    }
    Ok(())
}

#[test]
fn formula_codes_pack_to_the_words_worked_out_by_hand() -> Result<()> {
    type Rows<'a> = &'a [(usize, &'a [u16])];
    let words: &[(Bits, usize, Rows<'_>)] = &[
        (
            Bits::Four,
            128,
            &[
                (0, &[0x1807, 0x3a29, 0xf6e5, 0x1807, 0xd4c3, 0xf6e5]),
                (31, &[0xe5d4, 0x07f6, 0xc3b2, 0xe5d4]),
            ],
        ),
        (
            Bits::Two,
            256,
            &[
                (0, &[0xe943, 0xe943, 0x43e9, 0x43e9, 0xe943, 0xe943]),
                (31, &[0x3e94, 0x3e94, 0x943e, 0x943e]),
            ],
        ),
        (
            Bits::Three,
            512,
            &[
                (0, &[0x5687, 0xa323, 0x3235, 0x11fa, 0x1fa3, 0x87b1]),
                (32, &[0xe8c8, 0xec47, 0xc47e, 0xda1e]),
                (64, &[0x7b11, 0xf568, 0x5687, 0xa323]),
                (95, &[0xc47e, 0x9a1e, 0xa1ec, 0x48d5]),
            ],
        ),
    ];
    let k = 64;
    for (bits, n, rows) in words {
        let code = |at: usize| {
            let (n, k) = (at / k, at % k);
            ((7 * k + 3 * n + n / 32) % bits.codes()) as u8
        };
        let codes: Vec<u8> = (0..n * k).map(code).collect();
        let packed = FluteTiles::new(*bits).pack(&codes, *n, k)?;
        for (row, expected) in *rows {
            let words = packed[row * k * 2..].as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
            let found: Vec<u16> = words.take(expected.len()).collect();
            assert_eq!(&found, expected, "{bits} bits, row {row}");
        }
        ensure!(FluteTiles::new(*bits).unpack(&packed, *n, k)? == codes, "{bits} bits");
    }
    Ok(())
}

#[test]
fn shapes_that_the_tiles_do_not_divide_are_refused_with_both_numbers() {
    let cases = [
        (Bits::Four, 96, 64, "n (out_features) is 96", "128"),
        (Bits::Three, 256, 64, "n (out_features) is 256", "512"),
        (Bits::Two, 0, 64, "n (out_features) is 0", "256"),
        (Bits::Four, 128, 96, "k (in_features) is 96", "64"),
    ];
    for (bits, n, k, found, needed) in cases {
        let tiles = FluteTiles::new(bits);
        for error in [tiles.pack(&vec![0; n * k], n, k), tiles.unpack(&vec![0; n * k], n, k)]
            .map(|r| r.unwrap_err())
        {
            let message = error.to_string();
            assert!(matches!(error, Error::PackedShape { .. }), "{error:?}");
            assert!(message.contains(found) && message.contains(needed), "{message}");
        }
    }
}

#[test]
fn tiles_that_no_release_packs_are_refused() {
    for (bits, tile) in [(Bits::Three, 64), (Bits::Four, 16), (Bits::Two, 0)] {
        let message = FluteTiles::with_tile(bits, tile).unwrap_err().to_string();
        assert!(message.contains(&format!("{tile} with {bits} bits")), "{message}");
    }
}

#[test]
fn lengths_and_codes_that_do_not_fit_are_refused() -> Result<()> {
    let tiles = FluteTiles::new(Bits::Two);
    let mut codes = vec![3; 256 * 64];
    for found in [codes.len() - 1, codes.len() + 1] {
        let message = tiles.pack(&vec![0; found], 256, 64).unwrap_err().to_string();
        assert!(message.contains(&found.to_string()), "{message}");
    }
    let message = tiles.unpack(&[0; 12], 256, 64).unwrap_err().to_string();
    assert!(message.contains("12") && message.contains("4096"), "{message}");
    *codes.get_mut(77).context("a code")? = 4;
    let message = tiles.pack(&codes, 256, 64).unwrap_err().to_string();
    assert!(message.contains("77") && message.contains('4'), "{message}");
    Ok(())
}
