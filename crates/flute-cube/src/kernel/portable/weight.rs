//! What the portable kernel and the decoder read of a weight: words, scales, and the table of pairs in shared memory.

use super::Form;
use cubecl::prelude::*;

pub(in crate::kernel) type Words = Vector<u32, Const<4>>;
pub(super) type Pair = Vector<f32, Const<2>>;

/// Writes every copy of every pair. Which copy a unit writes first differs between units, and so do the banks.
#[cube]
pub(in crate::kernel) fn fill<F: Float, T: Float>(
    table: &mut Shared<[Vector<T, Const<2>>]>,
    pairs: &[Vector<F, Const<2>>],
    #[comptime] form: Form,
) {
    let copies = comptime!(form.copies as u32);
    let spread = comptime!(form.spread() as u32);
    let own = comptime!((form.copies / form.spread()) as u32);
    let mut at = UNIT_POS;
    while at < comptime!((form.entries() * form.spread()) as u32) {
        let pair = at / spread;
        let value = Vector::<T, Const<2>>::cast_from(pairs[pair as usize]);
        let first = pair * copies + ((at % spread * own) ^ (pair % copies));
        #[unroll]
        for copy in 0..own {
            table[(first ^ copy) as usize] = value;
        }
        at += comptime!(32 * form.planes as u32);
    }
}

/// The copy that a unit looks up in. Neighbours share one: a mask would cost an instruction at every lookup, which
/// compilers move there.
#[cube]
pub(in crate::kernel) fn own_copy(#[comptime] form: Form) -> u32 {
    UNIT_POS_X / comptime!(32 / form.copies as u32)
}

/// Words 0–3 of a lane.
#[cube]
pub(in crate::kernel) fn load_head(
    words: &[Words],
    block: usize,
    unit: usize,
    #[comptime] form: Form,
) -> Words {
    words[block * comptime!(16 * form.bits) + unit]
}

/// Words 4 and up of a lane: four, none, or those of two lanes.
#[cube]
pub(in crate::kernel) fn load_tail(
    words: &[Words],
    block: usize,
    unit: usize,
    #[comptime] form: Form,
) -> Words {
    let start = block * comptime!(16 * form.bits) + 32;
    if comptime!(form.bits == 4) {
        words[start + unit]
    } else if comptime!(form.bits == 3) {
        words[start + unit / 2]
    } else {
        Words::new(0u32)
    }
}

/// Of what [`load_tail`] brought the words of this lane: two lanes share a load of 3-bit ones. It waits for them.
#[cube]
pub(in crate::kernel) fn own_tail(tail: Words, unit: usize, #[comptime] form: Form) -> Words {
    let mut own = tail;
    if comptime!(form.bits == 3) {
        let odd = unit % 2 == 1;
        own.insert(0usize, select(odd, tail.extract(2usize), tail.extract(0usize)));
        own.insert(1usize, select(odd, tail.extract(3usize), tail.extract(1usize)));
    }
    own
}

/// The scales of `block` for the two rows of a lane, one for each part, as the `set`th of `factors`; `row` is where those
/// of its 16 rows begin.
#[cube]
pub(in crate::kernel) fn load_scales<F: Float>(
    scales: &[Vector<F, Const<2>>],
    factors: &mut Array<Vector<F, Const<2>>>,
    row: usize,
    block: usize,
    #[comptime] set: usize,
    #[comptime] form: Form,
) {
    let parts = comptime!(128 / form.fold);
    #[unroll]
    for part in 0..parts {
        factors[set * parts + part] =
            scales[(row + group_of(block, part, form)) * 8 + UNIT_POS_X as usize / 4];
    }
}

#[cube]
fn word(head: Words, tail: Words, #[comptime] index: usize) -> u32 {
    if comptime!(index < 4) { head.extract(index) } else { tail.extract(comptime!(index - 4)) }
}

/// The pair of slot `j` of fragment `f` in f32.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(in crate::kernel) fn look_up<T: Float>(
    table: &Shared<[Vector<T, Const<2>>]>,
    head: Words,
    tail: Words,
    copy: u32,
    #[comptime] f: usize,
    #[comptime] j: usize,
    #[comptime] form: Form,
) -> Pair {
    Pair::cast_from(pair_of(table, head, tail, copy, f, j, form))
}

/// The pair of slot `j` of fragment `f`: the table in [`crate::pack`] says where its index lies. It is cut out of its
/// word at the place where an address wants it, so that nothing is left to shift.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(in crate::kernel) fn pair_of<T: Float>(
    table: &Shared<[Vector<T, Const<2>>]>,
    head: Words,
    tail: Words,
    copy: u32,
    #[comptime] f: usize,
    #[comptime] j: usize,
    #[comptime] form: Form,
) -> Vector<T, Const<2>> {
    let place = comptime!(form.copies.trailing_zeros());
    let byte = comptime!(8 * j as u32);
    let index = if comptime!(form.bits == 4) {
        moved(word(head, tail, f), byte, place, 8u32)
    } else if comptime!(form.bits == 2) {
        let from = comptime!((16 * (f % 2) + 4 * j) as u32);
        moved(word(head, tail, comptime!(f / 2)), from, place, 4u32)
    } else if comptime!(f % 4 < 3) {
        moved(word(head, tail, comptime!(f / 4 * 3 + f % 4)), byte, place, 6u32)
    } else {
        let from = comptime!(byte + 6);
        moved(word(head, tail, comptime!(f / 4 * 3)), from, place, 2u32)
            | moved(word(head, tail, comptime!(f / 4 * 3 + 1)), from, comptime!(place + 2), 2u32)
            | moved(word(head, tail, comptime!(f / 4 * 3 + 2)), from, comptime!(place + 4), 2u32)
    };
    table[(index | copy) as usize]
}

/// `len` bits of `word` from bit `from` on, at bit `to` of zeros.
#[cube]
fn moved(word: u32, #[comptime] from: u32, #[comptime] to: u32, #[comptime] len: u32) -> u32 {
    let mask = comptime!(((1u32 << len) - 1) << to);
    if comptime!(from > to) {
        (word >> comptime!(from - to)) & mask
    } else if comptime!(from < to) {
        (word << comptime!(to - from)) & mask
    } else {
        word & mask
    }
}

/// The group of the columns that `part` of `block` sums.
#[cube]
fn group_of(block: usize, #[comptime] part: usize, #[comptime] form: Form) -> usize {
    if comptime!(form.fold < 128) {
        block * comptime!(128 / form.fold) + part
    } else if comptime!(form.span > 1) {
        block / form.span
    } else if comptime!(form.span == 1) {
        block
    } else {
        0usize.runtime()
    }
}
