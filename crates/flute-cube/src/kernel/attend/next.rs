//! One chunk of positions, its new token rotated and stored on the way.
//!
//! Every cube rotates the queries that it reads. The new position lies in the chunk of one cube a head of keys, which
//! rotates the new key, writes it and the value into the cache, and takes both from shared memory itself; other cubes do
//! not look there, so that nobody reads in a launch what it writes.

use super::partial::{attend, chunk, is_missing, is_seen, leave_nothing};
use super::{CHUNK, Form, Launch, Shape, UNITS, arg};
use crate::{Attend, Limits, NextBuffers, kernel::rotate::turned};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

/// Buffers that the first kernel is given, that of its numbers among them.
pub(crate) const BINDINGS: usize = 10;

/// What is not compiled in.
#[derive(CubeLaunch, CubeType)]
struct Token {
    /// Heads of q, k and v of a token.
    heads: usize,
    attend: Shape,
}

/// Attends with what `buffers` hold, which were measured for `problem`. Returns the buffer between the two kernels, too.
pub(crate) fn launch(
    client: &Client,
    problem: &Attend,
    buffers: &NextBuffers,
    limits: &Limits,
) -> (Form, Handle) {
    let Attend { batch, query_heads, key_heads, dim, capacity, dtype, .. } = *problem;
    let NextBuffers { qkv, cos, sin, start, table, keys, values, y } = buffers;
    let typed = [qkv, keys, values, y];
    let form = Form::new(client, problem, typed, Some([cos, sin]), limits);
    let rotated = form.rotated.unwrap_or(1);
    let launch = Launch::new(client, problem, form);
    let heads = query_heads + 2 * key_heads;
    // SAFETY: places of qkv stay below the shape; positions from the capacity on are not stored, and read the last row of
    // the rotations; positions that are seen stay below the capacity, blocks that are written or read below those of the
    // cache, chunks below the splits, and heads below those of the grid.
    unsafe {
        next::launch_unchecked(
            client,
            launch.cubes(),
            CubeDim::new_1d(UNITS as u32),
            form.width,
            rotated,
            arg(qkv, batch * heads * form.vectors),
            arg(cos, capacity * dim / 2 / rotated),
            arg(sin, capacity * dim / 2 / rotated),
            arg(start, batch),
            arg(table, launch.entries()),
            arg(keys, launch.cache()),
            arg(values, launch.cache()),
            launch.sums(),
            launch.stats(),
            TokenLaunch::new(heads, launch.shape()),
            form,
            dtype.elem(),
        );
    }
    launch.fold(start, y);
    (form, launch.sums)
}

/// See [`super::partial::partial`].
#[cube(launch_unchecked)]
fn next<F: Float, N: Size, R: Size>(
    qkv: &[Vector<F, N>],
    cos: &[Vector<f32, R>],
    sin: &[Vector<f32, R>],
    start: &[i32],
    table: &[i32],
    keys: &mut [Vector<F, N>],
    values: &mut [Vector<F, N>],
    sums: &mut [Vector<f32, N>],
    stats: &mut [f32],
    token: Token,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let shape = &token.attend;
    let begin = start[CUBE_POS_Z as usize];
    let mut chunk = chunk(begin, table, shape, form);
    if is_missing(&chunk, shape) {
        leave_nothing(sums, stats, &chunk, shape, form);
    } else if is_seen(&chunk) {
        let (group, vectors) = (comptime!(form.group), comptime!(form.vectors));
        let half = comptime!(form.vectors / 2);
        let (key_head, key_heads) = (CUBE_POS_Y as usize, CUBE_COUNT_Y as usize);
        let batch = CUBE_POS_Z as usize;
        // It is not negative, or nothing would be seen.
        let position = u32::cast_from(begin) as usize;
        let within = position < shape.capacity;
        let here = within && position < chunk.begin + CHUNK;
        chunk.new = select(here, position % CHUNK, CHUNK);
        let rotation = select(within, position, shape.capacity - 1) * half;

        let mut rows = Shared::<[Vector<f32, N>]>::new_slice(comptime!(form.rows() * vectors));
        let mine = select(here, form.rows(), group);
        let mut at = UNIT_POS as usize;
        while at < mine * half {
            let (row, column) = (at / half, at % half);
            // Behind the heads of q, which lie together by their head of keys, one of k and one of v.
            let head = select(row < group, key_head * group + row, row * key_heads + key_head);
            let from = (batch * token.heads + head) * vectors + column;
            let (low, high) = (qkv[from], qkv[from + half]);
            let to = row * vectors + column;
            if row <= group {
                let c = rotation_at::<N, R>(cos, rotation + column, form);
                let s = rotation_at::<N, R>(sin, rotation + column, form);
                let (first, second) = turned::<F, N>(low, high, c, s);
                let wide_first = Vector::<f32, N>::cast_from(first);
                let wide_second = Vector::<f32, N>::cast_from(second);
                if row < group {
                    rows[to] = wide_first * Vector::<f32, N>::new(shape.scale);
                    rows[to + half] = wide_second * Vector::<f32, N>::new(shape.scale);
                } else {
                    rows[to] = wide_first;
                    rows[to + half] = wide_second;
                    let place = chunk.cache + chunk.new * vectors + column;
                    keys[place] = first;
                    keys[place + half] = second;
                }
            } else {
                rows[to] = Vector::<f32, N>::cast_from(low);
                rows[to + half] = Vector::<f32, N>::cast_from(high);
                let place = chunk.cache + chunk.new * vectors + column;
                values[place] = low;
                values[place + half] = high;
            }
            at += UNITS;
        }
        sync_cube();
        attend::<F, N>(&*keys, &*values, &rows, sums, stats, &chunk, shape, form);
    }
}

/// A vector of `table`, whose own are narrower where their elements are wider than those of heads.
#[cube]
fn rotation_at<N: Size, R: Size>(
    table: &[Vector<f32, R>],
    at: usize,
    #[comptime] form: Form,
) -> Vector<f32, N> {
    let width = comptime!(form.rotated.unwrap_or(1));
    let pieces = comptime!(form.width / width);
    let mut whole = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for piece in 0..pieces {
        let part = table[at * pieces + piece];
        #[unroll]
        for i in 0..width {
            whole.insert(comptime!(piece * width + i), part.extract(i));
        }
    }
    whole
}
