//! Products that gate: every plan that may be chosen, and those that divide k, against f64.

use crate::{
    case::{Input, Weight, activations, bias, identity_column},
    device::{Guarded, Runtime, runtimes},
    gate::exact,
    oracle::{least, unit},
};
use flute_cube::{
    Activation, Bits, Dtype, Error, Format, Group, MmaPlan, Operands, PackedWeight, Plan, Problem,
    Quantized, StreamPlan, TableKind, qgemm, qgemm_with, reference,
};

const ROWS: [usize; 7] = [1, 7, 8, 9, 33, 129, 300];
/// (n, k): one tile, less than a block of k, tiles that no cube's share divides, more of them than a GPU has cubes for, and
/// enough of k that planes and cubes divide it.
const SHAPES: [(usize, usize); 5] = [(16, 128), (48, 96), (176, 320), (4240, 128), (80, 1536)];

/// A product and the numbers that its result is compared with.
struct Subject {
    problem: Problem,
    weight: Quantized,
    input: Input,
    x: Vec<f32>,
    bias: Vec<f32>,
    /// What gate and up are before the gate, `[m, n]`.
    sums: Vec<f64>,
}

impl Subject {
    fn new(problem: Problem, input: Input) -> Self {
        let Problem { m, n, k, format, dtype, .. } = problem;
        let weight = Weight { format, table: TableKind::Custom, n, k, exact: false };
        let weight = reference::rounded(&weight.quantized(), dtype).expect("cases fit every type");
        let (x, bias) = (activations(input, m, k, dtype), bias(n, dtype, false));
        let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let sums = match input {
            // Each is one weight, which is exact in f32; there is no bias.
            Input::Identity => {
                let dense = weight.dequantize();
                let at = |i: usize| (i % n) * k + identity_column(i / n, m, k);
                (0..m * n).map(|i| f64::from(dense[at(i)])).collect()
            }
            _ => reference::qgemm(&wide, &weight, problem.bias.then_some(&bias)),
        };
        Self { problem, weight, input, x, bias, sums }
    }

    /// `y` `[m, n/2]` of `plan` within what its roundings explain.
    fn check(&self, plan: &Plan, y: &[f32]) -> Result<(), String> {
        let Problem { m, n, k, dtype, gate, .. } = self.problem;
        let activation = gate.expect("a gate");
        let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let xs: Vec<f64> = self.x.chunks(k).map(norm).collect();
        let ws: Vec<f64> = self.weight.dequantize().chunks(k).map(norm).collect();
        let sums = (160 + k / 64) as f64 * f64::from(f32::EPSILON);
        // How far from it gate or up may be.
        let off = |row: usize, col: usize| {
            let exact = self.sums[row * n + col];
            let lost = match (self.input, plan.rounds_weights()) {
                (Input::Identity, false) => f64::from(f32::EPSILON) * exact.abs(),
                (Input::Identity, true) => unit(dtype) * exact.abs() + least(dtype),
                (_, rounds) => (sums + if rounds { unit(dtype) } else { 0.0 }) * xs[row] * ws[col],
            };
            match plan.gates() {
                true => lost,
                false => lost + unit(dtype) * exact.abs() + least(dtype),
            }
        };
        let mut wrong = vec![];
        for (at, found) in y.iter().enumerate() {
            let (row, col) = (at / (n / 2), at % (n / 2));
            let col = col / 8 * 16 + col % 8;
            let (value, up) = (self.sums[row * n + col], self.sums[row * n + col + 8]);
            let right = exact(activation, value) * up;
            let (of_value, of_up) = (off(row, col), off(row, col + 8));
            // Neither function is steeper than 1.13.
            let carried =
                1.13 * of_value * (up.abs() + of_up) + exact(activation, value).abs() * of_up;
            let f32s = 2e-5 * (value * up).abs() + 1e-6 * right.abs();
            let bound = carried + f32s + 1.01 * unit(dtype) * right.abs() + least(dtype);
            let error = (f64::from(*found) - right).abs();
            if error.partial_cmp(&bound).is_none_or(|order| order.is_gt()) {
                wrong.push(format!(
                    "\n    y[{row}, {}] = {found:e}, expected {right:e} ± {bound:.1e}",
                    at % (n / 2)
                ));
            }
        }
        match (wrong.len(), y.len() == m * n / 2) {
            (0, true) => Ok(()),
            (count, _) => {
                wrong.truncate(8);
                Err(format!("{count} of {} elements are wrong:{}", y.len(), wrong.concat()))
            }
        }
    }

    fn upload(&self, runtime: &Runtime) -> Operands {
        let Problem { dtype, bias, .. } = self.problem;
        let packed = PackedWeight::pack(&self.weight);
        let bias = bias.then_some(self.bias.as_slice());
        Operands::upload(&runtime.client, &packed, &self.x, bias, dtype)
    }

    fn len(&self) -> usize {
        self.problem.m * self.problem.columns() * self.problem.dtype.size()
    }

    /// Runs every plan twice, and says what was wrong.
    fn run(&self, runtime: &Runtime, plans: &[Plan]) -> Vec<String> {
        let (operands, client) = (self.upload(runtime), &runtime.client);
        let verdict = |plan: &Plan| -> Result<(), String> {
            let mut bits: Option<Vec<u8>> = None;
            for _ in 0..2 {
                let y = Guarded::poisoned(client, self.len());
                let operands = Operands { y: y.inner(), ..operands.clone() };
                qgemm_with(client, &self.problem, plan, operands).map_err(|e| e.to_string())?;
                let outer = client.read_one(y.outer()).map_err(|e| format!("{e:?}"))?;
                let found = y.content(&outer)?.to_vec();
                match bits.replace(found.clone()) {
                    None => self.check(plan, &self.problem.dtype.decode(&found))?,
                    Some(bits) if bits == found => {}
                    Some(_) => return Err("two launches gave different bits".into()),
                }
            }
            Ok(())
        };
        let story = |plan: &Plan| {
            let what = verdict(plan).err()?;
            Some(format!("{}: {:?}, {plan}: {what}", runtime.name, self.problem))
        };
        plans.iter().filter_map(story).collect()
    }
}

/// The candidates, of those that do not gate one of a kind, and what divides k: through memory, in a cluster, between
/// warpgroups.
fn plans(problem: &Problem, runtime: &Runtime) -> Vec<Plan> {
    let limits = &runtime.limits;
    let mut plans: Vec<Plan> = vec![];
    for plan in Plan::candidates(problem, limits).expect("a valid problem") {
        let kind = std::mem::discriminant(&plan);
        let first = plans.iter().all(|other| std::mem::discriminant(other) != kind);
        if first || plan.gates() || !limits.mma {
            plans.push(plan);
        }
        let divided = match plan {
            Plan::Mma(plan) if first => [false, true].map(|cluster| {
                let divided = MmaPlan { split: 2, cluster, held: 0, ..plan };
                Plan::Mma(divided.fitting(problem, limits))
            }),
            Plan::Stream(plan) if first => {
                let few = StreamPlan { warpgroups: 1, tiles: plan.tiles.min(4), stages: 3, ..plan };
                [(2, 1), (1, 2)].map(|(warpgroups_k, split)| {
                    Plan::Stream(StreamPlan { warpgroups_k, split, ..few })
                })
            }
            _ => continue,
        };
        let served = |plan: &Plan| plan.validate(problem, limits).is_ok() && !plans.contains(plan);
        let divided: Vec<Plan> = divided.into_iter().filter(served).collect();
        plans.extend(divided);
    }
    plans
}

/// Every format, type, function and bias, dealt over `at`.
fn problem(runtime: &Runtime, at: usize, m: usize, (n, k): (usize, usize)) -> Problem {
    let groups = [Group::Size(32), Group::Size(128), Group::Whole, Group::Size(64)];
    let format = Format { bits: Bits::ALL[at % 3], group: groups[at % 4] };
    let dtype = runtime.limits.dtypes[at % runtime.limits.dtypes.len()];
    let gate = Some([Activation::Silu, Activation::GeluTanh][at / 2 % 2]);
    Problem { m, n, k, format, dtype, bias: at / 3 % 2 == 1, gate }
}

#[test]
fn every_plan_gates_its_sums_within_the_bound_of_its_roundings() {
    for runtime in runtimes() {
        let mut failures = vec![];
        // Every number of rows with one shape, and every shape with the fewest; all of them on a whole matrix.
        let whole = std::env::var("FLUTE_MATRIX").is_ok_and(|matrix| matrix != "quick");
        let cases = SHAPES.iter().enumerate().flat_map(|(shape, _)| {
            let rows = ROWS.into_iter().enumerate();
            rows.filter(move |(row, _)| whole || *row == 0 || row % 5 == shape)
                .map(move |(row, m)| (7 * shape + row, m, SHAPES[shape]))
        });
        for (at, m, shape) in cases {
            let problem = problem(runtime, at, m, shape);
            let plans = plans(&problem, runtime);
            failures.extend(Subject::new(problem, Input::Random).run(runtime, &plans));
        }
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    }
}

#[test]
fn rows_of_an_identity_are_gated_weights() {
    for runtime in runtimes() {
        let mut failures = vec![];
        for (at, m) in [1, 9, 64, 128].into_iter().enumerate() {
            let problem = Problem { bias: false, ..problem(runtime, at, m, (176, 128)) };
            let plans = plans(&problem, runtime);
            failures.extend(Subject::new(problem, Input::Identity).run(runtime, &plans));
        }
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    }
}

#[test]
fn a_result_that_begins_between_words_has_the_same_bits() {
    for runtime in runtimes().iter().filter(|runtime| runtime.limits.mma) {
        let client = &runtime.client;
        for m in [1, 9, 64] {
            let problem = Problem { dtype: Dtype::F16, ..problem(runtime, m, m, (176, 320)) };
            let subject = Subject::new(problem, Input::Random);
            let (operands, len) = (subject.upload(runtime), subject.len());
            let plan = Plan::select(&problem, &runtime.limits).expect("a valid problem");
            let run = |skipped: usize| {
                let outer = client.create_from_slice(&vec![0xff; len + 4]);
                let y = outer.offset_start(skipped as u64).offset_end((4 - skipped) as u64);
                let operands = Operands { y: y.clone(), ..operands.clone() };
                qgemm_with(client, &problem, &plan, operands).expect("launched");
                client.read_one(y).expect("read").to_vec()
            };
            assert!(run(0) == run(2), "{plan}");
        }
    }
}

#[test]
fn gates_of_rows_that_are_no_whole_turns_are_refused_before_anything_is_launched() {
    for runtime in runtimes() {
        let problem = problem(runtime, 0, 3, (32, 96));
        let subject = Subject::new(problem, Input::Random);
        let operands = subject.upload(runtime);
        let ask = |problem: &Problem, operands| qgemm(&runtime.client, problem, operands);
        assert_eq!(ask(&problem, operands.clone()), Ok(()));
        assert_eq!(ask(&Problem { m: 0, ..problem }, operands.clone()), Ok(()));
        for n in [8, 24, 31] {
            let broken = ask(&Problem { n, ..problem }, operands.clone());
            assert_eq!(broken, Err(Error::InvalidGate { found: n, needed: 16 }));
        }
        let size = problem.dtype.size();
        let y = runtime.client.empty(3 * 16 * size);
        let short = y.clone().offset_end(size as u64);
        assert_eq!(ask(&problem, Operands { y, ..operands.clone() }), Ok(()));
        let (what, expected) = ("the buffer of y (bytes)", 3 * 16 * size);
        assert_eq!(
            ask(&problem, Operands { y: short, ..operands.clone() }),
            Err(Error::WrongLength { what, found: expected - size, expected })
        );
        let ungated = Problem { gate: None, ..problem };
        assert_eq!(ask(&ungated, operands), Ok(()), "the upload had room for a product");
    }
}
