//! Sequences that come and go in a batch whose cache has fewer blocks than its rows could fill.

use crate::batch::alone;
use crate::{LLAMA, kernel_device, load};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::device;
use flute_burn::error::Error;
use flute_burn::model::{Decoding, Model};
use std::collections::VecDeque;

/// A prompt, and the tokens that are to follow it.
type Job = (Vec<u32>, usize);

/// A decoding of `rows` rows without a sequence.
fn empty(model: &Model, [rows, capacity, blocks]: [usize; 3], graph: bool) -> Result<Decoding<'_>> {
    let cache = model.paged_cache(rows, capacity, blocks)?;
    let tokens = model.tokens(&vec![0; rows], rows)?;
    Ok(Decoding::new(model, tokens, cache, graph)?)
}

/// A sequence that is decoded.
struct Running {
    job: usize,
    row: usize,
    text: Vec<u32>,
}

/// What follows each of `jobs`, which wait in line until there is a row and there are blocks for them.
fn serve(model: &Model, jobs: &[Job], shape: [usize; 3], graph: bool) -> Result<Vec<Vec<u32>>> {
    let mut decoding = empty(model, shape, graph)?;
    let mut waiting: VecDeque<usize> = (0..jobs.len()).collect();
    let mut texts = vec![vec![]; jobs.len()];
    let mut running: Vec<Running> = vec![];
    let (mut refused, mut recorded) = ([0; 2], false);
    while texts.iter().any(Vec::is_empty) {
        while let Some(&job) = waiting.front() {
            let (prompt, steps) = &jobs[job];
            match decoding.admit(prompt, prompt.len() + steps) {
                Ok(admitted) => {
                    waiting.pop_front();
                    running.push(Running { job, row: admitted.row, text: admitted.next.ids()? });
                }
                Err(error) => {
                    match error {
                        Error::BatchFull { .. } => refused[0] += 1,
                        Error::PoolFull { .. } => refused[1] += 1,
                        error => return Err(error.into()),
                    }
                    break;
                }
            }
        }
        let ids = decoding.likeliest()?;
        for sequence in &mut running {
            sequence.text.push(ids[sequence.row]);
        }
        let ended = running.extract_if(.., |sequence| sequence.text.len() > jobs[sequence.job].1);
        for Running { job, row, text } in ended {
            decoding.release(row)?;
            texts[job] = text;
        }
        // Once a step is recorded, nobody who comes or goes makes it be recorded again.
        ensure!(decoding.is_graph() || !recorded, "the recording was given up");
        recorded = decoding.is_graph();
    }
    ensure!(refused[0] > 0 && refused[1] > 0, "nobody waited: {refused:?}");
    let kernels = device::client(model.device()).is_some();
    ensure!(recorded == (graph && kernels), "{recorded}");
    ensure!(decoding.pool().used() == 0, "{:?}", decoding.pool());
    Ok(texts)
}

#[test]
fn sequences_in_scattered_blocks_get_the_tokens_that_they_get_alone() -> Result<()> {
    let ids = LLAMA.eval_ids()?;
    // Some end in the block they begin in, some have three.
    let job = |(at, (len, steps)): (usize, (usize, usize))| (ids[70 * at..][..len].to_vec(), steps);
    let sizes = [(3, 4), (62, 9), (66, 2), (1, 3), (127, 5), (20, 8), (64, 1), (5, 6), (61, 3)];
    let jobs: Vec<Job> = sizes.into_iter().enumerate().map(job).collect();
    for device in [Some(Device::flex()), kernel_device()?].into_iter().flatten() {
        let model = load(&LLAMA.path(), device, DType::F32)?;
        let [plain, graph] = [false, true].map(|graph| serve(&model, &jobs, [3, 140, 4], graph));
        let (plain, graph) = (plain?, graph?);
        ensure!(plain == graph, "with and without a graph: {plain:?}, {graph:?}");
        for ((prompt, steps), found) in jobs.iter().zip(plain) {
            let expected = alone(&model, prompt, *steps)?;
            ensure!(found == expected, "{} tokens: {found:?}, {expected:?}", prompt.len());
        }
    }
    Ok(())
}

#[test]
fn a_pool_that_is_full_refuses_a_sequence_and_says_how_many_blocks_it_has() -> Result<()> {
    let model = load(&LLAMA.path(), Device::flex(), DType::F32)?;
    let mut decoding = empty(&model, [3, 256, 4], false)?;
    let first = decoding.admit(&[1, 2, 3], 129)?;
    ensure!((first.row, decoding.pool().free(), decoding.pool().used()) == (0, 1, 3));
    let refusal = decoding.admit(&[4, 5], 65).err().context("refused")?;
    ensure!(matches!(refusal, Error::PoolFull { needed: 2, free: 1, blocks: 4 }), "{refusal}");
    let message = refusal.to_string();
    ensure!(message.contains("needs 2 blocks") && message.contains("1 of its 4"), "{message}");
    ensure!(refusal.hint().is_some());
    // It was left as it was, and serves one that fits.
    ensure!((decoding.pool().free(), decoding.pool().used()) == (1, 3));
    let second = decoding.admit(&[4, 5], 64)?;
    ensure!((second.row, decoding.pool().free()) == (1, 0));
    let text = |row: usize, ids: Vec<u32>| ids[row];
    let next = decoding.likeliest()?;
    ensure!(text(0, next.clone()) == alone(&model, &[1, 2, 3], 1)?[1]);
    ensure!(text(1, next) == alone(&model, &[4, 5], 1)?[1]);
    Ok(())
}

#[test]
fn a_sequence_that_ends_gives_its_blocks_to_the_next_one() -> Result<()> {
    for device in [Some(Device::flex()), kernel_device()?].into_iter().flatten() {
        let model = load(&LLAMA.path(), device, DType::F32)?;
        let ids = LLAMA.eval_ids()?;
        let (first, second) = (&ids[..80], &ids[300..370]);
        let mut decoding = empty(&model, [1, 128, 2], true)?;
        for prompt in [first, second, first] {
            let admitted = decoding.admit(prompt, 128)?;
            ensure!((admitted.row, decoding.pool().free()) == (0, 0));
            let full = decoding.admit(prompt, 128).err().context("refused")?;
            ensure!(matches!(full, Error::BatchFull { sequences: 1 }), "{full}");
            let mut text = admitted.next.ids()?;
            for _ in 0..5 {
                text.extend(decoding.likeliest()?);
            }
            ensure!(text == alone(&model, prompt, 5)?, "{text:?}");
            decoding.release(0)?;
            ensure!(decoding.pool().free() == 2);
            // Steps of nobody leave nothing behind.
            decoding.likeliest()?;
        }
    }
    Ok(())
}

#[test]
fn a_batch_that_was_read_lets_others_take_the_place_of_those_that_end() -> Result<()> {
    for device in [Some(Device::flex()), kernel_device()?].into_iter().flatten() {
        let model = load(&LLAMA.path(), device, DType::F32)?;
        let ids = LLAMA.eval_ids()?;
        let prompts = [&ids[..9], &ids[50..54], &ids[90..157]];
        let (cache, next) = model.read(&prompts, 100)?;
        ensure!(cache.pool().free() == 0 && cache.pool().blocks() == 6);
        let first: Vec<i32> = next.clone().try_into_vec_as()?;
        let mut texts: Vec<Vec<u32>> = first.iter().map(|id| vec![*id as u32]).collect();
        let mut decoding = Decoding::new(&model, next, cache, true)?.run_ahead();
        let step = |decoding: &mut Decoding<'_>, texts: &mut Vec<Vec<u32>>| -> Result<()> {
            let ids = decoding.likeliest()?;
            texts.iter_mut().zip(ids).for_each(|(text, id)| text.push(id));
            Ok(())
        };
        for _ in 0..4 {
            step(&mut decoding, &mut texts)?;
        }
        ensure!(texts[1] == alone(&model, prompts[1], 4)?);
        decoding.release(1)?;
        step(&mut decoding, &mut texts)?;
        let admitted = decoding.admit(&ids[200..265], 100)?;
        ensure!(admitted.row == 1);
        texts[1] = admitted.next.ids()?;
        for _ in 0..3 {
            step(&mut decoding, &mut texts)?;
        }
        ensure!(texts[0] == alone(&model, prompts[0], 8)?);
        ensure!(texts[1] == alone(&model, &ids[200..265], 3)?);
        ensure!(texts[2] == alone(&model, prompts[2], 8)?);
    }
    Ok(())
}

#[test]
fn sequences_that_cannot_be_are_refused_and_a_full_one_holds_the_batch_until_it_is_released()
-> Result<()> {
    let model = load(&LLAMA.path(), Device::flex(), DType::F32)?;
    for [rows, capacity, blocks] in [[0, 4, 1], [1, 0, 1], [1, 4, 0]] {
        let refusal = model.paged_cache(rows, capacity, blocks).err().context("refused")?;
        ensure!(matches!(refusal, Error::InvalidOption { .. }), "{refusal}");
    }
    let mut decoding = empty(&model, [2, 100, 3], true)?;
    let mut refusal = |prompt: &[u32], capacity: usize| -> Result<Error> {
        let refusal = decoding.admit(prompt, capacity).err().context("refused")?;
        ensure!(decoding.pool().free() == 3, "{refusal}");
        Ok(refusal)
    };
    ensure!(matches!(refusal(&[], 9)?, Error::EmptyPrompt));
    ensure!(matches!(refusal(&[1, 2], 1)?, Error::PromptTooLong { found: 2, limit: 1 }));
    ensure!(matches!(refusal(&[1], 101)?, Error::PromptTooLong { found: 101, limit: 100 }));
    ensure!(matches!(refusal(&[9999], 9)?, Error::TokenOutOfRange { token: 9999, .. }));
    for row in [0, 1, 2] {
        ensure!(matches!(decoding.release(row), Err(Error::InvalidOption { .. })), "{row}");
    }
    let (short, long) = (decoding.admit(&[1, 2, 3], 4)?.row, decoding.admit(&[4], 100)?.row);
    decoding.likeliest()?;
    let full = decoding.likeliest().err().context("refused")?;
    ensure!(matches!(full, Error::PromptTooLong { found: 5, limit: 4 }), "{full}");
    decoding.release(short)?;
    decoding.likeliest()?;
    let next = decoding.likeliest()?[long];
    ensure!(next == alone(&model, &[4], 3)?[3]);
    Ok(())
}
