//! The matrix unit of a warpgroup: a chain of products over one group of k, and its scaled sum.
//!
//! A chain starts from nothing, runs while its warpgroup does something else, and is scaled when it is added to the
//! sums: that is the group's scale, applied to f32 and not to the weights. Between [`issue`] and [`finish`] its
//! registers belong to the matrix unit. Nobody names them there but the two blocks of PTX, and the compiler, which knows
//! the instruction, gives them to nobody else.

use cubecl::prelude::*;
use std::fmt::Write;

/// What a chain is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Chain {
    /// Instructions, of 16 of k each.
    pub(super) steps: usize,
    /// Tokens of one instruction.
    pub(super) tokens: usize,
    /// Bytes from the tokens of the first 64 of k to those of the next.
    pub(super) panel: usize,
    /// The first instruction's place in its block of 128 of k.
    pub(super) first: usize,
    pub(super) bf16: bool,
}

impl Chain {
    /// Sums of a lane: 64 rows of `tokens` tokens over 128 lanes.
    pub(super) fn sums(self) -> usize {
        self.tokens / 2
    }

    /// The PTX of `weights · tokens`, begun.
    ///
    /// Registers are numbered as operands come: the sums, both halves of the descriptor of the tokens at the start of
    /// the block, the weights.
    fn issue_ptx(self) -> String {
        let sums = self.sums();
        let [low, high, weights] = [sums, sums + 1, sums + 2];
        let ty = if self.bf16 { "bf16" } else { "f16" };
        let list = |first: usize, len: usize| -> String {
            let names: Vec<String> = (first..first + len).map(|i| format!("%{i}")).collect();
            names.join(", ")
        };
        let steps = self.steps;
        let mut ptx = format!(
            "{{ .reg .pred pf, pt; .reg .b32 t; .reg .b64 b<{steps}>;\n\
             setp.ne.b32 pf, %{low}, %{low}; setp.eq.b32 pt, %{low}, %{low};\n"
        );
        // Writing to a String cannot fail.
        for step in 0..steps {
            let at = self.first + step;
            let distance = (at / 4 * self.panel + at % 4 * 32) / 16;
            let _ =
                writeln!(ptx, "add.u32 t, %{low}, {distance}; mov.b64 b{step}, {{t, %{high}}};");
        }
        ptx.push_str("wgmma.fence.sync.aligned;\n");
        for step in 0..steps {
            let _ = writeln!(
                ptx,
                "wgmma.mma_async.sync.aligned.m64n{}k16.f32.{ty}.{ty} {{{}}}, {{{}}}, b{step}, {}, 1, 1, 0;",
                self.tokens,
                list(0, sums),
                list(weights + 4 * step, 4),
                if step == 0 { "pf" } else { "pt" },
            );
        }
        ptx.push_str("wgmma.commit_group.sync.aligned; }");
        ptx
    }

    /// The PTX of `sums + scale · products`, once they are there. Operands: the new sums, the scales of rows g and
    /// g + 8, the products, the old sums.
    fn finish_ptx(self) -> String {
        let sums = self.sums();
        let [scale, products, old] = [sums, sums + 2, 2 * sums + 2];
        let mut ptx = String::from("wgmma.wait_group.sync.aligned 0;\n");
        for i in 0..sums {
            let _ = writeln!(
                ptx,
                "fma.rn.f32 %{i}, %{}, %{}, %{};",
                products + i,
                scale + i / 2 % 2,
                old + i
            );
        }
        ptx
    }
}

/// Begins `weights · tokens`: of lane 4g + t and token tile j, the elements 4j…4j + 3 will be row g with tokens 8j + 2t
/// and the next, then row g + 8 with the same. `descriptor` is the low half of that of the tokens. Whatever is done
/// with the result before [`finish`] is wrong.
#[cube]
pub(super) fn issue<A: Size, D: Size>(
    weights: Vector<u32, A>,
    descriptor: u32,
    #[comptime] chain: Chain,
) -> Vector<f32, D> {
    // Eight rows of 128 bytes after another, 128-byte swizzle.
    let high = 64u32 | (1u32 << 30u32);
    let products: Vector<f32, D>;
    gpu_asm!(
        "// {d} {l} {h} {a}",
        "{ptx}",
        l = in(_) u32::reinterpret(descriptor), h = in(_) u32::reinterpret(high),
        a = in(_) Vector::<u32, A>::reinterpret(weights), d = out(_) products,
        ptx = const chain.issue_ptx(),
    );
    products
}

/// `sums + scale · products` of the last chain issued.
#[cube]
pub(super) fn finish<D: Size>(
    products: Vector<f32, D>,
    sums: Vector<f32, D>,
    scale_low: f32,
    scale_high: f32,
    #[comptime] chain: Chain,
) -> Vector<f32, D> {
    let new: Vector<f32, D>;
    gpu_asm!(
        "// {d} {s0} {s1} {p} {c}",
        "{ptx}",
        s0 = in(_) f32::reinterpret(scale_low), s1 = in(_) f32::reinterpret(scale_high),
        p = in(_) Vector::<f32, D>::reinterpret(products), c = in(_) sums, d = out(_) new, ptx = const chain.finish_ptx(),
    );
    new
}
