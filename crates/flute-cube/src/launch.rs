//! The only way to the device: check everything, then launch, then make sure that it was taken.
//!
//! CubeCL reports a kernel that does not compile only when somebody reads what it should have written. So the first
//! launch of every kernel is followed by a check of its result buffer (no wait for the device); later launches of the
//! same kernel are not, and cost nothing more.

use crate::{Dtype, Error, Format, Limits, PackedWeight, Plan, Problem, Result, kernel, pack};
use cubecl::{prelude::Client, server::Handle};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// The buffers of one product, all on the client's device.
#[derive(Clone, Debug)]
pub struct Operands {
    /// Activations `[m, k]`.
    pub x: Handle,
    /// [`PackedWeight::words`].
    pub words: Handle,
    /// [`PackedWeight::scales`] in the activation type.
    pub scales: Handle,
    /// [`PackedWeight::pairs`] in the activation type.
    pub pairs: Handle,
    /// `[n]` in the activation type; present if and only if the problem says so.
    pub bias: Option<Handle>,
    /// The result `[m, n]`: every element is written.
    pub y: Handle,
}

impl Operands {
    /// Puts `weight` on the device and allocates `y`, for those who keep no tensors of their own.
    pub fn upload(
        client: &Client,
        weight: &PackedWeight,
        x: &[f32],
        bias: Option<&[f32]>,
        dtype: Dtype,
    ) -> Self {
        let create = |values: &[f32]| client.create_from_slice(&dtype.encode(values));
        let m = x.len() / weight.k;
        Self {
            x: create(if x.is_empty() { &[0.0] } else { x }),
            words: client.create_from_slice(bytemuck::cast_slice(&weight.words)),
            scales: create(&weight.scales),
            pairs: create(weight.pairs.as_flattened()),
            bias: bias.map(create),
            y: client.empty((m * weight.n).max(1) * dtype.size()),
        }
    }

    fn validate(&self, problem: &Problem) -> Result<()> {
        let Problem { m, n, k, format, dtype, bias } = *problem;
        if bias != self.bias.is_some() {
            let (found, expected) = (usize::from(self.bias.is_some()), usize::from(bias));
            return Err(Error::WrongLength { what: "the list of bias buffers", found, expected });
        }
        let size = dtype.size();
        let lens = [
            ("the buffer of x (bytes)", Some(&self.x), m * k * size),
            (
                "the buffer of words (bytes)",
                Some(&self.words),
                4 * PackedWeight::words_len(n, k, format),
            ),
            (
                "the buffer of scales (bytes)",
                Some(&self.scales),
                PackedWeight::scales_len(n, k, format) * size,
            ),
            (
                "the buffer of the pair table (bytes)",
                Some(&self.pairs),
                2 * format.bits.pairs() * size,
            ),
            ("the buffer of the bias (bytes)", self.bias.as_ref(), n * size),
            ("the buffer of y (bytes)", Some(&self.y), m * n * size),
        ];
        for (what, handle, expected) in lens {
            match handle.map(|h| h.size_in_used() as usize) {
                Some(found) if found < expected => {
                    return Err(Error::WrongLength { what, found, expected });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Computes `y` with the plan that [`Plan::select`] chooses.
///
/// # Errors
/// What [`qgemm_with`] refuses.
pub fn qgemm(client: &Client, problem: &Problem, operands: Operands) -> Result<()> {
    let plan = Plan::select(problem, &limits(client))?;
    run(client, problem, &plan, operands)
}

/// Computes `y` with `plan`.
///
/// # Errors
/// Invalid operands, a plan that does not fit the problem or the device ([`Plan::validate`]), each before anything is
/// launched; [`Error::Device`] if the device refuses the kernel.
pub fn qgemm_with(
    client: &Client,
    problem: &Problem,
    plan: &Plan,
    operands: Operands,
) -> Result<()> {
    plan.validate(problem, &limits(client))?;
    run(client, problem, plan, operands)
}

/// Writes the decoded weight of `operands`, `[n, k]` in the activation type and each element rounded once, into
/// `dense`: for those who multiply many rows by it. Of `problem`, m plays no part; of `operands`, x, bias and y do not.
///
/// # Errors
/// What [`Problem::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn decode(
    client: &Client,
    problem: &Problem,
    operands: Operands,
    dense: &Handle,
) -> Result<()> {
    let problem = Problem { m: 0, bias: false, ..*problem };
    problem.validate(&limits(client))?;
    Operands { bias: None, ..operands.clone() }.validate(&problem)?;
    let (found, expected) =
        (dense.size_in_used() as usize, problem.n * problem.k * problem.dtype.size());
    if found < expected {
        return Err(Error::WrongLength {
            what: "the buffer of the decoded weight (bytes)",
            found,
            expected,
        });
    }
    kernel::decode::launch(client, &problem, &operands, dense);
    accepted(client, &problem, None, dense)
}

fn run(client: &Client, problem: &Problem, plan: &Plan, operands: Operands) -> Result<()> {
    operands.validate(problem)?;
    if problem.m == 0 {
        return Ok(());
    }
    match plan {
        Plan::Portable(plan) => kernel::portable::launch(client, problem, plan, &operands),
        Plan::Mma(plan) => kernel::mma::launch(client, problem, plan, &operands),
    }
    accepted(client, problem, Some(*plan), &operands.y)
}

/// Whether the runtime took the launch that should write `result`, asked once for each kernel. Without a plan it is
/// the decoder.
fn accepted(client: &Client, problem: &Problem, plan: Option<Plan>, result: &Handle) -> Result<()> {
    /// What kernels are compiled for; of the shape only what chooses the width of loads.
    type Kernel = (DeviceKey, Option<Plan>, Format, Dtype, bool, [bool; 2]);
    static TAKEN: LazyLock<Mutex<HashSet<Kernel>>> = LazyLock::new(Mutex::default);
    if client.is_capturing() {
        return Ok(());
    }
    let Problem { k, format, dtype, bias, .. } = *problem;
    let widths = [2, pack::BLOCK_K].map(|width| k.is_multiple_of(width));
    let kernel = (device_key(client), plan, format, dtype, bias, widths);
    if TAKEN.lock().unwrap_or_else(PoisonError::into_inner).contains(&kernel) {
        return Ok(());
    }
    client.check([result]).map_err(|e| Error::Device {
        during: "compiled or launched the kernel",
        reason: e.to_string(),
    })?;
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel);
    Ok(())
}

/// The limits of `client`'s device, read once.
pub(crate) fn limits(client: &Client) -> Arc<Limits> {
    static KNOWN: LazyLock<Mutex<HashMap<DeviceKey, Arc<Limits>>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(device_key(client)).or_insert_with(|| Arc::new(Limits::of(client))).clone()
}

/// One device of one runtime.
type DeviceKey = (&'static str, u16, u16);

fn device_key(client: &Client) -> DeviceKey {
    let device = client.service_id().device;
    (client.name(), device.type_id, device.index_id)
}
