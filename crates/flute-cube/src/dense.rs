//! Many rows of x: the weight decoded once into the activation type, then the vendor's dense product.
//!
//! From some hundred rows on, a product is bound by arithmetic, and nothing beats the vendor's kernels at it by what
//! decoding costs: half a byte in and two bytes out for each weight, once. Only CUDA has such a library here
//! ([`cublas`]); what has none is refused by the plan.

#[cfg(feature = "cuda")]
mod cublas;

use crate::{DensePlan, Error, Operands, PackedWeight, Problem, Result, kernel, pack};
use cubecl::{prelude::Client, server::Handle};

/// Whether `client`'s device has a dense library that works on the client's buffers.
pub(crate) fn is_available(client: &Client) -> bool {
    #[cfg(feature = "cuda")]
    return cublas::is_available(client);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = client;
        false
    }
}

/// One dense product `y[m, ..] = x[m, k] · wᵀ` into some of the columns of y.
struct Product<'a> {
    /// `m` rows of x, `n` columns of this part of y.
    m: usize,
    n: usize,
    k: usize,
    bf16: bool,
    x: &'a Handle,
    w: &'a Handle,
    y: &'a Handle,
    /// Elements of a whole row of y, and the first of this part.
    row: usize,
    first: usize,
    /// Whether y holds what is added to.
    add: bool,
}

/// Computes `y` by `plan`, of checked operands.
///
/// # Errors
/// [`Error::UnsupportedPlan`] inside a graph capture; [`Error::Device`].
pub(crate) fn launch(
    client: &Client,
    problem: &Problem,
    plan: &DensePlan,
    operands: &Operands,
) -> Result<()> {
    if client.is_capturing() {
        return Err(Error::UnsupportedPlan {
            what: "dense products outside graph captures",
            needed: 1,
            offered: 0,
            device: client.properties().identity.name.clone(),
        });
    }
    let Problem { m, n, k, dtype, bias, .. } = *problem;
    if let (true, Some(values)) = (bias, &operands.bias) {
        kernel::dense::spread(client, problem, values, &operands.y);
    }
    let rows = plan.rows(problem);
    for first in (0..n).step_by(rows) {
        let part = Problem { n: rows.min(n - first), ..*problem };
        let w = client.empty(part.n * k * dtype.size());
        kernel::decode::launch(client, &part, &rows_from(operands, problem, first), &w);
        product(
            client,
            &Product {
                m,
                n: part.n,
                k,
                bf16: dtype == crate::Dtype::BF16,
                x: &operands.x,
                w: &w,
                y: &operands.y,
                row: n,
                first,
                add: bias,
            },
        )?;
    }
    Ok(())
}

/// The weight from row `first` on: whole tiles lie one after another.
fn rows_from(operands: &Operands, problem: &Problem, first: usize) -> Operands {
    let Problem { k, format, dtype, .. } = *problem;
    let tiles = first / pack::BLOCK_ROWS;
    let tile = |len: fn(usize, usize, crate::Format) -> usize| len(pack::BLOCK_ROWS, k, format);
    let words = 4 * tiles * tile(PackedWeight::words_len);
    let scales = dtype.size() * tiles * tile(PackedWeight::scales_len);
    let from = |handle: &Handle, bytes: usize| handle.clone().offset_start(bytes as u64);
    Operands {
        words: from(&operands.words, words),
        scales: from(&operands.scales, scales),
        ..operands.clone()
    }
}

#[cfg(feature = "cuda")]
fn product(client: &Client, product: &Product<'_>) -> Result<()> {
    cublas::product(client, product)
}

#[cfg(not(feature = "cuda"))]
fn product(client: &Client, _product: &Product<'_>) -> Result<()> {
    Err(Error::UnsupportedPlan {
        what: "dense library",
        needed: 1,
        offered: 0,
        device: client.properties().identity.name.clone(),
    })
}
