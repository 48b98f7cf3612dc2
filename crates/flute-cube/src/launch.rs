//! The only way to the device: check everything, then launch, then make sure that it was taken.
//!
//! CubeCL reports a kernel that does not compile only when somebody reads what it should have written. So the first
//! launch of every kernel is followed by a check of its result buffer (no wait for the device); later launches of the
//! same kernel are not, and cost nothing more.

use crate::{
    Activation, Dtype, Error, Format, Gate, Limits, PackedWeight, Plan, Problem, Result, dense,
    gate, kernel, pack, tune,
};
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
    /// The result `[m, n]`, or `[m, n/2]` of a gate: every element is written.
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

    pub(crate) fn validate(&self, problem: &Problem) -> Result<()> {
        let Problem { m, n, k, format, dtype, bias, .. } = *problem;
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
            ("the buffer of y (bytes)", Some(&self.y), m * problem.columns() * size),
        ];
        for (what, buffer, expected) in lens {
            if let Some(buffer) = buffer {
                measured(&[(what, buffer, expected)])?;
            }
        }
        Ok(())
    }
}

/// Refuses words and scales that copies of 16 bytes cannot reach.
fn aligned(operands: &Operands) -> Result<()> {
    const NEEDED: usize = 16;
    let buffers =
        [("the buffer of words", &operands.words), ("the buffer of scales", &operands.scales)];
    for (what, buffer) in buffers {
        let found = buffer.offset_start.unwrap_or(0) as usize;
        if !found.is_multiple_of(NEEDED) {
            return Err(Error::Misaligned { what, found, needed: NEEDED });
        }
    }
    Ok(())
}

/// Refuses a buffer of fewer bytes than it must have: its name, itself, and those bytes.
pub(crate) fn measured(buffers: &[(&'static str, &Handle, usize)]) -> Result<()> {
    for (what, buffer, expected) in buffers {
        let found = buffer.size_in_used() as usize;
        if found < *expected {
            return Err(Error::WrongLength { what, found, expected: *expected });
        }
    }
    Ok(())
}

/// Computes `y` with the plan that [`tune::plan`] names: the selected one, unless another was measured to be faster.
///
/// # Errors
/// What [`qgemm_with`] refuses.
pub fn qgemm(client: &Client, problem: &Problem, operands: Operands) -> Result<()> {
    let plan = tune::plan(client, problem)?;
    run(client, problem, &plan, operands)
}

/// Computes `y` with `plan`.
///
/// # Errors
/// Invalid operands, those that begin where the plan's loads cannot ([`Error::Misaligned`]), a plan that does not fit
/// the problem or the device ([`Plan::validate`]), each before anything is launched; [`Error::Device`] if the device refuses the kernel.
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
/// `dense`: for those who multiply many rows by it. Of `problem`, m and gate play no part; of `operands`, x, bias and y do not.
///
/// # Errors
/// What [`Problem::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn decode(
    client: &Client,
    problem: &Problem,
    operands: Operands,
    dense: &Handle,
) -> Result<()> {
    let problem = Problem { m: 0, bias: false, gate: None, ..*problem };
    problem.validate(&limits(client))?;
    Operands { bias: None, ..operands.clone() }.validate(&problem)?;
    let expected = problem.n * problem.k * problem.dtype.size();
    measured(&[("the buffer of the decoded weight (bytes)", dense, expected)])?;
    kernel::decode::launch(client, &problem, &operands, dense);
    accepted(client, Kernel::of(&problem, None), dense)
}

fn run(client: &Client, problem: &Problem, plan: &Plan, operands: Operands) -> Result<()> {
    operands.validate(problem)?;
    if problem.m == 0 {
        return Ok(());
    }
    if let Some(activation) = problem.gate.filter(|_| !plan.gates()) {
        return run_then_gate(client, problem, activation, plan, operands);
    }
    match plan {
        Plan::Portable(plan) => kernel::portable::launch(client, problem, plan, &operands),
        Plan::Cooperative(plan) => kernel::cooperative::launch(client, problem, plan, &operands),
        Plan::Mma(plan) => {
            aligned(&operands)?;
            kernel::mma::launch(client, problem, plan, &operands)
        }
        Plan::Stream(plan) => {
            aligned(&operands)?;
            kernel::stream::launch(client, problem, plan, &operands)
        }
        Plan::Dense(plan) => dense::launch(client, problem, plan, &operands)?,
    }
    accepted(client, Kernel::of(problem, Some(*plan)), &operands.y)
}

/// The product by a plan that does not gate, and a gate behind it: a turn of gate and up is a row to it.
fn run_then_gate(
    client: &Client,
    problem: &Problem,
    activation: Activation,
    plan: &Plan,
    operands: Operands,
) -> Result<()> {
    let product = Problem { gate: None, ..*problem };
    let Problem { m, n, dtype, .. } = product;
    let both = client.empty(m * n * dtype.size());
    let y = operands.y.clone();
    run(client, &product, plan, Operands { y: both.clone(), ..operands })?;
    let rows = m * n / pack::BLOCK_ROWS;
    gate(client, &Gate { rows, len: pack::TURN, activation, dtype }, &both, &y)
}

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    /// A product, or without a plan the decoder; of the shape only what chooses the width of loads.
    Weight {
        plan: Option<Plan>,
        format: Format,
        dtype: Dtype,
        bias: bool,
        gate: Option<Activation>,
        widths: [bool; 2],
    },
    /// Rows looked up.
    Rows(Format, Dtype),
    /// A rotation.
    Hadamard(kernel::hadamard::Form, Dtype),
    /// A gate.
    Gate(kernel::gate::Form),
    /// Few rows times a dense weight.
    Gemv(kernel::gemv::Form),
    /// A norm, with or without a residual.
    Norm(kernel::norm::Form),
    /// A rotary embedding.
    Rotate(kernel::rotate::Form),
    /// Attention over a cache in one launch.
    Attend(kernel::attend::cluster::Form),
    /// Attention over chunks of a cache.
    Partial(kernel::attend::Form),
    /// Those chunks into one.
    Fold(kernel::attend::Form),
    /// The best of shares of logits.
    Best(kernel::choose::Form),
    /// The best of those.
    Choose(kernel::choose::Form),
    /// Attention of several tokens.
    Prompt(kernel::prompt::Form),
}

impl Kernel {
    fn of(problem: &Problem, plan: Option<Plan>) -> Self {
        let Problem { k, format, dtype, bias, gate, .. } = *problem;
        let widths = [2, pack::BLOCK_K].map(|width| k.is_multiple_of(width));
        Self::Weight { plan, format, dtype, bias, gate, widths }
    }
}

/// Whether the runtime took the launch of `kernel` that should write `result`, asked once for each kernel.
pub(crate) fn accepted(client: &Client, kernel: Kernel, result: &Handle) -> Result<()> {
    static TAKEN: LazyLock<Mutex<HashSet<(DeviceKey, Kernel)>>> = LazyLock::new(Mutex::default);
    if client.is_capturing() {
        return Ok(());
    }
    let kernel = (device_key(client), kernel);
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
pub(crate) type DeviceKey = (&'static str, u16, u16);

pub(crate) fn device_key(client: &Client) -> DeviceKey {
    let device = client.service_id().device;
    (client.name(), device.type_id, device.index_id)
}
