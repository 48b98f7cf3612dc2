//! A layer of a model as it decodes: `--layer 4096x32x8x128x14336 --m 1,16` for the width, query heads, heads of keys,
//! features of a head and the width of the MLP; `m` sequences, each with [`CONTEXT`] positions behind it.
//!
//! Norms, products and attention one after another in a replayed graph, where each begins while the one before it ends:
//! a product alone says little of that. The first line has the planner's plans. With `--selected` those below it say how
//! much less it takes without each of its launches, and what a dense head takes; else each product in turn takes every plan
//! that serves it while the others keep theirs, and keeps the fastest.

use crate::Options;
use cubecl::{prelude::*, server::Handle};
use flute_cube::{
    Activation, Attend, CACHE_BLOCK, Dtype, Format, Gemv, Limits, NextBuffers, Norm, NormBuffers,
    Operands, Plan, Problem, Residual, Result, attend_next, gemv,
    measure::{self, Workload},
    norm, qgemm_with,
};

const CONTEXT: usize = 1024;
/// Layers of a graph: those of one and the next replay share no cache.
const LAYERS: usize = 8;

/// Rows of the head: LLaMA-3's.
const VOCABULARY: usize = 128_256;

/// What a layer launches, one after another.
const LAUNCHES: [&str; 7] = ["norm", "q|k|v", "attention", "output", "norm", "gate|up", "down"];

/// The products of a layer, and what each is called.
const PRODUCTS: [&str; 4] = ["q|k|v", "output", "gate|up", "down"];

struct Layer {
    client: Client,
    problems: [Problem; 4],
    weights: Vec<Workload>,
    norm: Norm,
    attend: Attend,
    next: Vec<NextBuffers>,
    gain: Handle,
    /// The residual stream, before and behind a norm.
    streams: [Handle; 2],
    normed: Handle,
    attended: Handle,
    gated: Handle,
    branch: Handle,
}

impl Layer {
    fn new(
        client: &Client,
        dims: [usize; 5],
        m: usize,
        format: Format,
        dtype: Dtype,
    ) -> Result<Self> {
        let [width, query_heads, key_heads, dim, inner] = dims;
        let (heads, qkv) = (query_heads * dim, (query_heads + 2 * key_heads) * dim);
        let problem = |n, k, gate| Problem { m, n, k, format, dtype, bias: false, gate };
        let problems = [
            problem(qkv, width, None),
            problem(width, heads, None),
            problem(2 * inner, width, Some(Activation::Silu)),
            problem(width, inner, None),
        ];
        let weights = problems.iter().map(|p| Workload::new(client, p)).collect::<Result<_>>()?;
        let capacity = CONTEXT + CACHE_BLOCK;
        let entries = capacity.div_ceil(CACHE_BLOCK);
        let attend = Attend {
            batch: m,
            tokens: 1,
            query_heads,
            key_heads,
            dim,
            capacity,
            blocks: m * entries,
            scale: (dim as f64).powf(-0.5),
            cap: None,
            window: None,
            dtype,
        };
        let noise =
            |len: usize| client.create_from_slice(&measure::Noise::new(3, dtype).bytes(len));
        let cache = attend.blocks * key_heads * CACHE_BLOCK * dim;
        let start = client.create_from_slice(bytemuck::cast_slice(&vec![CONTEXT as i32; m]));
        let table: Vec<i32> = (0..attend.blocks as i32).collect();
        let table = client.create_from_slice(bytemuck::cast_slice(&table));
        let rotations =
            client.create_from_slice(bytemuck::cast_slice(&vec![0.5f32; capacity * dim / 2]));
        let (rows, y) = (noise(m * qkv), noise(m * heads));
        let next = |_| NextBuffers {
            qkv: rows.clone(),
            cos: rotations.clone(),
            sin: rotations.clone(),
            start: start.clone(),
            table: table.clone(),
            keys: client.empty(cache * dtype.size()),
            values: client.empty(cache * dtype.size()),
            y: y.clone(),
        };
        Ok(Self {
            client: client.clone(),
            problems,
            weights,
            norm: Norm { rows: m, len: width, epsilon: 1e-5, offset: 0.0, dtype, out: dtype },
            next: (0..LAYERS).map(next).collect(),
            attend,
            gain: client.create_from_slice(bytemuck::cast_slice(&vec![1.0f32; width])),
            streams: [noise(m * width), noise(m * width)],
            normed: noise(m * width),
            attended: y,
            gated: noise(m * inner),
            branch: noise(m * width),
        })
    }

    fn multiply(
        &self,
        which: usize,
        copy: usize,
        plan: &Plan,
        x: &Handle,
        y: &Handle,
    ) -> Result<()> {
        let operands = Operands { x: x.clone(), ..self.weights[which].operands(copy, y) };
        qgemm_with(&self.client, &self.problems[which], plan, operands)
    }

    fn normalize(&self, [from, to]: [&Handle; 2]) -> Result<()> {
        let residual =
            Residual { branch: self.branch.clone(), dtype: self.norm.dtype, sum: to.clone() };
        let (x, gain, y) = (from.clone(), self.gain.clone(), self.normed.clone());
        norm(&self.client, &self.norm, &NormBuffers { x, gain, y, residual: Some(residual) })
    }

    /// Seconds of a dense head of [`VOCABULARY`] behind a norm.
    fn time_head(&self) -> Result<f64> {
        let Norm { rows: m, len: k, dtype, .. } = self.norm;
        let problem = Gemv { m, n: VOCABULARY, k, stride: k, dtype };
        let weight = self.client.empty(VOCABULARY * k * dtype.size());
        let logits = self.client.empty(m * VOCABULARY * dtype.size());
        let [even, odd] = &self.streams;
        let launch = |_| {
            self.normalize([even, odd])?;
            gemv(&self.client, &problem, [&self.normed, &weight, &logits])
        };
        Ok(measure::time(&self.client, 2, &logits, launch)?.median)
    }

    /// Seconds of a layer, but for the launch `without`.
    fn time(&self, plans: &[Plan; 4], without: Option<usize>) -> Result<f64> {
        let [even, odd] = &self.streams;
        let launch = |i: usize| {
            let next = &self.next[i];
            (0..LAUNCHES.len()).filter(|launch| Some(*launch) != without).try_for_each(|launch| {
                match launch {
                    0 => self.normalize([even, odd]),
                    1 => self.multiply(0, i, &plans[0], &self.normed, &next.qkv),
                    2 => attend_next(&self.client, &self.attend, next),
                    3 => self.multiply(1, i, &plans[1], &self.attended, &self.branch),
                    4 => self.normalize([odd, even]),
                    5 => self.multiply(2, i, &plans[2], &self.normed, &self.gated),
                    _ => self.multiply(3, i, &plans[3], &self.gated, &self.branch),
                }
            })
        };
        Ok(measure::time(&self.client, LAYERS, &self.branch, launch)?.median)
    }
}

/// Times a layer of `dims` for `m` sequences, with the plans that `options` want.
pub(crate) fn time(
    client: &Client,
    dims: [usize; 5],
    m: usize,
    format: Format,
    options: &Options,
) -> Result<()> {
    let dtype = options.dtype;
    let limits = Limits::of(client);
    let layer = Layer::new(client, dims, m, format, dtype)?;
    let mut plans = [Plan::select(&layer.problems[0], &limits)?; 4];
    for (plan, problem) in plans.iter_mut().zip(&layer.problems) {
        *plan = Plan::select(problem, &limits)?;
    }
    let mut best = layer.time(&plans, None)?;
    println!("layer {dims:?}, m={m} {format} {dtype}: {:.2} µs", best * 1e6);
    if options.selected {
        for (launch, name) in LAUNCHES.iter().enumerate() {
            let without = layer.time(&plans, Some(launch))?;
            println!("  {:>8.2} µs  {name}", (best - without) * 1e6);
        }
        println!(" head {VOCABULARY}×{}: {:.2} µs", dims[0], layer.time_head()? * 1e6);
        return Ok(());
    }
    for (which, name) in PRODUCTS.iter().enumerate() {
        let problem = &layer.problems[which];
        let mut rows = vec![];
        let chosen = plans[which];
        let all = options.plans(problem, &limits)?;
        for plan in all.iter().filter(|plan| plan.gates() && options.wants(plan)) {
            let mut others = plans;
            others[which] = *plan;
            match layer.time(&others, None) {
                Ok(seconds) => rows.push((seconds, *plan)),
                Err(error) => println!("{plan}: {error}"),
            }
        }
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((seconds, plan)) = rows.first().filter(|row| row.0 < best) {
            (best, plans[which]) = (*seconds, *plan);
        }
        println!(" {name} {}×{}", problem.n, problem.k);
        for (i, (seconds, plan)) in rows.iter().enumerate() {
            if i < 5 || *plan == chosen {
                let star = if *plan == chosen { " *" } else { "" };
                println!("  {:>8.2} µs  {plan}{star}", seconds * 1e6);
            }
        }
    }
    println!(" together {:.2} µs", best * 1e6);
    Ok(())
}
