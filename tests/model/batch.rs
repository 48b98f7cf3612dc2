//! A batch of sequences that stand at different places, against each of them alone.

use crate::{LLAMA, kernel_device, load};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::error::Error;
use flute_burn::model::{Decoding, Model};

const LONGEST: usize = 66;

/// What follows each of `prompts`, in `steps` steps.
fn continued(
    model: &Model,
    prompts: &[&[u32]],
    capacity: usize,
    steps: usize,
) -> Result<Vec<Vec<u32>>> {
    let (cache, next) = model.read(prompts, capacity)?;
    ensure!(cache.lens().iter().copied().eq(prompts.iter().map(|prompt| prompt.len())));
    let first: Vec<i32> = next.clone().try_into_vec_as()?;
    let mut texts: Vec<Vec<u32>> = first.into_iter().map(|id| vec![id as u32]).collect();
    let mut decoding = Decoding::new(model, next, cache, true)?;
    for _ in 0..steps {
        for (text, id) in texts.iter_mut().zip(decoding.likeliest()?) {
            text.push(id);
        }
    }
    Ok(texts)
}

/// What follows `prompt` in a cache of its own, step by step.
pub(crate) fn alone(model: &Model, prompt: &[u32], steps: usize) -> Result<Vec<u32>> {
    let mut cache = model.new_cache(1, prompt.len() + steps)?;
    let mut next = model.likeliest(model.tokens(prompt, 1)?, &mut cache)?;
    let mut text = next.ids()?;
    for _ in 0..steps {
        next = model.likeliest(next.tokens, &mut cache)?;
        text.extend(next.ids()?);
    }
    Ok(text)
}

fn check(device: Device, sequences: usize, steps: usize) -> Result<()> {
    let model = load(&LLAMA.path(), device, DType::F32)?;
    let ids = LLAMA.eval_ids()?;
    // Short ones in no order, and one that is longer than a chunk of the attention.
    let len = |b: usize| if b == sequences / 2 { LONGEST } else { 1 + b * 7 % 11 };
    let prompts: Vec<&[u32]> = (0..sequences).map(|b| &ids[40 * b..][..len(b)]).collect();
    let together = continued(&model, &prompts, LONGEST + steps + 3, steps)?;
    let mut texts = std::collections::HashSet::new();
    for (b, (prompt, together)) in prompts.iter().zip(together).enumerate() {
        let alone = alone(&model, prompt, steps)?;
        ensure!(
            alone == together,
            "sequence {b} of {} tokens: {alone:?}, {together:?}",
            prompt.len()
        );
        texts.insert(alone);
    }
    ensure!(texts.len() > sequences / 2, "{sequences} prompts have {} continuations", texts.len());
    Ok(())
}

#[test]
fn sixty_four_sequences_of_their_own_lengths_get_the_tokens_that_each_gets_alone() -> Result<()> {
    match kernel_device()? {
        Some(device) => check(device, 64, 4),
        None => Ok(()),
    }
}

#[test]
fn sequences_of_their_own_lengths_decode_together_on_the_cpu() -> Result<()> {
    check(Device::flex(), 5, 4)
}

#[test]
fn a_batch_with_a_prompt_that_cannot_be_read_is_refused_as_a_whole() -> Result<()> {
    let model = load(&LLAMA.path(), Device::flex(), DType::F32)?;
    let refusal = |prompts: &[&[u32]]| model.read(prompts, 4).err().context("refused");
    ensure!(matches!(refusal(&[])?, Error::InvalidOption { .. }));
    ensure!(matches!(refusal(&[&[1, 2], &[]])?, Error::EmptyPrompt));
    let long = refusal(&[&[1], &[1, 2, 3, 4, 5]])?;
    ensure!(matches!(long, Error::PromptTooLong { found: 5, limit: 4 }));
    let token = model.vocab() as u32;
    let unknown = refusal(&[&[1], &[token]])?;
    ensure!(matches!(unknown, Error::TokenOutOfRange { token: found, .. } if found == token));
    Ok(())
}
