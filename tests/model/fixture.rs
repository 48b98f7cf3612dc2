//! The small models of `fixtures/`, what PyTorch says about them, and how they are compared with it.

use crate::{load, oracle};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{self, ConvertOptions};
use flute_burn::eval::{self, EvalOptions};
use flute_burn::{quantize::Method, text::Tokenizer};
use flute_cube::{Group, Table};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A directory of `fixtures/`.
#[derive(Clone, Copy)]
pub(crate) struct Fixture(pub(crate) &'static str);

/// A prompt of the reference, its logits by our dense model (f32, on the CPU), and by PyTorch.
struct Prompt {
    ids: Vec<u32>,
    found: Vec<f32>,
    reference: Vec<f32>,
}

impl Fixture {
    pub(crate) fn path(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(self.0)
    }

    pub(crate) fn reference(self) -> Result<Value> {
        let text = std::fs::read_to_string(self.path().join("reference.json"))?;
        Ok(serde_json::from_str(&text)?)
    }

    pub(crate) fn eval_ids(self) -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(self.path().join("eval.txt"))?;
        Ok(Tokenizer::open(self.path())?.encode(&text, false)?)
    }

    pub(crate) fn quantize(self, table: Table, group: usize, target: &Path) -> Result<()> {
        let method = Method::Absmax { table, group: Group::new(group)? };
        let mut quiet = |_: checkpoint::Progress<'_>| {};
        checkpoint::convert(ConvertOptions::new(self.path(), target, method, &mut quiet))?;
        Ok(())
    }

    /// Perplexity over the whole of eval.txt on the CPU, against row `name` of the reference.
    pub(crate) fn row(
        self,
        name: &str,
        quantized: Option<(Table, usize)>,
        tolerance: f64,
    ) -> Result<()> {
        let scratch = tempfile::tempdir()?;
        let dir = match quantized {
            None => self.path(),
            Some((table, group)) => {
                let target = scratch.path().join("model");
                self.quantize(table, group, &target)?;
                target
            }
        };
        let reference = self.reference()?;
        let expected = reference["ppl"][name].as_f64().context("the row")?;
        let model = load(&dir, Device::flex(), DType::F32)?;
        let (start, ids) = (std::time::Instant::now(), self.eval_ids()?);
        let found = eval::perplexity(&model, &ids, &EvalOptions::default(), &mut |_| {})?;
        let (value, relative) = (found.value, found.value / expected - 1.0);
        let seconds = start.elapsed().as_secs_f64();
        println!("{}, {name}: {value:.6}, {relative:+.2e} off; {seconds:.1} s", self.0);
        assert_eq!(Some(found.predicted as u64), reference["predicted"].as_u64());
        ensure!(relative.abs() <= tolerance, "{name}: {value} and not {expected}");
        Ok(())
    }

    fn prompts(self) -> Result<Vec<Prompt>> {
        let model = load(&self.path(), Device::flex(), DType::F32)?;
        let bytes = std::fs::read(self.path().join("reference_logits.safetensors"))?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        let reference = self.reference()?;
        let prompts = reference["greedy"].as_array().context("prompts")?;
        assert_eq!(prompts.len(), tensors.len());
        let case = |(index, prompt): (usize, &Value)| {
            let ids: Vec<u32> = serde_json::from_value(prompt["prompt_ids"].clone())?;
            let stored = tensors.tensor(&format!("logits_{index}"))?;
            assert_eq!(stored.shape(), [ids.len(), model.vocab()]);
            let bytes = stored.data().as_chunks().0.iter();
            let mut cache = model.new_cache(1, ids.len())?;
            let found = model.forward(model.tokens(&ids, 1)?, &mut cache)?;
            let found = found.try_into_vec_as::<f32>()?;
            Ok(Prompt { ids, found, reference: bytes.map(|b| f32::from_le_bytes(*b)).collect() })
        };
        prompts.iter().enumerate().map(case).collect()
    }

    /// The logits of every prompt, against the model in double precision.
    pub(crate) fn logits_are_exact_within(self, tolerance: f64) -> Result<()> {
        for Prompt { ids, found, .. } in self.prompts()? {
            let expected = oracle::logits(&self.path(), &ids)?.concat();
            assert_eq!(found.len(), expected.len());
            let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
            let worst = errors.fold(0.0, f64::max);
            println!("{}, {} tokens: worst logit off by {worst:.2e}", self.0, ids.len());
            ensure!(worst <= tolerance, "{worst}");
        }
        Ok(())
    }

    /// The logits of every prompt, against those of PyTorch.
    pub(crate) fn logits_are_the_reference_s_within(self, tolerance: f32) -> Result<()> {
        for Prompt { ids, found, reference } in self.prompts()? {
            let errors = found.iter().zip(&reference).map(|(a, b)| (a - b).abs());
            let worst = errors.fold(0.0, f32::max);
            println!("{}, {} tokens: worst logit off by {worst:.2e}", self.0, ids.len());
            ensure!(worst <= tolerance, "{worst}");
        }
        Ok(())
    }
}
