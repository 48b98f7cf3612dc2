//! Cases: what is multiplied, all of it drawn from the name of the case.

use flute_cube::{
    Bits, Dtype, Format, Group, Problem, Quantized, QuantizedParts, Table, TableKind,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::fmt;

pub(crate) const BITS: [Bits; 3] = Bits::ALL;
pub(crate) const GROUPS: [Group; 5] =
    [Group::Size(32), Group::Size(64), Group::Size(128), Group::Size(256), Group::Whole];
pub(crate) const TABLES: [TableKind; 4] =
    [TableKind::Int, TableKind::Nf, TableKind::Custom, TableKind::Pairs];
pub(crate) const ROWS: [usize; 8] = [1, 3, 8, 16, 17, 53, 128, 257];
/// And where there are tensor cores, whose tiles have up to 128: many of them.
pub(crate) const MANY_ROWS: usize = 1024;
/// (n, k): one row, edges of tiles and of groups, odd k, a few ordinary ones, and more rows than a GPU has cubes for.
pub(crate) const SHAPES: [(usize, usize); 12] = [
    (1, 4096),
    (130, 96),
    (1000, 1536),
    (16, 128),
    (100, 1),
    (33, 130),
    (256, 256),
    (1024, 512),
    (3, 4095),
    (48, 2880),
    (2048, 1024),
    (12301, 160),
];

/// One quantized weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Weight {
    pub(crate) format: Format,
    pub(crate) table: TableKind,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Whether sums of its products are exact in f32, whatever their order.
    pub(crate) exact: bool,
}

/// What x is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// Uniform: compared within a bound.
    Random,
    /// Three quarters zeros and otherwise small powers of two: every sum is exact, so is the result's rounding.
    Exact,
    /// Rows of the identity: the result is the weight.
    Identity,
}

/// One product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Case {
    pub(crate) weight: Weight,
    pub(crate) dtype: Dtype,
    pub(crate) input: Input,
    pub(crate) m: usize,
    pub(crate) bias: bool,
}

impl Case {
    pub(crate) fn problem(&self) -> Problem {
        let Weight { format, n, k, .. } = self.weight;
        Problem { m: self.m, n, k, format, dtype: self.dtype, bias: self.bias, gate: None }
    }

    /// Multiplications.
    pub(crate) fn cost(&self) -> usize {
        self.m * self.weight.n * self.weight.k
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weight { format, table, n, k, .. } = self.weight;
        let input = match self.input {
            Input::Random => "random",
            Input::Exact => "exact",
            Input::Identity => "identity",
        };
        let bias = if self.bias { "+bias" } else { "" };
        write!(f, "{format}-{table}-{n}x{k}-{}-m{}-{input}{bias}", self.dtype, self.m)
    }
}

impl Weight {
    /// One integer from which all of the weight is drawn.
    pub(crate) fn seed(&self) -> u64 {
        let Weight { format, table, n, k, exact } = *self;
        let parts =
            [format.bits.get() as usize, format.group.len(0), table as usize, n, k, exact.into()];
        parts.iter().fold(0x0066_6c75_7465, |seed: u64, part| {
            seed.wrapping_mul(0x100_0000_01b3) ^ *part as u64
        })
    }

    pub(crate) fn quantized(&self) -> Quantized {
        let Weight { format, n, k, exact, .. } = *self;
        let mut rng = StdRng::seed_from_u64(self.seed());
        let table = self.table(&mut rng);
        let entries = table.entries();
        let mut codes: Vec<u8> =
            (0..n * k.div_ceil(table.dim())).map(|_| rng.random_range(0..entries) as u8).collect();
        // The code of all ones, whose neighbours in a word it would spill into.
        let top = rng.random_range(0..codes.len());
        codes[top] = (entries - 1) as u8;
        let scales = (0..n * format.group.count(k)).map(|_| scale(&mut rng, exact)).collect();
        Quantized::new(QuantizedParts { n, k, format, codes, scales, table })
            .expect("a case is a valid weight")
    }

    fn table(&self, rng: &mut StdRng) -> Table {
        let bits = self.format.bits;
        let mut value = |_| match self.exact {
            true => rng.random_range(-8..=8) as f32 / 8.0,
            false => rng.random_range(0.0625..1.0f32) * if rng.random() { 1.0 } else { -1.0 },
        };
        match self.table {
            TableKind::Custom => Table::custom(bits, &Vec::from_iter((0..bits.codes()).map(value))),
            TableKind::Pairs => {
                let pairs = (0..bits.pairs()).map(|i| [value(2 * i), value(2 * i + 1)]);
                Table::pairs(bits, &Vec::from_iter(pairs))
            }
            named => Table::named(named, bits),
        }
        .expect("a table of finite values")
    }
}

/// Mostly between a quarter and two, of either sign; some are zero, as of a group that is.
fn scale(rng: &mut StdRng, exact: bool) -> f32 {
    let magnitude = match rng.random_range(0..16) {
        0 => 0.0,
        _ if exact => [0.5, 1.0, 2.0][rng.random_range(0..3)],
        _ => rng.random_range(0.25..2.0),
    };
    if rng.random_range(0..8) == 0 { -magnitude } else { magnitude }
}

/// `[m, k]` of `input` in f32, exact in `dtype`. The first rows of a larger m are those of a smaller one.
pub(crate) fn activations(input: Input, m: usize, k: usize, dtype: Dtype) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(k as u64 ^ 0x78);
    match input {
        Input::Random => (0..m * k).map(|_| dtype.round(rng.random_range(-1.0..1.0))).collect(),
        Input::Exact => {
            let values = [-2.0, -1.0, -0.5, 0.5, 1.0, 2.0];
            (0..m * k)
                .map(|_| values.get(rng.random_range(0..24)).copied().unwrap_or(0.0))
                .collect()
        }
        Input::Identity => {
            let mut x = vec![0.0; m * k];
            for i in 0..m {
                x[i * k + identity_column(i, m, k)] = 1.0;
            }
            x
        }
    }
}

/// The column that row `i` of an identity of `m` rows names: all of them if m is k, else from the first to the last.
pub(crate) fn identity_column(i: usize, m: usize, k: usize) -> usize {
    if m == k { i } else { i * (k - 1) / (m - 1).max(1) }
}

/// A bias of `n`, exact in `dtype` and, if asked, in every sum.
pub(crate) fn bias(n: usize, dtype: Dtype, exact: bool) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(n as u64 ^ 0x62);
    let values = (0..n)
        .map(|_| if exact { rng.random_range(-8..8) as f32 } else { rng.random_range(-4.0..4.0) });
    values.map(|v| dtype.round(v)).collect()
}
