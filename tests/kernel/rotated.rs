//! Products that rotate x themselves against the rotation before them.

use crate::{
    case::{Weight, bias},
    device::{Runtime, runtimes},
};
use flute_cube::{
    Bits, Format, Group, Hadamard, MmaPlan, Operands, PackedWeight, Plan, Problem, TableKind,
    hadamard, qgemm_rotated, qgemm_with, rotating,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Whole numbers whose sums f32 holds and whose norm, for blocks of powers of four, is a power of two: rotated in any
/// order they round to the same halves.
fn whole_numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-9i32..10) as f32).collect()
}

/// Operands of `problem`, and its x rotated.
fn upload(runtime: &Runtime, problem: &Problem, block: usize) -> (Operands, Operands) {
    let Problem { m, n, k, format, dtype, .. } = *problem;
    let weight = Weight { format, table: TableKind::Nf, n, k, exact: false };
    let packed = PackedWeight::pack(&weight.quantized());
    let x = whole_numbers(m * k, (m * k) as u64);
    let bias = bias(n, dtype, false);
    let plain = Operands::upload(&runtime.client, &packed, &x, Some(&bias), dtype);
    let rotated = runtime.client.empty(m * k * dtype.size());
    let blocks = Hadamard { rows: m * k / block, block, dtype };
    hadamard(&runtime.client, &blocks, &plain.x, &rotated).expect("rotated");
    (plain.clone(), Operands { x: rotated, ..plain })
}

/// The bytes of y after `launch`, which held ones before.
fn result(
    runtime: &Runtime,
    problem: &Problem,
    operands: &Operands,
    launch: impl FnOnce(Operands) -> flute_cube::Result<()>,
) -> Vec<u8> {
    let len = problem.m * problem.n * problem.dtype.size();
    let y = runtime.client.create_from_slice(&vec![0xff; len]);
    launch(Operands { y: y.clone(), ..operands.clone() }).expect("launched");
    runtime.client.read_one(y).expect("read").to_vec()
}

fn problems(runtime: &Runtime) -> Vec<(Problem, usize)> {
    let mut problems = vec![];
    for &dtype in &runtime.limits.dtypes {
        for (bits, m, n, k, block) in [
            (Bits::Four, 1, 80, 4096, 256),
            (Bits::Three, 1, 2112, 4096, 1024),
            (Bits::Two, 2, 80, 2048, 64),
            (Bits::Four, 3, 200, 1024, 16),
            (Bits::Four, 5, 200, 1536, 256),
            (Bits::Three, 16, 64, 3072, 1024),
            (Bits::Four, 1, 4096, 14336, 1024),
        ] {
            let format = Format { bits, group: Group::Size(64) };
            problems.push((Problem { m, n, k, format, dtype, bias: true }, block));
        }
    }
    problems
}

#[test]
fn a_product_that_rotates_gives_the_bits_of_a_rotation_before_it() {
    for runtime in runtimes() {
        let mut checked = 0;
        for (problem, block) in problems(runtime) {
            let (plain, rotated) = upload(runtime, &problem, block);
            for plan in Plan::candidates(&problem, &runtime.limits).expect("served") {
                let Plan::Mma(own) = plan else { continue };
                let rotating = Plan::Mma(MmaPlan { rotated: block as u32, ..own });
                if rotating.validate(&problem, &runtime.limits).is_err() {
                    continue;
                }
                let run = |plan: Plan, operands: &Operands| {
                    let launch = |o| qgemm_with(&runtime.client, &problem, &plan, o);
                    result(runtime, &problem, operands, launch)
                };
                let (found, expected) = (run(rotating, &plain), run(plan, &rotated));
                assert!(found == expected, "{}: {problem:?}, {rotating}", runtime.name);
                checked += 1;
            }
        }
        println!("{}: {checked} plans rotate as the kernel does", runtime.name);
        assert!(checked > 0 || !runtime.limits.mma, "{}", runtime.name);
    }
}

#[test]
fn a_rotated_product_is_the_same_in_one_launch_or_two() {
    for runtime in runtimes() {
        for (problem, block) in problems(runtime) {
            let (plain, rotated) = upload(runtime, &problem, block);
            let one = rotating(&runtime.client, &problem, block).expect("served");
            println!(
                "{}: {problem:?}: {}",
                runtime.name,
                if one.is_some() { "one" } else { "two" }
            );
            let launch = |o| qgemm_rotated(&runtime.client, &problem, block, o);
            let found = result(runtime, &problem, &plain, launch);
            let launch = |o| flute_cube::qgemm(&runtime.client, &problem, o);
            assert!(found == result(runtime, &problem, &rotated, launch), "{problem:?}");
        }
    }
}
