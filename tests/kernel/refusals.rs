//! What is refused, and with which error: before anything is allocated or launched.

use crate::device::{Guarded, Runtime, runtimes};
use cubecl::prelude::Client;
use flute_cube::{
    Bits, Dtype, Error, Format, Group, Limits, MAX_DIM, MmaPlan, Operands, PackedWeight, Plan,
    PortablePlan, Problem, Quantized, QuantizedParts, StreamPlan, Table, TableKind, pack, qgemm,
    qgemm_with, reference,
};

fn parts() -> QuantizedParts {
    let format = Format::new(4, 32).expect("served");
    let table = Table::nf(format.bits);
    QuantizedParts { n: 3, k: 40, format, codes: vec![7; 120], scales: vec![1.0; 6], table }
}

fn problem() -> Problem {
    let format = Format::new(4, 32).expect("served");
    Problem { m: 2, n: 3, k: 40, format, dtype: Dtype::F32, bias: false, gate: None }
}

fn operands(client: &Client, x: &[f32], bias: Option<&[f32]>) -> Operands {
    let weight = Quantized::new(parts()).expect("valid");
    Operands::upload(client, &PackedWeight::pack(&weight), x, bias, Dtype::F32)
}

/// Limits of a device that has next to nothing.
fn small() -> Limits {
    let mut limits = Limits::nvidia("a small device", 4, 2);
    limits.runtime = "wgpu".into();
    limits.mma = false;
    limits.cooperative = vec![];
    limits.cube_units = 128;
    limits.dtypes = vec![Dtype::F32];
    limits
}

const PLAN: PortablePlan =
    PortablePlan { planes: 4, tokens: 4, copies: 1, rounds: 1, tiles: 1, wide: false };

#[test]
fn formats_that_no_kernel_reads_are_refused() {
    for bits in [0, 1, 5, 8, 255] {
        assert_eq!(Bits::new(bits), Err(Error::InvalidBits { found: bits.into() }));
    }
    for group in [0, 1, 16, 96, 512] {
        assert_eq!(Group::new(group), Err(Error::InvalidGroup { found: group }));
    }
    assert_eq!(Format::new(5, 128), Err(Error::InvalidBits { found: 5 }));
    assert_eq!(Format::new(4, 100), Err(Error::InvalidGroup { found: 100 }));
}

#[test]
fn tables_of_wrong_length_or_without_finite_values_are_refused() {
    let short = Table::custom(Bits::Two, &[0.0, 1.0, 2.0]);
    assert_eq!(short, Err(Error::WrongLength { what: "the table", found: 3, expected: 4 }));
    let short = Table::pairs(Bits::Two, &[[0.0; 2]; 15]);
    assert_eq!(short, Err(Error::WrongLength { what: "the table", found: 30, expected: 32 }));
    let endless = Table::custom(Bits::Two, &[0.0, 1.0, f32::INFINITY, 2.0]);
    assert_eq!(
        endless,
        Err(Error::NotFinite { what: "the table", index: 2, value: f32::INFINITY })
    );
    let nan = Table::custom(Bits::Two, &[0.0, f32::NAN, 1.0, 2.0]);
    assert!(
        matches!(nan, Err(Error::NotFinite { what: "the table", index: 1, value }) if value.is_nan())
    );
    assert!(matches!(
        Table::named(TableKind::Custom, Bits::Four),
        Err(Error::WrongLength { found: 0, .. })
    ));
    assert!(matches!(
        Table::named(TableKind::Pairs, Bits::Four),
        Err(Error::WrongLength { found: 0, .. })
    ));
    assert_eq!("nf5".parse::<TableKind>(), Err(Error::UnknownTable { found: "nf5".into() }));
}

#[test]
fn a_weight_that_contradicts_itself_is_refused() {
    let refused = |parts: QuantizedParts| Quantized::new(parts).expect_err("refused");
    let codes = refused(QuantizedParts { codes: vec![0; 119], ..parts() });
    assert_eq!(codes, Error::WrongLength { what: "the code matrix", found: 119, expected: 120 });
    let scales = refused(QuantizedParts { scales: vec![1.0; 5], ..parts() });
    assert_eq!(scales, Error::WrongLength { what: "the scale matrix", found: 5, expected: 6 });
    let table = refused(QuantizedParts { table: Table::nf(Bits::Three), ..parts() });
    assert_eq!(table, Error::BitsMismatch { table: Bits::Three, format: Bits::Four });
    let empty = refused(QuantizedParts { n: 0, ..parts() });
    assert_eq!(empty, Error::OutOfRange { what: "n", found: 0, min: 1, max: MAX_DIM });
    let wide = refused(QuantizedParts { k: MAX_DIM + 1, ..parts() });
    assert_eq!(wide, Error::OutOfRange { what: "k", found: MAX_DIM + 1, min: 1, max: MAX_DIM });

    let mut codes = vec![0; 120];
    codes[33] = 16;
    let code = refused(QuantizedParts { codes, ..parts() });
    assert_eq!(code, Error::CodeOutOfRange { index: 33, code: 16, entries: 16 });
    let nan =
        refused(QuantizedParts { scales: vec![1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0], ..parts() });
    assert!(
        matches!(nan, Error::NotFinite { what: "the scale matrix", index: 2, value } if value.is_nan())
    );
}

#[test]
fn a_scale_that_a_narrower_type_cannot_hold_is_refused() {
    let weight =
        Quantized::new(QuantizedParts { scales: vec![1e6; 6], ..parts() }).expect("fits f32");
    let overflow = Error::NotFinite { what: "the scale matrix", index: 0, value: f32::INFINITY };
    assert_eq!(reference::rounded(&weight, Dtype::F16), Err(overflow));
    assert!(reference::rounded(&weight, Dtype::BF16).is_ok());
}

#[test]
fn corrupt_packed_codes_are_refused() {
    let short = pack::from_canonical(&[0; 3], 2, 3, 4);
    let what = "the canonical code matrix (bytes)";
    assert_eq!(short, Err(Error::WrongLength { what, found: 3, expected: 4 }));
    let dirty = pack::from_canonical(&[0x21, 0x03, 0x21, 0x13], 2, 3, 4);
    assert_eq!(dirty, Err(Error::DirtyPadding { row: 1 }));
}

#[test]
fn a_problem_that_cannot_be_addressed_is_refused() {
    let limits = Limits::nvidia("H200", 132, 227);
    let refused = |problem: Problem| Plan::select(&problem, &limits).expect_err("refused");
    assert_eq!(
        refused(Problem { n: 0, ..problem() }),
        Error::OutOfRange { what: "n", found: 0, min: 1, max: MAX_DIM }
    );
    let huge = Problem { m: 1 << 20, k: 1 << 14, ..problem() };
    let max = u32::MAX as usize;
    assert_eq!(refused(huge), Error::OutOfRange { what: "m·k", found: 1 << 34, min: 0, max });
    assert!(Plan::candidates(&huge, &limits).is_err());
}

#[test]
fn a_type_that_the_device_lacks_is_refused_with_one_that_it_has() {
    let error =
        Plan::select(&Problem { dtype: Dtype::F16, ..problem() }, &small()).expect_err("refused");
    let device = "a small device".to_string();
    assert_eq!(
        error,
        Error::UnsupportedDtype { dtype: Dtype::F16, device: device.clone(), instead: Dtype::F32 }
    );
    assert!(error.is_unsupported() && !error.is_device());
    assert_eq!(
        error.to_string(),
        "f16 is not available on a small device; use f32 activations there"
    );
}

#[test]
fn a_plan_beyond_the_device_is_refused_and_select_finds_one_within() {
    let (limits, problem) = (small(), problem());
    let refused = |plan| Plan::Portable(plan).validate(&problem, &limits).expect_err("refused");
    let device = || "a small device".to_string();
    assert_eq!(
        refused(PortablePlan { planes: 8, ..PLAN }),
        Error::UnsupportedPlan {
            what: "units a cube",
            needed: 256,
            offered: 128,
            device: device()
        }
    );
    assert_eq!(
        refused(PLAN),
        Error::UnsupportedPlan {
            what: "bytes of shared memory",
            needed: 2048 + 8192 + 4096,
            offered: 2048,
            device: device()
        }
    );
    let roomy = Limits { shared_bytes: 16 << 10, ..small() };
    for plan in Plan::candidates(&problem, &roomy).expect("a valid problem") {
        plan.validate(&problem, &roomy)
            .unwrap_or_else(|e| panic!("the candidate {plan} is refused: {e}"));
    }
}

#[test]
fn a_plan_that_no_kernel_follows_is_refused() {
    let limits = Limits::nvidia("H200", 132, 227);
    let plans = [
        PortablePlan { planes: 0, ..PLAN },
        PortablePlan { planes: 9, ..PLAN },
        PortablePlan { tokens: 3, ..PLAN },
        PortablePlan { copies: 3, ..PLAN },
        PortablePlan { copies: 64, ..PLAN },
        PortablePlan { rounds: 0, ..PLAN },
        PortablePlan { rounds: 3, ..PLAN },
        PortablePlan { rounds: 32, ..PLAN },
        PortablePlan { tiles: 0, ..PLAN },
        PortablePlan { tiles: 2, ..PLAN },
        PortablePlan { tiles: 3, tokens: 1, ..PLAN },
    ];
    for plan in plans {
        let error = Plan::Portable(plan).validate(&problem(), &limits);
        assert!(matches!(error, Err(Error::InvalidPlan { .. })), "{plan}: {error:?}");
    }
}

#[test]
fn tensor_core_plans_are_refused_where_there_are_no_tensor_cores() {
    let limits = Limits::nvidia("H200", 132, 227);
    let problem = Problem { dtype: Dtype::F16, k: 4096, ..problem() };
    let plan = Plan::select(&problem, &limits).expect("a valid problem");
    assert!(matches!(plan, Plan::Mma(_)), "{plan}");
    let without = Limits { mma: false, ..limits.clone() };
    assert!(plan.validate(&problem, &without).expect_err("refused").is_unsupported());
    let f32 = plan.validate(&Problem { dtype: Dtype::F32, ..problem }, &limits);
    assert!(matches!(f32, Err(Error::InvalidPlan { .. })), "{f32:?}");
}

#[test]
fn bulk_copies_are_refused_before_hopper() {
    let limits = Limits::nvidia("A100", 108, 163);
    let problem = Problem { dtype: Dtype::F16, k: 4096, ..problem() };
    let Ok(Plan::Mma(plan)) = Plan::select(&problem, &limits) else { panic!("no tensor cores") };
    assert!(!plan.bulk, "{plan}");
    let refused = Plan::Mma(MmaPlan { bulk: true, ..plan }).validate(&problem, &limits);
    let (what, device) = ("bulk copies", "A100".to_string());
    assert_eq!(refused, Err(Error::UnsupportedPlan { what, needed: 1, offered: 0, device }));
}

#[test]
fn buffers_that_are_too_short_are_refused_by_name() {
    each_runtime(|runtime| {
        let client = &runtime.client;
        let whole = operands(client, &[1.0; 80], None);
        let short = client.empty(8);
        let Problem { n, k, format, .. } = problem();
        let scales = PackedWeight::scales_len(n, k, format);
        let refused = |operands| qgemm(client, &problem(), operands).expect_err("refused");
        let cases = [
            (Operands { x: short.clone(), ..whole.clone() }, "the buffer of x (bytes)", 320),
            (
                Operands { words: short.clone(), ..whole.clone() },
                "the buffer of words (bytes)",
                1024,
            ),
            (
                Operands { scales: short.clone(), ..whole.clone() },
                "the buffer of scales (bytes)",
                4 * scales,
            ),
            (
                Operands { pairs: short.clone(), ..whole.clone() },
                "the buffer of the pair table (bytes)",
                2048,
            ),
            (Operands { y: short.clone(), ..whole.clone() }, "the buffer of y (bytes)", 24),
        ];
        for (operands, what, expected) in cases {
            assert_eq!(refused(operands), Error::WrongLength { what, found: 8, expected });
        }
        let what = "the list of bias buffers";
        let surplus = Operands { bias: Some(short), ..whole };
        assert_eq!(refused(surplus), Error::WrongLength { what, found: 1, expected: 0 });
    });
}

#[test]
fn a_plan_beyond_the_device_is_not_launched() {
    each_runtime(|runtime| {
        let problem = Problem { dtype: Dtype::F32, ..problem() };
        let y = Guarded::poisoned(&runtime.client, 24);
        let operands = Operands { y: y.inner(), ..operands(&runtime.client, &[1.0; 80], None) };
        let plan = Plan::Portable(PortablePlan { planes: 9, ..PLAN });
        assert!(qgemm_with(&runtime.client, &problem, &plan, operands).is_err());
        let outer =
            runtime.client.read_one(y.outer()).expect("nothing was launched that could fail");
        assert!(y.content(&outer).expect("whole guards").iter().all(|byte| *byte == 0xff));
    });
}

#[test]
fn words_that_copies_of_16_bytes_cannot_reach_are_refused_and_so_is_a_device_without_them() {
    each_runtime(|runtime| {
        let Runtime { client, limits, .. } = runtime;
        let problem = Problem { dtype: Dtype::F16, ..problem() };
        let weight = PackedWeight::pack(&Quantized::new(parts()).expect("valid"));
        let words = client.create_from_slice(&vec![0; 4 * weight.words.len() + 8]).offset_start(8);
        let whole = Operands::upload(client, &weight, &[1.0; 80], None, Dtype::F16);
        let stream = Plan::Stream(StreamPlan {
            warpgroups: 1,
            warpgroups_k: 1,
            tiles: 1,
            tokens: 8,
            blocks: 1,
            stages: 4,
            split: 1,
        });
        let mma =
            Plan::select(&problem, &Limits::nvidia("A100", 108, 163)).expect("a valid problem");
        assert!(matches!(mma, Plan::Mma(_)), "{mma}");
        for (plan, offered) in [(stream, limits.wgmma), (mma, limits.mma)] {
            let operands = Operands { words: words.clone(), ..whole.clone() };
            let error = qgemm_with(client, &problem, &plan, operands).expect_err("refused");
            if offered {
                let what = "the buffer of words";
                assert_eq!(error, Error::Misaligned { what, found: 8, needed: 16 });
            } else {
                assert!(error.is_unsupported(), "{error}");
            }
        }
    });
}

#[test]
fn no_rows_ask_for_nothing_and_get_it() {
    each_runtime(|runtime| {
        let client = &runtime.client;
        let operands = operands(client, &[], None);
        let before = client.read_one(operands.y.clone()).expect("readable");
        qgemm(client, &Problem { m: 0, ..problem() }, operands.clone()).expect("nothing to do");
        assert_eq!(client.read_one(operands.y).expect("readable"), before);
    });
}

#[test]
fn a_nan_in_one_row_of_x_stays_in_that_row() {
    each_runtime(|runtime| {
        let mut x = [1.0; 80];
        x[45] = f32::NAN;
        let operands = operands(&runtime.client, &x, Some(&[0.5; 3]));
        qgemm(&runtime.client, &Problem { bias: true, ..problem() }, operands.clone())
            .expect("launched");
        let y = Dtype::F32.decode(&runtime.client.read_one(operands.y).expect("readable"));
        assert!(y[..3].iter().all(|v| v.is_finite()) && y[3..].iter().all(|v| v.is_nan()), "{y:?}");
    });
}

fn each_runtime(test: impl Fn(&Runtime)) {
    runtimes().iter().for_each(test);
}
