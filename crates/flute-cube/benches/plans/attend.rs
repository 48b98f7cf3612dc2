//! Attention, timed alone: `--attend 32x8x128,64x8x128 --m 2048` for query heads, heads of keys and features, and the
//! tokens of a prompt; with `--context 1024` a token of each of `--m` sequences behind so many others. `--next 32x8x128`
//! times a token with its rotation and its place in the cache, at the batches and contexts of [`STEPS`]; with `--cubes 4`
//! by clusters of so many cubes with every number of tiles ahead, with `--cubes all` by all of them.

use cubecl::prelude::*;
use flute_cube::{
    Attend, AttendBuffers, CACHE_BLOCK, Cluster, Dtype, Limits, NextBuffers, Result, attend,
    attend_next, attend_next_with,
    measure::{self, COLD_BYTES},
};

/// A token of each of `batch` sequences, each in blocks of its own.
fn token(
    [query_heads, key_heads, dim]: [usize; 3],
    [batch, capacity]: [usize; 2],
    dtype: Dtype,
) -> Attend {
    Attend {
        batch,
        tokens: 1,
        query_heads,
        key_heads,
        dim,
        capacity,
        blocks: batch * capacity.div_ceil(CACHE_BLOCK),
        scale: (dim as f64).powf(-0.5),
        cap: None,
        window: None,
        dtype,
    }
}

/// Times attention of a new token of each of `batch` sequences behind `context` others, and prints a line.
pub(crate) fn time_decoding(
    client: &Client,
    [query_heads, key_heads, dim]: [usize; 3],
    [batch, context]: [usize; 2],
    dtype: Dtype,
) -> Result<()> {
    let problem = token([query_heads, key_heads, dim], [batch, context + CACHE_BLOCK], dtype);
    let cache = problem.blocks * key_heads * CACHE_BLOCK * dim * dtype.size();
    let heads = batch * query_heads * dim * dtype.size();
    let start = client.create_from_slice(bytemuck::cast_slice(&vec![context as i32; batch]));
    let table: Vec<i32> = (0..problem.blocks as i32).collect();
    let table = client.create_from_slice(bytemuck::cast_slice(&table));
    // What a cache holds does not change how long it takes to read, if it is read from memory.
    let buffers = |_| AttendBuffers {
        query: client.empty(heads),
        keys: client.empty(cache),
        values: client.empty(cache),
        start: start.clone(),
        table: table.clone(),
        y: client.empty(heads),
    };
    let all: Vec<_> = (0..COLD_BYTES.div_ceil(2 * cache)).map(buffers).collect();
    let launch = |i: usize| attend(client, &problem, &all[i]);
    let timing = measure::time(client, all.len(), &all[0].y, launch)?;
    let read = 2 * batch * key_heads * (context + 1) * dim * dtype.size();
    println!(
        "attention, {query_heads} heads over {key_heads} of {dim}, {batch} tokens behind {context}, {dtype}: {:.1} µs, {:.2} TB/s",
        timing.median * 1e6,
        read as f64 / timing.median / 1e12
    );
    Ok(())
}

/// Sequences, and the positions that each has before its new token.
const STEPS: [[usize; 2]; 5] = [[1, 1024], [16, 1024], [64, 1024], [1, 8192], [1, 131_072]];

/// Times rotation, place and attention of a new token at [`STEPS`], and prints a line for each: as it is launched, and where
/// rotations begin at no multiple of two floats, by the two kernels that then serve it on every device. With `cubes` a line
/// for each cluster of so many, a star at what would be launched.
pub(crate) fn time_next(
    client: &Client,
    [query_heads, key_heads, dim]: [usize; 3],
    dtype: Dtype,
    cubes: &[usize],
) -> Result<()> {
    let limits = Limits::of(client);
    for [batch, context] in STEPS {
        let entries = (context + 1).div_ceil(CACHE_BLOCK);
        let capacity = entries * CACHE_BLOCK;
        let problem = token([query_heads, key_heads, dim], [batch, capacity], dtype);
        let cache = problem.blocks * key_heads * CACHE_BLOCK * dim * dtype.size();
        let heads = batch * dim * dtype.size();
        let start = client.create_from_slice(bytemuck::cast_slice(&vec![context as i32; batch]));
        let table: Vec<i32> = (0..problem.blocks as i32).collect();
        let table = client.create_from_slice(bytemuck::cast_slice(&table));
        let rotations = client.empty(problem.capacity * dim / 2 * 4 + 16);
        let read = 2 * batch * key_heads * (context + 1) * dim * dtype.size();
        let time = |shift: u64, cluster: Option<Cluster>| -> Result<String> {
            // As above, of whatever a cache holds.
            let buffers = |_| NextBuffers {
                qkv: client.empty((query_heads + 2 * key_heads) * heads),
                cos: rotations.clone().offset_start(shift),
                sin: rotations.clone().offset_start(shift),
                start: start.clone(),
                table: table.clone(),
                keys: client.empty(cache),
                values: client.empty(cache),
                y: client.empty(query_heads * heads),
            };
            let all: Vec<_> = (0..COLD_BYTES.div_ceil(2 * cache)).map(buffers).collect();
            let launch = |i: usize| match cluster {
                Some(cluster) => attend_next_with(client, &problem, &all[i], cluster),
                None => attend_next(client, &problem, &all[i]),
            };
            let took = measure::time(client, all.len(), &all[0].y, launch)?.median;
            Ok(format!("{:.1} µs, {:.0} GB/s", took * 1e6, read as f64 / took / 1e9))
        };
        let what = format!(
            "next token, {query_heads} heads over {key_heads} of {dim}, {batch} behind {context}, {dtype}"
        );
        let chosen = Cluster::of(&problem, &limits);
        let spread =
            |cluster: Cluster| format!("{} cubes, {} tiles ahead", cluster.cubes, cluster.stages);
        if cubes.is_empty() {
            let name = chosen.map_or("two kernels".into(), spread);
            println!("{what}: {} ({name}); by two kernels {}", time(0, None)?, time(4, None)?);
        }
        for cubes in cubes {
            for cluster in [1, 2, 3, 6].map(|stages| Cluster { cubes: *cubes, stages }) {
                let mark = if chosen == Some(cluster) { " *" } else { "" };
                match time(0, Some(cluster)) {
                    Ok(took) => println!("{what}: {took} ({}){mark}", spread(cluster)),
                    Err(error) => println!("{what}: {error}"),
                }
            }
        }
    }
    Ok(())
}

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
        blocks: tokens.div_ceil(CACHE_BLOCK),
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
    let table: Vec<i32> = (0..problem.blocks as i32).collect();
    let cache = problem.blocks * key_heads * CACHE_BLOCK * dim;
    let buffers = AttendBuffers {
        query: noise(query_heads * tokens * dim),
        keys: noise(cache),
        values: noise(cache),
        start: client.create_from_slice(bytemuck::bytes_of(&0i32)),
        table: client.create_from_slice(bytemuck::cast_slice(&table)),
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
