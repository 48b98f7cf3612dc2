//! The matrix unit of a warpgroup: chains of products over the groups of a block, and their scaled sums.
//!
//! A chain covers one group and starts from nothing; those of half a block begin together, so that small groups wait for
//! the matrix unit no more often than large ones. They run while their warpgroup does something else and are scaled when
//! they are added to the sums: that is the group's scale, applied to f32 and not to the weights. Where weights are scaled
//! instead, half a block is one chain that starts from the sums. Between [`issue`] and [`finish`], or [`accumulate`] and
//! [`settle`], their registers belong to the matrix unit. Nobody names them there but the two blocks of PTX, and the compiler, which knows the instruction, gives them
//! to nobody else.

use cubecl::prelude::*;
use std::fmt::Write;

/// What chains that begin together are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chains {
    /// How many: groups.
    pub(super) groups: usize,
    /// Instructions of each, of 16 of k.
    pub(super) steps: usize,
    /// Tokens of one instruction.
    pub(super) tokens: usize,
    /// Bytes from the tokens of the first 64 of k to those of the next.
    pub(super) panel: usize,
    /// The first instruction's place in its block of 128 of k.
    pub(super) first: usize,
    pub(super) bf16: bool,
}

/// The high half of a descriptor of tokens: eight rows of 128 bytes after another, 128-byte swizzle.
const HIGH: u32 = 64 | 1 << 30;

impl Chains {
    /// Sums of a lane: 64 rows of `tokens` tokens over 128 lanes.
    fn sums(self) -> usize {
        self.tokens / 2
    }

    /// The PTX that begins all instructions.
    ///
    /// Registers are numbered as operands come: `results` of them, both halves of the descriptor of the tokens at the
    /// start of the block, the weights, and what `before` reads. A chain starts from what its results hold `before`, or
    /// with nothing there from nothing.
    fn begin_ptx(self, results: usize, before: &str) -> String {
        let Self { groups, steps, tokens, .. } = self;
        let (sums, instructions) = (self.sums(), groups * steps);
        let [low, high, weights] = [results, results + 1, results + 2];
        let ty = if self.bf16 { "bf16" } else { "f16" };
        let list = |first: usize, len: usize| -> String {
            let names: Vec<String> = (first..first + len).map(|i| format!("%{i}")).collect();
            names.join(", ")
        };
        let mut ptx = format!(
            "{{ .reg .pred pf, pt; .reg .b32 t; .reg .b64 b<{instructions}>;\n\
             setp.ne.b32 pf, %{low}, %{low}; setp.eq.b32 pt, %{low}, %{low};\n{before}"
        );
        // Writing to a String cannot fail.
        for i in 0..instructions {
            let at = self.first + i;
            let distance = (at / 4 * self.panel + at % 4 * 32) / 16;
            let _ = writeln!(ptx, "add.u32 t, %{low}, {distance}; mov.b64 b{i}, {{t, %{high}}};");
        }
        ptx.push_str("wgmma.fence.sync.aligned;\n");
        for i in 0..instructions {
            let starts = before.is_empty() && i % steps == 0;
            let _ = writeln!(
                ptx,
                "wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{ty}.{ty} {{{}}}, {{{}}}, b{i}, {}, 1, 1, 0;",
                list(i / steps * sums, sums),
                list(weights + 4 * i, 4),
                if starts { "pf" } else { "pt" },
            );
        }
        ptx.push_str("wgmma.commit_group.sync.aligned; }");
        ptx
    }

    /// The PTX of `weights · tokens`, begun. Results: the products, group after group.
    fn issue_ptx(self) -> String {
        self.begin_ptx(self.groups * self.sums(), "")
    }

    /// The PTX of `sums + weights · tokens`, begun. Results: the new sums; the last operand is the old ones, whose
    /// registers the compiler makes those of the new ones.
    fn accumulate_ptx(self) -> String {
        let old = self.sums() + 2 + 4 * self.steps;
        self.begin_ptx(self.sums(), &self.moves_ptx(old))
    }

    /// The PTX of `sums + Σ scale · products`, once they are there, groups ascending. Operands: the new sums, of each
    /// group the scales of rows g and g + 8, the products, the old sums.
    fn finish_ptx(self) -> String {
        let (sums, groups) = (self.sums(), self.groups);
        let [scales, products] = [sums, sums + 2 * groups];
        let old = products + sums * groups;
        let mut ptx = String::from("wgmma.wait_group.sync.aligned 0;\n");
        for group in 0..groups {
            for i in 0..sums {
                let _ = writeln!(
                    ptx,
                    "fma.rn.f32 %{i}, %{}, %{}, %{};",
                    products + group * sums + i,
                    scales + 2 * group + i / 2 % 2,
                    if group == 0 { old + i } else { i },
                );
            }
        }
        ptx
    }

    /// The PTX that waits for the sums. Operands: the sums, twice.
    fn settle_ptx(self) -> String {
        String::from("wgmma.wait_group.sync.aligned 0;\n") + &self.moves_ptx(self.sums())
    }

    /// The PTX that gives the first registers, one a sum, what those from `from` on hold.
    fn moves_ptx(self, from: usize) -> String {
        (0..self.sums()).map(|i| format!("mov.f32 %{i}, %{};\n", from + i)).collect()
    }
}

/// Begins `sums + weights · tokens`, in the order of [`issue`]. Whatever is done with the result before [`settle`] is
/// wrong.
#[cube]
pub(super) fn accumulate<A: Size, D: Size, P: Size>(
    weights: Vector<u32, A>,
    descriptor: u32,
    sums: Vector<f32, D>,
    #[comptime] chains: Chains,
) -> Vector<f32, P> {
    let high = HIGH.runtime();
    let new: Vector<f32, P>;
    gpu_asm!(
        "// {d} {l} {h} {a} {c}",
        "{ptx}",
        l = in(_) u32::reinterpret(descriptor), h = in(_) u32::reinterpret(high),
        a = in(_) Vector::<u32, A>::reinterpret(weights), c = in(_) Vector::<f32, D>::reinterpret(sums),
        d = out(_) new, ptx = const chains.accumulate_ptx(),
    );
    new
}

/// The sums of the chain that was begun last.
#[cube]
pub(super) fn settle<P: Size, D: Size>(
    sums: Vector<f32, P>,
    #[comptime] chains: Chains,
) -> Vector<f32, D> {
    let settled: Vector<f32, D>;
    gpu_asm!(
        "// {d} {c}",
        "{ptx}",
        c = in(_) Vector::<f32, P>::reinterpret(sums), d = out(_) settled, ptx = const chains.settle_ptx(),
    );
    settled
}

/// Begins `weights · tokens`: of each group, lane 4g + t and token tile j, the elements 4j…4j + 3 will be row g with
/// tokens 8j + 2t and the next, then row g + 8 with the same. `descriptor` is the low half of that of the tokens.
/// Whatever is done with the result before [`finish`] is wrong.
#[cube]
pub(super) fn issue<A: Size, P: Size>(
    weights: Vector<u32, A>,
    descriptor: u32,
    #[comptime] chains: Chains,
) -> Vector<f32, P> {
    let high = HIGH.runtime();
    let products: Vector<f32, P>;
    gpu_asm!(
        "// {d} {l} {h} {a}",
        "{ptx}",
        l = in(_) u32::reinterpret(descriptor), h = in(_) u32::reinterpret(high),
        a = in(_) Vector::<u32, A>::reinterpret(weights), d = out(_) products,
        ptx = const chains.issue_ptx(),
    );
    products
}

/// `sums + Σ scale · products` of the chains that were issued last.
#[cube]
pub(super) fn finish<P: Size, S: Size, D: Size>(
    products: Vector<f32, P>,
    scales: Vector<f32, S>,
    sums: Vector<f32, D>,
    #[comptime] chains: Chains,
) -> Vector<f32, D> {
    let new: Vector<f32, D>;
    gpu_asm!(
        "// {d} {s} {p} {c}",
        "{ptx}",
        s = in(_) Vector::<f32, S>::reinterpret(scales), p = in(_) Vector::<f32, P>::reinterpret(products),
        c = in(_) Vector::<f32, D>::reinterpret(sums), d = out(_) new, ptx = const chains.finish_ptx(),
    );
    new
}
