//! How long launches take, and how fast a device reads: what benches, `flute doctor` and tuners compare with.
//!
//! Times come from replays of a captured graph where the runtime has graphs, so that they hold the device's work and
//! not the host's. Whoever measures a kernel that reads weights gives it more copies of them than the cache holds:
//! [`Workload`] does, and checks what the kernel wrote. Nothing here chooses a plan.

mod noise;
mod samples;
mod workload;

pub use noise::Noise;
pub use samples::Samples;
pub use workload::{COLD_BYTES, Run, Synthetic, Workload};

use crate::{Error, Problem, Result};
use cubecl::{future::block_on, prelude::*, server::Handle};
use std::time::{Duration, Instant};

/// Seconds of one launch: the median and the least of several samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median of the samples.
    pub median: f64,
    /// Fastest sample.
    pub least: f64,
}

const SAMPLES: usize = 7;
const SAMPLE: Duration = Duration::from_millis(4);

/// Seconds that a kernel takes beside reading, in replays of a graph on an H200: reads of 1 MB to 1 GB there fit this
/// plus bytes over rate.
pub const LAUNCH_SECONDS: f64 = 1.4e-6;

/// Seconds under which no kernel of `problem` can stay on a device that reads `rate` bytes a second, as far as memory
/// decides; for many rows of x, arithmetic decides.
pub fn floor(problem: &Problem, rate: f64) -> f64 {
    problem.bytes() as f64 / rate + LAUNCH_SECONDS
}

/// Times `rounds(r)`, which runs a round of `count` launches `r` times and waits for the last of them.
///
/// # Errors
/// What `rounds` returns.
pub fn sample<E>(
    count: usize,
    mut rounds: impl FnMut(usize) -> std::result::Result<(), E>,
) -> std::result::Result<Timing, E> {
    let mut run = |times: usize| {
        let start = Instant::now();
        rounds(times)?;
        Ok(start.elapsed().as_secs_f64() / (times * count) as f64)
    };
    run(1)?;
    let once = run(2)? * count as f64;
    let times = (SAMPLE.as_secs_f64() / once).ceil().clamp(1.0, 10_000.0) as usize;
    let samples = (0..SAMPLES).map(|_| run(times));
    let mut samples = samples.collect::<std::result::Result<Vec<f64>, E>>()?;
    samples.sort_by(f64::total_cmp);
    Ok(Timing { median: samples[SAMPLES / 2], least: samples[0] })
}

/// Times `launch(0) … launch(count − 1)`, captured together, and divides by `count`. `y` is a buffer that the
/// launches write.
///
/// # Errors
/// What `launch` returns, and [`Error::Device`].
pub fn time(
    client: &Client,
    count: usize,
    y: &Handle,
    mut launch: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    let failed = |during| {
        move |e: cubecl::server::ServerError| Error::Device { during, reason: e.to_string() }
    };
    let graphs = client.graph_prepare().is_ok();
    for i in 0..count {
        launch(i)?;
    }
    block_on(client.sync_buffers([y])).map_err(failed("warmed up"))?;
    let graph = if graphs && client.start_capture().is_ok() {
        for i in 0..count {
            launch(i)?;
        }
        Some(client.stop_capture().map_err(failed("captured a graph"))?)
    } else {
        None
    };
    sample(count, |times| {
        for _ in 0..times {
            match &graph {
                // SAFETY: every buffer that the graph names is alive: `launch` holds them.
                Some(graph) => unsafe { graph.replay() }.map_err(failed("replayed a graph"))?,
                None => (0..count).try_for_each(&mut launch)?,
            }
        }
        block_on(client.sync()).map_err(failed("ran the launches"))
    })
}

/// Times `launch(0) … launch(count − 1)`, queued one after another, and divides by `count`: the device's work where it
/// takes longer than the host's.
///
/// # Errors
/// What `launch` returns, and [`Error::Device`].
pub(crate) fn time_queued(
    client: &Client,
    count: usize,
    mut launch: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    sample(count, |times| {
        (0..times * count).try_for_each(|i| launch(i % count))?;
        let synced = block_on(client.sync());
        synced.map_err(|e| Error::Device { during: "ran the launches", reason: e.to_string() })
    })
}

/// Bytes a second that a kernel reaches which does nothing but read `bytes` bytes, more than the cache holds; fewer
/// where a buffer holds fewer.
///
/// # Errors
/// [`Error::Device`].
pub fn read_rate(client: &Client, bytes: usize) -> Result<f64> {
    let most = client.properties().memory.max_page_size / 16;
    let vectors = bytes.div_ceil(16).min(most as usize);
    let source = client.empty(vectors * 16);
    let sink = client.empty(4);
    let (cubes, units) = (4096, 256);
    let timing = time(client, 4, &sink, |_| {
        // SAFETY: the kernel reads below `vectors` and writes element 0.
        unsafe {
            read::launch_unchecked(
                client,
                CubeCount::Static(cubes, 1, 1),
                CubeDim::new_1d(units),
                BufferArg::from_raw_parts(source.clone(), vectors),
                BufferArg::from_raw_parts(sink.clone(), 1),
            );
        }
        Ok(())
    })?;
    Ok((vectors * 16) as f64 / timing.median)
}

#[cube(launch_unchecked)]
fn read(source: &[Vector<u32, Const<4>>], sink: &mut [u32]) {
    let mut any = Vector::<u32, Const<4>>::new(0u32);
    let stride = CUBE_COUNT * CUBE_DIM as usize;
    let mut i = ABSOLUTE_POS;
    while i + 3 * stride < source.len() {
        any =
            any | source[i] | source[i + stride] | source[i + 2 * stride] | source[i + 3 * stride];
        i += 4 * stride;
    }
    while i < source.len() {
        any |= source[i];
        i += stride;
    }
    // Never true of what the buffer holds in all lanes at once; it keeps the reads.
    if any.extract(0usize) & any.extract(1usize) & any.extract(2usize) & any.extract(3usize)
        == 0x9e37_79b9u32
    {
        sink[0] = 1u32;
    }
}
