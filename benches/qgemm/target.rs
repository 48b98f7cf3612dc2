//! A device to measure on: what it calls itself, and how fast it reads.

use anyhow::{Context, Result, anyhow};
use burn::tensor::{DType, Device};
use cubecl::prelude::Client;
use flute_burn::device;
use flute_cube::{Dtype, Limits, measure};
use rayon::prelude::*;
use std::{
    convert::Infallible,
    hint::black_box,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// An opened device.
pub(crate) struct Target {
    /// As Burn knows it.
    pub(crate) device: Device,
    /// As CubeCL knows it, and what it offers; none on the CPU, where Burn's Flex backend computes.
    pub(crate) gpu: Option<(Client, Limits)>,
    /// The runtime: `cuda`, `wgpu<wgsl>`, `flex`, ….
    pub(crate) backend: String,
    /// What the device calls itself.
    pub(crate) identity: String,
    /// Bytes a second that reading alone reaches.
    pub(crate) rate: f64,
}

/// Bytes a second under which a device is no GPU, or a very small one.
const SLOW: f64 = 50e9;

impl Target {
    /// The device that `name` names, opened, and its read rate measured.
    ///
    /// # Errors
    /// If there is none, or it does not open; drivers that panic are devices that do not open.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let (device, client) = caught(|| {
            let device = device::parse(name)?;
            let client = device::client(&device);
            Ok((device, client))
        })?;
        let gpu = client.map(|client| (client.clone(), Limits::of(&client)));
        let (backend, identity, rate) = match &gpu {
            Some((client, limits)) => {
                (limits.runtime.clone(), limits.name.clone(), read_rate(client)?)
            }
            None => {
                let identity = format!("{} threads", rayon::current_num_threads());
                ("flex".into(), identity, host_read_rate())
            }
        };
        Ok(Self { device, gpu, backend, identity, rate })
    }

    /// Whether the shapes of large models would take minutes here.
    pub(crate) fn is_slow(&self) -> bool {
        self.gpu.is_none() || self.rate < SLOW
    }

    /// Gives back the memory of what was dropped: another shape needs other sizes.
    ///
    /// # Errors
    /// If the device is lost.
    pub(crate) fn release(&self) -> Result<()> {
        Ok(self.gpu.as_ref().map_or(Ok(()), |(client, _)| client.memory_cleanup())?)
    }

    /// The index of the device among CUDA's, if it is one.
    pub(crate) fn cuda_index(&self) -> Option<usize> {
        device::name(&self.device).strip_prefix("cuda:")?.parse().ok()
    }
}

/// What `run` returns; a panic in it, which is how bindings and backends report a library or memory that is missing,
/// becomes an error.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Err(anyhow!("{}", text.unwrap_or("it panicked")))
    })
}

/// `dtype` as Burn names it.
pub(crate) fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
    }
}

/// Of a gigabyte, which no cache holds; a software device would take half a minute for that, and gets less.
fn read_rate(client: &Client) -> Result<f64> {
    let measure = |bytes: usize| {
        measure::read_rate(client, bytes).context("its read rate cannot be measured")
    };
    let rate = measure(64 << 20)?;
    if rate < SLOW { Ok(rate) } else { measure(1 << 30) }
}

fn host_read_rate() -> f64 {
    let source = vec![1u64; (256 << 20) / 8];
    let read = |times: usize| {
        for _ in 0..times {
            black_box(source.par_chunks(1 << 16).map(|part| part.iter().sum::<u64>()).sum::<u64>());
        }
        Ok::<_, Infallible>(())
    };
    let Ok(timing) = measure::sample(1, read);
    (source.len() * 8) as f64 / timing.median
}
