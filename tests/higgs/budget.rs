//! Bits under a budget: the best assignment, what it is worth, and models of layers that differ.

use crate::models::{eval_ids, load, logits, worst};
use crate::{fixture, higgs};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{
    Assignment, BudgetOptions, ConvertOptions, Progress, Reader, assign, convert, inspect,
};
use flute_burn::error::Error;
use flute_burn::eval::{self, EvalOptions};
use flute_burn::model::LoadOptions;
use flute_burn::quantize::{Choice, allocate};
use flute_burn::sensitivity::{self, Sensitivity, SensitivityOptions};
use flute_burn::text::Tokenizer;
use flute_cube::{Bits, Group};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use std::path::Path;
use std::time::Instant;

/// The least loss of all assignments that fit, by trying each of them.
fn brute(layers: &[Vec<Choice>], budget: u64) -> Option<f64> {
    let Some((last, rest)) = layers.split_last() else { return Some(0.0) };
    let tried = last.iter().filter(|choice| choice.bytes <= budget);
    tried
        .filter_map(|choice| Some(brute(rest, budget - choice.bytes)? + choice.loss))
        .min_by(f64::total_cmp)
}

fn sums(layers: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
    let choices = layers.iter().zip(chosen).map(|(choices, index)| choices[*index]);
    choices.fold((0, 0.0), |(bytes, loss), c| (bytes + c.bytes, loss + c.loss))
}

#[test]
fn the_assignment_under_a_budget_is_the_best_of_all() -> Result<()> {
    let mut infeasible = 0;
    for seed in 0..400 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let count = rng.random_range(1..=6);
        // Small numbers, so that sizes and losses tie often; every fourth seed has any loss at all.
        let mut choice = || {
            let loss = f64::from(rng.random_range(0..12));
            let loss = if seed % 4 == 0 { loss * rng.random::<f64>() } else { loss };
            Choice { bytes: rng.random_range(0..15), loss }
        };
        let mut layers = vec![];
        for _ in 0..count {
            layers.push((0..5).map(|_| choice()).collect::<Vec<_>>());
        }
        for budget in [0, 7, 15, 22, 31, 45, 100] {
            let found = allocate(&layers, budget);
            match brute(&layers, budget) {
                Some(expected) => {
                    let (bytes, loss) = sums(&layers, &found?);
                    ensure!(bytes <= budget, "seed {seed}: {bytes} bytes of {budget}");
                    let off = (loss - expected).abs();
                    ensure!(off <= 1e-9, "seed {seed}, {budget} bytes: {loss} and {expected}");
                }
                None => {
                    infeasible += 1;
                    ensure!(matches!(found, Err(Error::InvalidOption { .. })), "seed {seed}");
                }
            }
        }
    }
    ensure!(infeasible > 50, "only {infeasible} budgets were too small");
    Ok(())
}

#[test]
fn a_large_model_is_assigned_within_the_bound_of_the_relaxed_problem() -> Result<()> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(70);
    // 80 blocks of 7 layers, as LLaMA 70B has them, in 2, 3 and 4 bits with either grid, or dense.
    let sizes = [67_108_864u64, 8_388_608, 8_388_608, 67_108_864];
    let sizes = sizes.into_iter().chain([234_881_024; 3]);
    let errors = [(2, 0.1175, 64), (2, 0.1075, 128), (3, 0.0345, 32), (3, 0.0296, 512)];
    let errors = errors.into_iter().chain([(4, 0.0095, 64), (4, 0.0078, 2048), (16, 0.0, 0)]);
    let mut layers: Vec<Vec<Choice>> = vec![];
    for weights in std::iter::repeat_n(sizes, 80).flatten() {
        let alpha = (-4.0 * rng.random::<f64>()).exp();
        let choice = |(bits, error, table): (u64, f64, u64)| Choice {
            bytes: weights * bits / 8 + weights / 128 + table,
            loss: alpha * error,
        };
        layers.push(errors.clone().map(choice).collect());
    }
    let weights: f64 = layers.iter().map(|choices| choices[6].bytes as f64 / 2.0).sum();
    for bits in [2.2, 3.25, 4.5, 9.0] {
        let (budget, start) = ((weights * bits / 8.0) as u64, Instant::now());
        let (bytes, loss) = sums(&layers, &allocate(&layers, budget)?);
        let seconds = start.elapsed().as_secs_f64();
        // Any price of bytes bounds every assignment from below.
        let bound = |price: f64| -> f64 {
            let cost = |choice: &Choice| choice.loss + price * choice.bytes as f64;
            let least =
                |choices: &Vec<Choice>| choices.iter().map(cost).fold(f64::INFINITY, f64::min);
            layers.iter().map(least).sum::<f64>() - price * budget as f64
        };
        let prices = (0..4000).map(|step| 1e-14 * 1.01f64.powi(step));
        let bound = prices.map(bound).fold(f64::NEG_INFINITY, f64::max);
        println!("{bits} bits: {loss:.6}, at least {bound:.6}; {seconds:.3} s");
        ensure!(bytes <= budget);
        ensure!(loss >= bound - 1e-9 && loss <= bound + 0.01, "{loss} and {bound}");
    }
    Ok(())
}

#[test]
fn budgets_that_nothing_fits_and_losses_that_are_none_are_refused() -> Result<()> {
    let choice = |bytes, loss| Choice { bytes, loss };
    let refused = |layers: &[Vec<Choice>], budget| match allocate(layers, budget) {
        Err(error) => Ok(error.to_string()),
        Ok(found) => Err(anyhow::anyhow!("{found:?}")),
    };
    let two = [vec![choice(5, 1.0)], vec![choice(7, 0.5), choice(6, 1.0)]];
    assert_eq!(refused(&two, 10)?, "the budget is 10 bytes; it must be 11 bytes or more");
    refused(&[vec![choice(1, f64::NAN)]], 10)?;
    refused(&[vec![choice(1, 0.0)], vec![]], 10)?;
    refused(&[vec![choice(u64::MAX, 0.0)], vec![choice(1, 0.0)]], 10)?;
    let options = BudgetOptions::new(1.5, Group::new(256)?, 256)?;
    let found = options.check(&fixture("tiny-llama")).err().context("no error")?.to_string();
    ensure!(found.contains("the bits a weight is 1.5; it must be 2."), "{found}");
    let found = options.check(&fixture("golden/tiny-llama-higgs-p2-4bit")).err();
    assert!(matches!(found, Some(Error::AlreadyQuantized { bits: 4, .. })), "{found:?}");
    let options = BudgetOptions::new(3.25, Group::new(256)?, 256)?;
    let found = assign(&fixture("tiny-llama"), &[], &options).err().context("no error")?;
    ensure!(found.to_string().contains("without model.layers.0.mlp.down_proj"), "{found}");
    Ok(())
}

fn measured(text: Option<&[u32]>) -> Result<Vec<Sensitivity>> {
    let options = SensitivityOptions::default();
    let load = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::new(Device::flex()) };
    let (start, mut last) = (Instant::now(), 0);
    let found =
        sensitivity::measure(&fixture("tiny-llama"), &load, text, &options, &mut |done, total| {
            assert_eq!((done, total), (last + 1, 42));
            last = done;
        })?;
    println!("{} sensitivities in {:.1} s", found.len(), start.elapsed().as_secs_f64());
    Ok(found)
}

fn perplexity(
    target: &Path,
    edit: impl FnOnce(&mut ConvertOptions<'_>) -> Result<()>,
) -> Result<f64> {
    let mut quiet = |_: Progress<'_>| {};
    let method = higgs(Bits::Three, 2, 256, 256)?;
    let mut options = ConvertOptions::new(fixture("tiny-llama"), target, method, &mut quiet);
    edit(&mut options)?;
    convert(options)?;
    let options = EvalOptions { limit: Some(8), ..EvalOptions::default() };
    Ok(eval::perplexity(&load(target, true)?, &eval_ids()?, &options, &mut |_| {})?.value)
}

/// 4 bits for as many layers of `order` as fit `budget` bytes, 3 bits for the others.
fn fixed(options: &mut ConvertOptions<'_>, order: &[String], budget: u64) -> Result<()> {
    let one = |bits| -> Result<BudgetOptions> {
        let mut options = BudgetOptions::new(16.0, Group::new(256)?, 256)?;
        options.candidates.retain(|higgs| (higgs.table().bits(), higgs.table().dim()) == (bits, 2));
        Ok(options)
    };
    // With nothing to lose every layer takes its smallest form.
    let zero: Vec<Sensitivity> =
        order.iter().map(|m| Sensitivity { module: m.clone(), alpha: 0.0 }).collect();
    let sizes =
        |bits| -> Result<Assignment> { Ok(assign(&fixture("tiny-llama"), &zero, &one(bits)?)?) };
    let (three, four) = (sizes(Bits::Three)?, sizes(Bits::Four)?);
    let mut used: u64 = three.layers.iter().map(|layer| layer.bytes).sum();
    for module in order {
        let bytes = |all: &Assignment| -> Result<u64> {
            let own = all.layers.iter().find(|layer| layer.module == *module);
            Ok(own.context("a layer")?.bytes)
        };
        let more = bytes(&four)? - bytes(&three)?;
        if used + more <= budget {
            used += more;
            options.overrides.push((module.clone(), higgs(Bits::Four, 2, 256, 256)?));
        }
    }
    ensure!(used as f64 >= budget as f64 * 0.99, "{used} bytes of {budget}");
    Ok(())
}

#[test]
fn bits_where_they_matter_beat_as_many_bits_by_order_and_at_random() -> Result<()> {
    let text = std::fs::read_to_string(fixture("calibration.txt"))?;
    let ids = Tokenizer::open(fixture("tiny-llama"))?.encode(&text, false)?;
    let sensitivities = measured(Some(&ids))?;
    let options = BudgetOptions::new(3.25, Group::new(256)?, 256)?;
    let assignment = assign(&fixture("tiny-llama"), &sensitivities, &options)?;
    println!("{:.4} bits: {:?}", assignment.bits_per_weight, assignment.counts());
    ensure!((3.2..=3.25).contains(&assignment.bits_per_weight));
    let budget = (3.25 * 786_432.0 * 6.0 / 8.0) as u64;

    let scratch = tempfile::tempdir()?;
    let dynamic = perplexity(&scratch.path().join("dynamic"), |options| {
        assignment.apply(options);
        Ok(())
    })?;
    let mut order: Vec<String> = sensitivities.into_iter().map(|s| s.module).collect();
    let by_order =
        perplexity(&scratch.path().join("order"), |options| fixed(options, &order, budget))?;
    println!("dynamic {dynamic:.4}; first layers in 4 bits {by_order:.4}");
    ensure!(dynamic < by_order, "{dynamic} and {by_order}");
    for seed in [1, 2] {
        order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
        let target = scratch.path().join(format!("random-{seed}"));
        let random = perplexity(&target, |options| fixed(options, &order, budget))?;
        println!("seed {seed}: layers at random in 4 bits {random:.4}");
        ensure!(dynamic < random, "{dynamic} and {random}");
    }
    Ok(())
}

#[test]
fn a_model_of_layers_that_all_differ_is_as_large_as_was_said_and_runs() -> Result<()> {
    let (scratch, source) = (tempfile::tempdir()?, fixture("tiny-llama"));
    let reader = Reader::open(&source)?;
    // Made up: every layer matters ten times more than the one before, in a cycle of six.
    let modules = reader.tensor_names().filter_map(|name| name.strip_suffix("_proj.weight"));
    let sensitivities: Vec<Sensitivity> = modules
        .enumerate()
        .map(|(index, module)| Sensitivity {
            module: format!("{module}_proj"),
            alpha: 10f64.powi(index as i32 % 6),
        })
        .collect();
    assert_eq!(sensitivities.len(), 42);
    let options = BudgetOptions::new(5.0, Group::new(256)?, 256)?;
    let assignment = assign(&source, &sensitivities, &options)?;
    println!("{:?}", assignment.counts());
    ensure!(assignment.counts().len() >= 4, "{:?}", assignment.counts());
    ensure!(assignment.layers.iter().any(|layer| layer.higgs.is_none()), "nothing is dense");

    let dir = scratch.path().join("model");
    let mut quiet = |_: Progress<'_>| {};
    let method = higgs(Bits::Two, 1, 256, 256)?;
    let mut convert_options = ConvertOptions::new(&source, &dir, method, &mut quiet);
    assignment.apply(&mut convert_options);
    convert(convert_options)?;
    let found = inspect(&dir, true)?;
    for layer in &assignment.layers {
        let linear = found.linears.iter().find(|linear| linear.module == layer.module);
        match (&layer.higgs, linear) {
            (None, None) => (),
            (Some(higgs), Some(linear)) => {
                assert_eq!(linear.bits, higgs.table().bits().get(), "{}", layer.module);
                assert_eq!(linear.bytes, layer.bytes, "{}", layer.module);
            }
            (higgs, _) => anyhow::bail!("{} is not stored as {higgs:?}", layer.module),
        }
    }
    let ids = &eval_ids()?[..24];
    let off = worst(&logits(&load(&dir, false)?, ids)?, &logits(&load(&dir, true)?, ids)?);
    ensure!(off <= 1e-4, "{off}");
    Ok(())
}
