//! Attention of a prompt, timed alone: `--attend 32x8x128,64x8x128 --m 2048` for query heads, heads of keys, features.

use cubecl::prelude::*;
use flute_cube::{Attend, AttendBuffers, Dtype, Result, attend, measure};

/// Times attention of `tokens` new tokens from the first position on, and prints a line.
pub(crate) fn time(
    client: &Client,
    [query_heads, key_heads, dim]: [usize; 3],
    tokens: usize,
    dtype: Dtype,
) -> Result<()> {
    let problem = Attend {
        batch: 1,
        tokens,
        query_heads,
        key_heads,
        dim,
        capacity: tokens,
        scale: (dim as f64).powf(-0.5),
        cap: None,
        window: None,
        dtype,
    };
    let noise = |len: usize| {
        let mut state = len as u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        client.create_from_slice(&dtype.encode(&(0..len).map(|_| next()).collect::<Vec<f32>>()))
    };
    let buffers = AttendBuffers {
        query: noise(query_heads * tokens * dim),
        keys: noise(key_heads * tokens * dim),
        values: noise(key_heads * tokens * dim),
        start: client.create_from_slice(bytemuck::bytes_of(&0i32)),
        y: client.empty(query_heads * tokens * dim * dtype.size()),
    };
    let timing = measure::time(client, 4, &buffers.y, |_| attend(client, &problem, &buffers))?;
    let seen = tokens * (tokens + 1) / 2;
    let rate = (4 * dim * query_heads * seen) as f64 / timing.median / 1e12;
    println!(
        "attention, {query_heads} heads over {key_heads} of {dim}, {tokens} tokens, {dtype}: {:.1} µs, {rate:.0} TFLOP/s",
        timing.median * 1e6
    );
    Ok(())
}
