//! The same product over and over, and from several threads at once: the same bits, and no memory that stays.

use crate::{
    case::{Input, Weight, activations},
    device::{Runtime, runtimes},
};
use cubecl::{MemoryScope, MemoryUsage, server::Handle};
use flute_cube::{Bits, Dtype, Format, Group, Operands, PackedWeight, Problem, TableKind, qgemm};

/// Enough of k that cubes or planes split it, and a bias.
fn problems(runtime: &Runtime) -> Vec<Problem> {
    let dtype = if runtime.limits.mma { Dtype::F16 } else { Dtype::F32 };
    let problem = |(bits, m)| {
        let format = Format { bits, group: Group::Size(64) };
        Problem { m, n: 80, k: 1536, format, dtype, bias: true, gate: None }
    };
    [(Bits::Four, 1), (Bits::Three, 5), (Bits::Two, 16), (Bits::Four, 33)].map(problem).to_vec()
}

fn upload(runtime: &Runtime, problem: &Problem) -> Operands {
    let Problem { m, n, k, format, dtype, .. } = *problem;
    let weight = Weight { format, table: TableKind::Nf, n, k, exact: false };
    let packed = PackedWeight::pack(&weight.quantized());
    let x = activations(Input::Random, m, k, dtype);
    let bias = crate::case::bias(n, dtype, false);
    Operands::upload(&runtime.client, &packed, &x, Some(&bias), dtype)
}

/// The result of `operands`, in a buffer of its own that held ones before.
fn run(runtime: &Runtime, problem: &Problem, operands: &Operands) -> Vec<u8> {
    let y: Handle =
        runtime.client.create_from_slice(&vec![0xff; problem.m * problem.n * problem.dtype.size()]);
    let operands = Operands { y: y.clone(), ..operands.clone() };
    qgemm(&runtime.client, problem, operands).expect("launched");
    runtime.client.read_one(y).expect("read").to_vec()
}

#[test]
fn a_thousand_launches_give_the_same_bits_and_keep_no_memory() {
    for runtime in runtimes() {
        for problem in problems(runtime) {
            let operands = upload(runtime, &problem);
            let first = run(runtime, &problem, &operands);
            let usage = || -> MemoryUsage {
                runtime.client.memory_report(MemoryScope::CurrentStream).usage()
            };
            // Pools find their sizes in the first rounds.
            for i in 0..100 {
                assert!(run(runtime, &problem, &operands) == first, "{problem:?}: launch {i}");
            }
            let before = usage();
            for i in 100..1000 {
                assert!(run(runtime, &problem, &operands) == first, "{problem:?}: launch {i}");
            }
            let after = usage();
            println!("{}: {problem:?}: {} bytes in use", runtime.name, after.bytes_in_use);
            assert!(after.bytes_in_use <= before.bytes_in_use, "{before:?}, then {after:?}");
            assert!(after.bytes_reserved <= before.bytes_reserved, "{before:?}, then {after:?}");
        }
    }
}

#[test]
fn threads_with_streams_of_their_own_share_weights() {
    for runtime in runtimes() {
        for problem in problems(runtime) {
            let operands = upload(runtime, &problem);
            // Each thread has rows of its own, so that one's result in another's place shows.
            let rows = |thread: usize| {
                let x = activations(Input::Random, problem.m + thread, problem.k, problem.dtype);
                let x = problem.dtype.encode(&x[thread * problem.k..]);
                Operands { x: runtime.client.create_from_slice(&x), ..operands.clone() }
            };
            let threads: Vec<Operands> = (0..4).map(rows).collect();
            let expected: Vec<Vec<u8>> =
                threads.iter().map(|operands| run(runtime, &problem, operands)).collect();
            assert_ne!(expected[0], expected[1]);
            std::thread::scope(|scope| {
                for (operands, expected) in threads.iter().zip(&expected) {
                    scope.spawn(|| {
                        for i in 0..50 {
                            let found = run(runtime, &problem, operands);
                            assert!(found == *expected, "{problem:?}: launch {i}");
                        }
                    });
                }
            });
        }
    }
}
