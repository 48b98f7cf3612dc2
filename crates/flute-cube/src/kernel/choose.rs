//! The best of a row in two kernels: cubes find the best of their share, then one cube finds the best of those.
//!
//! A logit is compared as an unsigned number that grows with it, in which a NaN is above everything: shading languages
//! promise nothing about comparing one as a float.

use super::{
    overlap::{follow, lead},
    width::width,
};
use crate::{Choose, ChooseBuffers, Dtype, launch};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

/// Units of a cube.
const UNITS: usize = 256;
/// Cubes of a row, at most: as many as one cube folds with a value a unit. 128256 logits are one vector a unit.
const MAX_PARTS: usize = 64;
/// The key of every NaN.
const NAN: u32 = u32::MAX;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    width: usize,
    units: usize,
    dtype: Dtype,
    /// Of [`follow`].
    overlaps: bool,
}

/// Chooses from what `buffers` hold, which were measured for `problem`. Returns the buffer between the two kernels, too.
pub(crate) fn launch(client: &Client, problem: &Choose, buffers: &ChooseBuffers) -> (Form, Handle) {
    let Choose { rows, vocab, advance, dtype } = *problem;
    let ChooseBuffers { logits, tokens, position, chosen } = buffers;
    let most = client.properties().hardware.max_units_per_cube as usize;
    let width = width(client, vocab, &[(logits, dtype.size())]);
    let overlaps = launch::limits(client).bulk;
    let form = Form { width, units: 1 << UNITS.min(most).ilog2(), dtype, overlaps };
    let vectors = vocab / width;
    let parts = vectors.div_ceil(form.units).min(MAX_PARTS).min(form.units);
    let best = client.empty(8 * rows * parts);
    let dim = CubeDim::new_1d(form.units as u32);
    let arg = |handle: &Handle, len| {
        // SAFETY: every buffer was measured against the rows that the problem says, or was just made for them.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    // SAFETY: a row has `vectors`, which units stay below, and the grid has one cube of the fold for each row.
    unsafe {
        best_of_share::launch_unchecked(
            client,
            CubeCount::Static(parts as u32, rows as u32, 1),
            dim,
            width,
            arg(logits, rows * vectors),
            arg(&best, 2 * rows * parts),
            vectors,
            form,
            dtype.elem(),
        );
        choose::launch_unchecked(
            client,
            CubeCount::Static(1, rows as u32, 1),
            dim,
            arg(&best, 2 * rows * parts),
            arg(tokens, rows),
            arg(position, rows),
            arg(chosen, 2 * rows),
            parts,
            advance as i32,
            form,
        );
    }
    (form, best)
}

#[cube(launch_unchecked)]
fn best_of_share<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    best: &mut [u32],
    vectors: usize,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    lead(form.overlaps);
    follow(form.overlaps);
    let row = CUBE_POS_Y as usize;
    // Below the key of every logit.
    let mut found = Best { key: 0u32, id: 0u32 };
    let mut at = CUBE_POS_X as usize * form.units + UNIT_POS as usize;
    while at < vectors {
        let values = logits[row * vectors + at];
        #[unroll]
        for i in 0..comptime!(form.width) {
            let key = key(f32::cast_from(values.extract(i)));
            // Ids ascend, so the first of equals stays.
            if key > found.key {
                found.key = key;
                found.id = (at * form.width + i) as u32;
            }
        }
        at += CUBE_COUNT_X as usize * form.units;
    }
    let found = best_of_cube(found, form.units);
    if UNIT_POS == 0 {
        let place = 2 * (row * CUBE_COUNT_X as usize + CUBE_POS_X as usize);
        best[place] = found.key;
        best[place + 1] = found.id;
    }
}

#[cube(launch_unchecked)]
fn choose(
    best: &[u32],
    tokens: &mut [i32],
    position: &mut [i32],
    chosen: &mut [f32],
    parts: usize,
    advance: i32,
    #[comptime] form: Form,
) {
    lead(form.overlaps);
    follow(form.overlaps);
    let row = CUBE_POS_Y as usize;
    let mut found = Best { key: 0u32, id: 0u32 };
    if (UNIT_POS as usize) < parts {
        let place = 2 * (row * parts + UNIT_POS as usize);
        found.key = best[place];
        found.id = best[place + 1];
    }
    let found = best_of_cube(found, form.units);
    if UNIT_POS == 0 {
        chosen[2 * row] = logit(found.key);
        chosen[2 * row + 1] = f32::cast_from(found.id);
        tokens[row] = i32::cast_from(found.id);
        position[row] += advance;
    }
}

/// A logit as it is compared, and whose it is.
#[derive(CubeType)]
struct Best {
    key: u32,
    id: u32,
}

/// The best that units of a cube found, in unit 0; of equals that with the lowest id.
#[cube]
fn best_of_cube(mine: Best, #[comptime] units: usize) -> Best {
    let unit = UNIT_POS as usize;
    let mut keys = Shared::<[u32]>::new_slice(units);
    let mut ids = Shared::<[u32]>::new_slice(units);
    keys[unit] = mine.key;
    ids[unit] = mine.id;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = unit + half;
            if keys[other] > keys[unit] || (keys[other] == keys[unit] && ids[other] < ids[unit]) {
                keys[unit] = keys[other];
                ids[unit] = ids[other];
            }
        }
        sync_cube();
    }
    Best { key: keys[0], id: ids[0] }
}

/// Grows with `x`; the zeros are equal, and no number has 0.
#[cube]
fn key(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let size = bits & 0x7fff_ffffu32;
    let negative = bits >> 31u32 == 1u32 && size > 0u32;
    let key = select(negative, 0x7fff_ffffu32 - size, 0x8000_0000u32 + size);
    select(size > 0x7f80_0000u32, NAN.runtime(), key)
}

/// What [`key`] was made from.
#[cube]
fn logit(key: u32) -> f32 {
    let positive = key - min(key, 0x8000_0000u32);
    let bits = select(key < 0x8000_0000u32, 0xffff_ffffu32 - key, positive);
    f32::reinterpret(bits)
}
