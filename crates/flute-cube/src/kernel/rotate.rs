//! Rotary embedding, and keys and values into their cache: a unit takes a vector of the first half of a head and its
//! partner in the second.

use super::{
    blocks::{CACHE_BLOCK, block_at, entries, row_of},
    width::width,
};
use crate::{Dtype, Rotate, RotateBuffers};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

const UNITS: usize = 128;
/// Cubes of one launch; those that run at once take the other vectors too.
const MAX_CUBES: usize = 8192;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    width: usize,
    /// Vectors of half a head.
    half: usize,
    query_heads: usize,
    key_heads: usize,
    dtype: Dtype,
}

impl Form {
    fn heads(self) -> usize {
        self.query_heads + 2 * self.key_heads
    }
}

/// What is not.
#[derive(CubeLaunch, CubeType)]
struct Shape {
    batch: usize,
    tokens: usize,
    capacity: usize,
    /// Of the cache.
    blocks: usize,
    /// Of the table, for each sequence.
    entries: usize,
}

/// Rotates and stores what `buffers` hold, which were measured for `problem`.
pub(crate) fn launch(client: &Client, problem: &Rotate, buffers: &RotateBuffers) -> Form {
    let Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype } = *problem;
    let RotateBuffers { qkv, cos, sin, start, table, query, keys, values } = buffers;
    let hardware = &client.properties().hardware;
    let typed = [qkv, query, keys, values].map(|buffer| (buffer, dtype.size()));
    let all = [typed.as_slice(), &[(cos, 4), (sin, 4)]].concat();
    let width = width(client, dim / 2, &all);
    let form = Form { width, half: dim / 2 / width, query_heads, key_heads, dtype };
    let row = 2 * form.half;
    let work = batch * tokens * form.heads() * form.half;
    let units = UNITS.min(hardware.max_units_per_cube as usize);
    let cubes = work.div_ceil(units).min(MAX_CUBES).min(hardware.max_cube_count.0 as usize);
    let arg = |handle: &Handle, len| {
        // SAFETY: every buffer was measured against the shape of the problem.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    let (cache, entries) = (blocks * key_heads * CACHE_BLOCK * row, entries(capacity));
    // SAFETY: places of qkv and query stay below the shape; positions from the capacity on are not stored, and read the
    // last row of the rotations; where the table names no block of the cache, nothing is stored.
    unsafe {
        rotate::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            width,
            arg(qkv, batch * tokens * form.heads() * row),
            arg(cos, capacity * form.half),
            arg(sin, capacity * form.half),
            arg(start, batch),
            arg(table, batch * entries),
            arg(query, batch * tokens * query_heads * row),
            arg(keys, cache),
            arg(values, cache),
            ShapeLaunch::new(batch, tokens, capacity, blocks, entries),
            form,
            dtype.elem(),
        );
    }
    form
}

#[cube(launch_unchecked)]
fn rotate<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    start: &[i32],
    table: &[i32],
    query: &mut [Vector<F, N>],
    keys: &mut [Vector<F, N>],
    values: &mut [Vector<F, N>],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let half = comptime!(form.half);
    let row = comptime!(2 * form.half);
    let work = shape.batch * shape.tokens * comptime!(form.heads() * form.half);
    let mut item = ABSOLUTE_POS;
    while item < work {
        let column = item % half;
        let head = item / half % comptime!(form.heads());
        let token = item / comptime!(form.half * form.heads()) % shape.tokens;
        let batch = item / comptime!(form.half * form.heads()) / shape.tokens;
        let begin = start[batch];
        let position = u32::cast_from(begin) as usize + token;
        let within = begin >= 0 && position < shape.capacity;
        let from = item / half * row + column;
        let (low, high) = (qkv[from], qkv[from + half]);
        if head >= comptime!(form.query_heads + form.key_heads) {
            if within {
                let block = block_at(table, batch * shape.entries + position / CACHE_BLOCK);
                if block < shape.blocks {
                    let head = head - comptime!(form.query_heads + form.key_heads);
                    let to = row_of(block, form.key_heads, head, position) * row;
                    values[to + column] = low;
                    values[to + column + half] = high;
                }
            }
        } else {
            let at = select(within, position, shape.capacity - 1) * half + column;
            let (first, second) = turned::<F, N>(low, high, cos[at], sin[at]);
            if head < form.query_heads {
                let to = ((batch * form.query_heads + head) * shape.tokens + token) * row;
                query[to + column] = first;
                query[to + column + half] = second;
            } else if within {
                let block = block_at(table, batch * shape.entries + position / CACHE_BLOCK);
                if block < shape.blocks {
                    let to = row_of(block, form.key_heads, head - form.query_heads, position) * row;
                    keys[to + column] = first;
                    keys[to + column + half] = second;
                }
            }
        }
        item += CUBE_COUNT * CUBE_DIM as usize;
    }
}

/// A vector of the first half of a head and its partner in the second, rotated and rounded. Whoever rotates does it here,
/// so that a token's bits do not depend on the kernel.
#[cube]
pub(super) fn turned<F: Float, N: Size>(
    low: Vector<F, N>,
    high: Vector<F, N>,
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
) -> (Vector<F, N>, Vector<F, N>) {
    let a = Vector::<f32, N>::cast_from(low);
    let b = Vector::<f32, N>::cast_from(high);
    let first = Vector::<F, N>::cast_from(a * cos - b * sin);
    let second = Vector::<F, N>::cast_from(b * cos + a * sin);
    (first, second)
}
