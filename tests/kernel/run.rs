//! Runs cases on a device: every plan twice, each into a poisoned result, and everything read back at once.

use crate::{
    case::{Case, Input, Weight, activations},
    device::{Guarded, Runtime},
    oracle::Oracle,
};
use flute_cube::{Dtype, Operands, PackedWeight, Plan, qgemm_with};
use rayon::prelude::*;
use std::collections::HashMap;

/// A case and the plans that it runs with.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) case: Case,
    pub(crate) plans: Vec<Plan>,
}

/// What outlives a case: the weight on the device with its right results, and activations, which only depend on k.
pub(crate) struct Bench<'a> {
    runtime: &'a Runtime,
    /// How often each plan is launched: 2 to compare the bits.
    repeats: usize,
    loaded: Option<Loaded>,
    x: HashMap<(Input, usize, usize, Dtype), Guarded>,
    pub(crate) launches: usize,
}

struct Loaded {
    key: (Weight, Dtype, Input),
    oracle: Oracle,
    /// Words, scales, pairs and bias, with the bytes that they held at first.
    inputs: [(Guarded, Vec<u8>); 4],
}

impl<'a> Bench<'a> {
    pub(crate) fn new(runtime: &'a Runtime, repeats: usize) -> Self {
        Self { runtime, repeats, loaded: None, x: HashMap::new(), launches: 0 }
    }

    /// Runs `work`; `rows` is the largest m that its weight will meet.
    pub(crate) fn run(&mut self, work: &Work, rows: usize) -> Vec<String> {
        let Work { case, plans } = work;
        let mut failures = self.load(case, rows);
        let failed = |plan: &Plan, what: String| {
            format!("{case}, {plan}, seed {:#x}: {what}", case.weight.seed())
        };
        let len = case.m * case.weight.n * case.dtype.size();
        let x = self.activations(case);
        let client = &self.runtime.client;
        let loaded = self.loaded.as_ref().expect("just loaded");
        let target = loaded.oracle.target(case);
        let [words, scales, pairs, bias] =
            loaded.inputs.each_ref().map(|(guarded, _)| guarded.inner());

        // An identity has no sums whose order could vary.
        let repeats = if case.input == Input::Identity { 1 } else { self.repeats };
        let mut results: Vec<(&Plan, Guarded)> = vec![];
        for plan in plans {
            for _ in 0..repeats {
                let y = Guarded::poisoned(client, len);
                let operands = Operands {
                    x: x.inner(),
                    words: words.clone(),
                    scales: scales.clone(),
                    pairs: pairs.clone(),
                    bias: case.bias.then(|| bias.clone()),
                    y: y.inner(),
                };
                self.launches += 1;
                match qgemm_with(client, &case.problem(), plan, operands) {
                    Ok(()) => results.push((plan, y)),
                    Err(e) => {
                        failures.push(failed(plan, e.to_string()));
                        break;
                    }
                }
            }
        }
        let bytes = match client.read(results.iter().map(|(_, y)| y.outer()).collect()) {
            Ok(bytes) => bytes,
            Err(e) => {
                failures.push(failed(&plans[0], format!("or another plan: reading failed: {e}")));
                return failures;
            }
        };
        let results: Vec<_> = results.into_iter().zip(bytes).collect();
        let of_a_plan: Vec<_> = results.chunk_by(|a, b| a.0.0 == b.0.0).collect();
        failures.par_extend(of_a_plan.into_par_iter().filter_map(|results| {
            let plan = results[0].0.0;
            let contents: Result<Vec<&[u8]>, String> =
                results.iter().map(|((_, y), bytes)| y.content(bytes)).collect();
            let verdict = contents.and_then(|contents| {
                if contents.iter().any(|content| *content != contents[0]) {
                    return Err("two launches gave different bits".into());
                }
                let y = case.dtype.decode(contents[0]);
                match plan.rounds_weights() {
                    true => target.check_decoded(&y),
                    false => target.check(&y),
                }
            });
            verdict.err().map(|what| failed(plan, what))
        }));
        failures
    }

    /// Whether all inputs that still lie on the device are what they were.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        let mut failures = self.unload();
        for ((input, m, k, dtype), x) in self.x.drain() {
            let held = dtype.encode(&activations(input, m, k, dtype));
            let what = match self.runtime.client.read_one(x.outer()) {
                Ok(bytes) if !differs(&x, &bytes, &held) => continue,
                Ok(_) => format!("x [{m}, {k}] of {dtype}, {input:?}, was overwritten"),
                Err(e) => format!("reading x back failed: {e}"),
            };
            failures.push(what);
        }
        failures
    }

    fn unload(&mut self) -> Vec<String> {
        let Some(Loaded { key, inputs, .. }) = self.loaded.take() else { return vec![] };
        match self.runtime.client.read(inputs.iter().map(|(input, _)| input.outer()).collect()) {
            Err(e) => vec![format!("reading {key:?} back failed: {e}")],
            Ok(bytes) => {
                let changed = inputs
                    .iter()
                    .zip(&bytes)
                    .any(|((input, held), bytes)| differs(input, bytes, held));
                if changed { vec![format!("{key:?} was overwritten")] } else { vec![] }
            }
        }
    }

    fn load(&mut self, case: &Case, rows: usize) -> Vec<String> {
        let key = (case.weight, case.dtype, case.input);
        if self.loaded.as_ref().is_some_and(|loaded| loaded.key == key) {
            return vec![];
        }
        let failures = self.unload();
        let oracle = Oracle::new(case, rows);
        let packed = PackedWeight::pack(&oracle.weight);
        let bytes = [
            packed.words.iter().flat_map(|word| word.to_le_bytes()).collect(),
            case.dtype.encode(&packed.scales),
            case.dtype.encode(packed.pairs.as_flattened()),
            case.dtype.encode(oracle.bias()),
        ];
        let inputs = bytes.map(|bytes| (Guarded::new(&self.runtime.client, &bytes), bytes));
        self.loaded = Some(Loaded { key, oracle, inputs });
        failures
    }

    fn activations(&mut self, case: &Case) -> Guarded {
        let Case { input, m, dtype, weight: Weight { k, .. }, .. } = *case;
        let upload =
            || Guarded::new(&self.runtime.client, &dtype.encode(&activations(input, m, k, dtype)));
        self.x.entry((input, m, k, dtype)).or_insert_with(upload).clone()
    }
}

fn differs(guarded: &Guarded, outer: &[u8], expected: &[u8]) -> bool {
    !guarded.content(outer).is_ok_and(|content| content == expected)
}
