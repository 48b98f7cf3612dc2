//! Bits where they matter: which layer of a model is stored in which way, so that all of it fits a budget.
//!
//! The loss of a choice is the layer's sensitivity ([`crate::sensitivity`]) times the relative squared error of the
//! choice, which for HIGGS is that of its grid whatever the weight: nothing is quantized to know it. Sizes are the
//! bytes that [`convert()`](super::convert()) will write, tables included. [`quantize::allocate`] picks the best
//! assignment. Refused: a budget that no assignment meets, layers without a sensitivity.

use super::convert::{ConvertOptions, ScaleDtype, linear};
use super::layout::Layout;
use super::pattern;
use super::reader::{Reader, float_dtype};
use super::writer::natural_key;
use crate::error::{Error, Result};
use crate::quantize::{self, Choice, Higgs, Method, grid};
use crate::sensitivity::Sensitivity;
use flute_cube::{Bits, Dtype as Float, Group};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What to choose from, and how much may be used.
#[derive(Clone, Debug)]
pub struct BudgetOptions {
    /// Bits a weight at most, codes, scales and tables of all layers counted that are not skipped.
    pub bits: f64,
    /// Ways to store a layer; dense, as the source has it, is one of them always.
    pub candidates: Vec<Higgs>,
    /// Type that scales are stored in.
    pub scale_dtype: ScaleDtype,
    /// Patterns of modules that are left dense and not counted.
    pub skip: Vec<String>,
}

impl BudgetOptions {
    /// 2, 3 and 4 bits in grids of one and two dimensions, scales in f16, nothing skipped.
    ///
    /// # Errors
    /// As [`Higgs::new`].
    pub fn new(bits: f64, group: Group, hadamard_size: usize) -> Result<Self> {
        let pairs = Bits::ALL.into_iter().flat_map(|bits| [(bits, 1), (bits, 2)]);
        let candidates = pairs.map(|(bits, p)| Higgs::new(bits, p, group, hadamard_size));
        let candidates = candidates.collect::<Result<_>>()?;
        Ok(Self { bits, candidates, scale_dtype: ScaleDtype::default(), skip: vec![] })
    }
}

/// How every layer is to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// One a layer, in the order of the model.
    pub layers: Vec<AssignedLayer>,
    /// What all of them take, a weight.
    pub bits_per_weight: f64,
    /// The divergence to be expected, in nats a token.
    pub loss: f64,
}

/// How one layer is to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct AssignedLayer {
    /// The linear layer.
    pub module: String,
    /// None leaves it dense.
    pub higgs: Option<Higgs>,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Its part of the loss.
    pub loss: f64,
}

/// A choice and how many layers took it, in words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ChoiceCount {
    /// Such as `W3G256, p = 2`, or `dense`.
    pub choice: String,
    /// Layers.
    pub layers: usize,
}

/// A dense linear layer that quantizers take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DenseLinear<'a> {
    pub(crate) module: &'a str,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) dtype: Float,
    pub(crate) bytes: u64,
}

impl Reader {
    /// The dense linear layers that quantizers take, in the order of the model.
    pub(crate) fn linears(&self) -> Vec<DenseLinear<'_>> {
        let found = self.tensors().filter_map(|(name, info)| {
            let (module, dtype) = (linear(name, info)?, float_dtype(name, info.dtype).ok()?);
            let (n, k, bytes) = (info.shape[0], info.shape[1], info.bytes);
            Some(DenseLinear { module, n, k, dtype, bytes })
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_cached_key(|linear| natural_key(linear.module));
        found
    }
}

impl BudgetOptions {
    /// Whether there is an assignment for the dense model in `source`, whatever its layers matter.
    ///
    /// # Errors
    /// What [`Reader::open`] refuses; [`Error::AlreadyQuantized`]; [`Error::NothingToQuantize`];
    /// [`Error::InvalidOption`] for a budget that is not a number or less than the smallest assignment.
    pub fn check(&self, source: &Path) -> Result<()> {
        self.sizes(&Reader::open(source)?).map(|_| ())
    }

    /// The layers of `reader` that are not skipped, and what each takes in every way.
    fn sizes<'a>(&self, reader: &'a Reader) -> Result<Sizes<'a>> {
        if let Some(bits) = reader.bits() {
            return Err(Error::AlreadyQuantized { dir: reader.dir().into(), bits });
        }
        let skipped = |module: &str| self.skip.iter().any(|skip| pattern::matches(skip, module));
        let mut linears = reader.linears();
        linears.retain(|linear| !skipped(linear.module));
        let weights: u64 = linears.iter().map(|linear| (linear.n * linear.k) as u64).sum();
        if weights == 0 {
            return Err(Error::NothingToQuantize { dir: reader.dir().into() });
        }
        let of = |linear: &DenseLinear<'_>| -> Vec<u64> {
            let scale = self.scale_dtype.stored(linear.dtype);
            let bytes = |higgs: &Higgs| {
                Layout::of(&Method::Higgs(higgs.clone()), linear.n, linear.k, scale).bytes()
            };
            self.candidates.iter().map(bytes).chain([linear.bytes]).collect()
        };
        let bytes: Vec<Vec<u64>> = linears.iter().map(of).collect();
        let least: u64 = bytes.iter().filter_map(|bytes| bytes.iter().min()).sum();
        // Rounded up to a number that can be typed.
        let least = (least as f64 * 8.0 / weights as f64 * 1000.0).ceil() / 1000.0;
        if !self.bits.is_finite() || self.bits < least {
            let needed = format!("{least} or more, which these layers take at the least");
            let found = self.bits.to_string();
            return Err(Error::InvalidOption { name: "the bits a weight", found, needed });
        }
        let budget = (self.bits * weights as f64 / 8.0) as u64;
        Ok(Sizes { linears, bytes, weights, budget })
    }
}

/// What there is to assign.
struct Sizes<'a> {
    linears: Vec<DenseLinear<'a>>,
    /// Of each layer, one a candidate and then dense.
    bytes: Vec<Vec<u64>>,
    weights: u64,
    budget: u64,
}

/// The best assignment for the dense model in `source` whose layers matter as `sensitivities` say.
///
/// # Errors
/// As [`BudgetOptions::check`]; [`Error::InvalidOption`] for a layer without sensitivity.
pub fn assign(
    source: &Path,
    sensitivities: &[Sensitivity],
    options: &BudgetOptions,
) -> Result<Assignment> {
    let reader = Reader::open(source)?;
    let Sizes { linears, bytes, weights, budget } = options.sizes(&reader)?;
    let alphas: BTreeMap<&str, f64> =
        sensitivities.iter().map(|s| (s.module.as_str(), s.alpha)).collect();
    let errors = options.candidates.iter().map(|higgs| grid::error(higgs.table()));
    let errors: Vec<f64> = errors.chain([0.0]).collect();
    let mut layers = vec![];
    for (linear, bytes) in linears.iter().zip(&bytes) {
        let Some(alpha) = alphas.get(linear.module) else {
            return Err(Error::InvalidOption {
                name: "the sensitivities",
                found: format!("without {}", linear.module),
                needed: "one for every layer that is not skipped".into(),
            });
        };
        let choices = bytes.iter().zip(&errors);
        let choices = choices.map(|(bytes, error)| Choice { bytes: *bytes, loss: alpha * error });
        layers.push(choices.collect::<Vec<_>>());
    }
    let chosen = quantize::allocate(&layers, budget)?;
    let assigned = linears.iter().zip(&layers).zip(chosen).map(|((linear, choices), index)| {
        let Choice { bytes, loss } = choices[index];
        let higgs = options.candidates.get(index).cloned();
        AssignedLayer { module: linear.module.to_owned(), higgs, bytes, loss }
    });
    let layers: Vec<AssignedLayer> = assigned.collect();
    let bytes: u64 = layers.iter().map(|layer| layer.bytes).sum();
    let bits_per_weight = bytes as f64 * 8.0 / weights as f64;
    let loss = layers.iter().map(|layer| layer.loss).sum();
    Ok(Assignment { layers, bits_per_weight, loss })
}

impl Assignment {
    /// Makes `options` write this assignment.
    pub fn apply(&self, options: &mut ConvertOptions<'_>) {
        let mut counts: Vec<(&Higgs, usize)> = vec![];
        for higgs in self.layers.iter().filter_map(|layer| layer.higgs.as_ref()) {
            match counts.iter_mut().find(|(known, _)| *known == higgs) {
                Some((_, count)) => *count += 1,
                None => counts.push((higgs, 1)),
            }
        }
        let Some((most, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else {
            options.skip.extend(self.layers.iter().map(|layer| layer.module.clone()));
            return;
        };
        options.method = Method::Higgs(most.clone());
        for layer in &self.layers {
            match &layer.higgs {
                None => options.skip.push(layer.module.clone()),
                Some(higgs) if higgs == most => (),
                Some(higgs) => {
                    options.overrides.push((layer.module.clone(), Method::Higgs(higgs.clone())));
                }
            }
        }
    }

    /// How many layers took which choice.
    pub fn counts(&self) -> Vec<ChoiceCount> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for layer in &self.layers {
            let choice = match &layer.higgs {
                None => "dense".to_owned(),
                Some(higgs) => {
                    let format = Method::Higgs(higgs.clone()).format();
                    format!("{format}, p = {}", higgs.table().dim())
                }
            };
            *counts.entry(choice).or_default() += 1;
        }
        let count = |(choice, layers)| ChoiceCount { choice, layers };
        counts.into_iter().map(count).collect()
    }
}
