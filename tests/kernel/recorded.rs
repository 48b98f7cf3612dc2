//! Layers recorded and replayed: a kernel of a recording may begin while the one before it ends, and still reads what that
//! one wrote.

use crate::{
    case::{Input, Weight, activations},
    device::{Runtime, alone, poison_words, runtimes},
};
use cubecl::server::Handle;
use flute_cube::{
    Activation, Attend, Bits, CACHE_BLOCK, Dtype, Format, Group, NextBuffers, Norm, NormBuffers,
    Operands, PackedWeight, Plan, Problem, Residual, TableKind, attend_next, norm, qgemm_with,
};

const WIDTH: usize = 512;
const QUERY_HEADS: usize = 8;
const KEY_HEADS: usize = 2;
const DIM: usize = 64;
const INNER: usize = 1024;
/// Positions before the token.
const BEFORE: usize = 150;
const LAYERS: usize = 4;
const REPLAYS: usize = 20;

/// What layers share, and the buffers that each of them writes anew.
struct Chain<'a> {
    runtime: &'a Runtime,
    problems: [Problem; 4],
    weights: Vec<Operands>,
    norm: Norm,
    attend: Attend,
    next: Vec<NextBuffers>,
    gain: Handle,
    input: Handle,
    streams: [Handle; 2],
    normed: Handle,
    gated: Handle,
    branch: Handle,
}

impl<'a> Chain<'a> {
    fn new(runtime: &'a Runtime, m: usize) -> Self {
        let (client, limits) = (&runtime.client, &runtime.limits);
        let dtype = if limits.mma { Dtype::F16 } else { Dtype::F32 };
        let format = Format { bits: Bits::Four, group: Group::Size(128) };
        let (heads, qkv) = (QUERY_HEADS * DIM, (QUERY_HEADS + 2 * KEY_HEADS) * DIM);
        let problem = |n, k, gate| Problem { m, n, k, format, dtype, bias: false, gate };
        let problems = [
            problem(qkv, WIDTH, None),
            problem(WIDTH, heads, None),
            problem(2 * INNER, WIDTH, Some(Activation::Silu)),
            problem(WIDTH, INNER, None),
        ];
        let weights = problems.iter().map(|problem| {
            let Problem { n, k, .. } = *problem;
            let weight = Weight { format, table: TableKind::Nf, n, k, exact: false };
            let packed = PackedWeight::pack(&weight.quantized());
            // So that a product of numbers around one has such numbers, and four layers do not leave f16.
            let scales = packed.scales.iter().map(|scale| scale / (k as f32).sqrt()).collect();
            Operands::upload(client, &PackedWeight { scales, ..packed }, &[], None, dtype)
        });
        let (capacity, entries) = (4 * CACHE_BLOCK, 4);
        let attend = Attend {
            batch: m,
            tokens: 1,
            query_heads: QUERY_HEADS,
            key_heads: KEY_HEADS,
            dim: DIM,
            capacity,
            blocks: m * entries,
            scale: (DIM as f64).powf(-0.5),
            cap: None,
            window: None,
            dtype,
        };
        let values = |len: usize| {
            client.create_from_slice(&dtype.encode(&activations(Input::Random, 1, len, dtype)))
        };
        let empty = |len: usize| client.empty(len * dtype.size());
        let floats = |value: f32, len: usize| {
            client.create_from_slice(bytemuck::cast_slice(&vec![value; len]))
        };
        let integers = |all: Vec<i32>| client.create_from_slice(bytemuck::cast_slice(&all));
        let table = integers((0..attend.blocks as i32).collect());
        let start = integers((0..m).map(|i| (BEFORE - i % 100) as i32).collect());
        let (cos, sin) = (floats(0.8, capacity * DIM / 2), floats(0.6, capacity * DIM / 2));
        let (rows, attended) = (empty(m * qkv), empty(m * heads));
        let cache = attend.blocks * KEY_HEADS * CACHE_BLOCK * DIM;
        let next = |layer| NextBuffers {
            qkv: rows.clone(),
            cos: cos.clone(),
            sin: sin.clone(),
            start: start.clone(),
            table: table.clone(),
            keys: values(cache + layer).offset_end((layer * dtype.size()) as u64),
            values: values(cache + layer + 9).offset_end(((layer + 9) * dtype.size()) as u64),
            y: attended.clone(),
        };
        Self {
            runtime,
            weights: weights.collect(),
            problems,
            norm: Norm { rows: m, len: WIDTH, epsilon: 1e-5, offset: 0.0, dtype, out: dtype },
            next: (0..LAYERS).map(next).collect(),
            attend,
            gain: floats(1.0, WIDTH),
            input: values(m * WIDTH),
            streams: [empty(m * WIDTH), empty(m * WIDTH)],
            normed: empty(m * WIDTH),
            gated: empty(m * INNER),
            branch: empty(m * WIDTH),
        }
    }

    /// What the chain writes, but for caches, which get the same every time.
    fn written(&self) -> [&Handle; 7] {
        let [even, odd] = &self.streams;
        let NextBuffers { qkv, y, .. } = &self.next[0];
        [even, odd, &self.normed, qkv, y, &self.gated, &self.branch]
    }

    fn normalize(&self, x: &Handle, branch: &Handle, sum: &Handle) {
        let residual =
            Residual { branch: branch.clone(), dtype: self.norm.dtype, sum: sum.clone() };
        let (x, gain, y) = (x.clone(), self.gain.clone(), self.normed.clone());
        let buffers = NormBuffers { x, gain, y, residual: Some(residual) };
        norm(&self.runtime.client, &self.norm, &buffers).expect("a norm");
    }

    fn multiply(&self, which: usize, plans: &[Plan; 4], x: &Handle, y: &Handle) {
        let operands = Operands { x: x.clone(), y: y.clone(), ..self.weights[which].clone() };
        let (client, problem) = (&self.runtime.client, &self.problems[which]);
        qgemm_with(client, problem, &plans[which], operands).expect("a product");
    }

    fn launch(&self, plans: &[Plan; 4]) {
        let [even, odd] = &self.streams;
        for (layer, next) in self.next.iter().enumerate() {
            match layer {
                0 => self.normalize(&self.input, &self.input, odd),
                _ => self.normalize(even, &self.branch, odd),
            }
            self.multiply(0, plans, &self.normed, &next.qkv);
            attend_next(&self.runtime.client, &self.attend, next).expect("attention");
            self.multiply(1, plans, &next.y, &self.branch);
            self.normalize(odd, &self.branch, even);
            self.multiply(2, plans, &self.normed, &self.gated);
            self.multiply(3, plans, &self.gated, &self.branch);
        }
    }

    fn poison(&self) {
        for buffer in self.written() {
            poison_words(&self.runtime.client, buffer);
        }
    }

    /// What the last layer left.
    fn left(&self) -> [Vec<u8>; 2] {
        let read = |handle: &Handle| self.runtime.client.read_one(handle.clone()).expect("read");
        [read(&self.streams[0]).to_vec(), read(&self.branch).to_vec()]
    }
}

fn check(m: usize) {
    for runtime in runtimes() {
        let chain = Chain::new(runtime, m);
        let candidates = chain.problems.map(|problem| {
            let plans = Plan::candidates(&problem, &runtime.limits).expect("plans");
            // A dense product is no part of a recording.
            plans.into_iter().filter(|plan| !matches!(plan, Plan::Dense(_))).collect::<Vec<_>>()
        });
        let rounds = candidates.iter().map(Vec::len).max().unwrap_or(0);
        for round in 0..rounds {
            let plans = [0, 1, 2, 3].map(|i: usize| candidates[i][round % candidates[i].len()]);
            let client = &runtime.client;
            if client.graph_prepare().is_err() {
                println!("{}: no recordings", runtime.name);
                break;
            }
            chain.poison();
            chain.launch(&plans);
            let expected = chain.left();
            for values in &expected {
                let values = chain.norm.dtype.decode(values);
                assert!(values.iter().all(|value| value.is_finite()), "{m} rows: {plans:?}");
            }
            client.start_capture().expect("a capture");
            chain.launch(&plans);
            let graph = client.stop_capture().expect("a recording");
            for replay in 0..REPLAYS {
                chain.poison();
                // SAFETY: the chain holds every buffer.
                unsafe { graph.replay() }.expect("a replay");
                assert!(chain.left() == expected, "{m} rows, replay {replay}: {plans:?}");
            }
        }
        println!("{}: {m} rows: {rounds} rounds of plans", runtime.name);
    }
}

macro_rules! recorded {
    ($($name:ident: $m:literal,)*) => {$(
        #[test]
        fn $name() {
            if alone(concat!("recorded::", stringify!($name))) {
                check($m);
            }
        }
    )*};
}

recorded! {
    layers_of_one_row_give_the_same_bits_recorded_as_launched: 1,
    layers_of_eight_rows_give_the_same_bits_recorded_as_launched: 8,
    layers_of_sixteen_rows_give_the_same_bits_recorded_as_launched: 16,
    layers_of_a_hundred_rows_give_the_same_bits_recorded_as_launched: 100,
}
