//! What a quantized product is compared with: the same product of an f16 weight, by the libraries that one would use
//! instead. A library that is absent, or that fails, is reported and costs its column, never the run.

mod cublas;
mod matmul;

use crate::target::{Target, caught};
use anyhow::{Result, bail};
use cublas::Cublas;
use flute_cube::{
    Dtype,
    measure::{COLD_BYTES, Noise, Run, Samples},
};
use matmul::Matmul;
use std::{thread::sleep, time::Duration};

/// Seconds of one dense product, by each library that was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DenseSeconds {
    pub(crate) cublas: Option<f64>,
    pub(crate) burn: Option<f64>,
}

/// The libraries that a target has.
pub(crate) struct Dense<'t> {
    target: &'t Target,
    cublas: Option<Cublas>,
    burn: bool,
}

/// Among how many copies of a weight of `bytes` bytes launches go around, so that no cache holds all of them.
pub(crate) fn copies(bytes: usize) -> usize {
    COLD_BYTES.div_ceil(bytes).clamp(2, 200)
}

/// A weight `[n, k]` of noise and activations for it; launches go around among `copies` of the weight.
#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    k: usize,
    copies: usize,
}

impl Shape {
    fn new(n: usize, k: usize) -> Self {
        Self { n, k, copies: copies(n * k * Dtype::F16.size()) }
    }

    fn weight(&self) -> Vec<u8> {
        Noise::new(2, Dtype::F16).bytes(self.n * self.k)
    }

    fn x(&self, m: usize) -> Vec<u8> {
        Noise::new(3, Dtype::F16).bytes(m * self.k)
    }

    fn samples(&self, m: usize) -> Samples {
        let (w, x) = (Noise::new(2, Dtype::F16), Noise::new(3, Dtype::F16));
        let k = self.k;
        Samples::new([m, self.n], Dtype::F16, |token| x.row(token, k), |row| w.row(row, k))
    }
}

/// The weights of one shape in the libraries of a target.
pub(crate) struct DenseWeights<'d> {
    cublas: Option<cublas::Weight<'d>>,
    burn: Option<Matmul>,
}

impl<'t> Dense<'t> {
    /// Opens what `target` has; Burn's own product is measured if `burn` asks for it.
    pub(crate) fn open(target: &'t Target, burn: bool) -> Self {
        let cublas = target.cuda_index().map(|index| caught(|| Cublas::open(index)));
        Self { target, cublas: cublas.and_then(|cublas| reported("cuBLAS", cublas)), burn }
    }

    /// Uploads weights `[n, k]`.
    pub(crate) fn weights(&self, n: usize, k: usize) -> DenseWeights<'_> {
        let shape = Shape::new(n, k);
        let cublas = self.cublas.as_ref().map(|cublas| caught(|| cublas.weight(shape)));
        let burn = self.burn.then(|| caught(|| Matmul::new(&self.target.device, shape)));
        DenseWeights {
            cublas: cublas.and_then(|weight| reported("cuBLAS", weight)),
            burn: burn.and_then(|weight| reported("Burn", weight)),
        }
    }
}

impl DenseWeights<'_> {
    /// Times the product with `m` rows of activations, after a pause for each library.
    pub(crate) fn time(&self, m: usize, pause: Duration) -> DenseSeconds {
        let timed = |who: &str, time: &dyn Fn() -> Result<Run>| {
            sleep(pause);
            let seconds = caught(time).and_then(|run| match run.is_right() {
                true => Ok(run.timing.median),
                false => bail!("its result is wrong: {:.1} times what is allowed", run.deviation),
            });
            reported(who, seconds)
        };
        DenseSeconds {
            cublas: self.cublas.as_ref().and_then(|w| timed("cuBLAS", &|| w.time(m))),
            burn: self.burn.as_ref().and_then(|w| timed("Burn", &|| w.time(m))),
        }
    }
}

/// Says why a figure is missing.
fn reported<T>(who: &str, result: Result<T>) -> Option<T> {
    result.inspect_err(|error| eprintln!("note: dense f16 by {who} is left out: {error:#}")).ok()
}
