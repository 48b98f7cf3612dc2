//! Reads a model directory: configuration at once, tensors one by one.
//!
//! [`Reader::open`] checks everything that can be checked without reading a tensor (configuration, index, headers,
//! offsets); after it, a tensor's bytes can be wrong, its place cannot. Nothing is kept between two tensors, so the
//! largest tensor, not the model, decides how much memory a conversion or a load takes.

use super::config::ModelConfig;
use super::generation::GenerationConfig;
use super::header::TensorInfo;
use super::import::Foreign;
use super::layout::Layout;
use super::positioned::read_exact_at;
use super::shards::Shards;
use crate::error::{Error, Result};
use flute_cube::pack::{self, Order};
use flute_cube::{Dtype as Float, PackedWeight, Quantized};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Elements that one thread reads and widens at a time; its bytes stay in a core's cache.
pub(super) const CHUNK: usize = 1 << 18;

/// A model directory, open.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    config: ModelConfig,
    source: Value,
    generation: GenerationConfig,
    shards: Shards,
    /// Whose format the quantized layers have, unless it is ours.
    pub(super) foreign: Option<Foreign>,
}

/// A tensor in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<f32>,
}

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its elements, row-major, little-endian.
    pub bytes: Vec<u8>,
}

/// A stored linear layer: `y = x · weightᵀ + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLinear {
    /// `[n, k]`.
    pub weight: StoredWeight,
    /// `[n]`.
    pub bias: Option<Vec<f32>>,
    /// Weights that were rotated together ([`crate::hadamard`]), if they were; the k of `weight` is padded to a multiple
    /// then, and x is to be padded and rotated like it.
    pub hadamard_size: Option<usize>,
    /// The seed of the signs that they, and x, take before, if the rotation is random ([`crate::hadamard::signs`]).
    pub hadamard_seed: Option<u32>,
}

/// A stored linear layer that is quantized, its weight in kernel order.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedLinear {
    /// Codes, scales and table.
    pub weight: PackedWeight,
    /// `[n]`.
    pub bias: Option<Vec<f32>>,
    /// As [`StoredLinear::hadamard_size`].
    pub hadamard_size: Option<usize>,
    /// As [`StoredLinear::hadamard_seed`].
    pub hadamard_seed: Option<u32>,
}

/// The weight of a stored linear layer.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredWeight {
    /// As its author trained it.
    Dense {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// `[n, k]`.
        data: Vec<f32>,
    },
    /// Codes, scales and table.
    Quantized(Quantized),
}

impl Reader {
    /// Opens `dir`, reads its configuration and checks its headers.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], those of [`ModelConfig::read`], and every variant of the sections *Safetensors
    /// headers* and *Shards* of [`Error`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(Error::NotADirectory { path: dir.into() });
        }
        let (config, source) = ModelConfig::read(dir)?;
        let generation = GenerationConfig::read(dir)?;
        let shards = Shards::open(dir)?;
        let codes = shards.tensors().find(|(name, _)| name.ends_with(".codes"));
        if let (None, Some((tensor, _))) = (&config.quantization, codes) {
            return Err(Error::QuantizationAbsent { dir: dir.into(), tensor: tensor.into() });
        }
        let foreign = Foreign::detect(dir, &config, &source)?;
        Ok(Self { dir: dir.into(), config, source, generation, shards, foreign })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// `config.json` as it stands, unknown fields included.
    pub fn config_source(&self) -> &Value {
        &self.source
    }

    /// How its author means it to be sampled.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Tokens that end a sequence: those of `generation_config.json`, else those of `config.json`.
    pub fn stop_token_ids(&self) -> &[u32] {
        match self.generation.eos_token_ids.as_slice() {
            [] => &self.config.eos_token_ids,
            ids => ids,
        }
    }

    /// All tensors, sorted by name, with what the headers say of them.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.shards.tensors()
    }

    /// The names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|(name, _)| name)
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.shards.find(name).is_some()
    }

    /// Dtype, shape and place of a tensor.
    ///
    /// # Errors
    /// [`Error::TensorAbsent`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.find(name).map(|(_, _, info)| info)
    }

    /// The weight files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.paths()
    }

    /// A tensor as it is stored.
    ///
    /// # Errors
    /// [`Error::TensorAbsent`], [`Error::Io`].
    pub fn raw(&self, name: &str) -> Result<RawTensor> {
        let (path, file, info) = self.find(name)?;
        let mut bytes = vec![0; info.bytes as usize];
        read_exact_at(file, &mut bytes, info.offset).map_err(Error::io("read", path))?;
        Ok(RawTensor { dtype: info.dtype, shape: info.shape.clone(), bytes })
    }

    /// Hands a tensor's bytes to `sink` piece by piece, in order.
    ///
    /// # Errors
    /// [`Error::TensorAbsent`], [`Error::Io`], and what `sink` returns.
    pub fn stream(&self, name: &str, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (path, file, info) = self.find(name)?;
        let mut buffer = vec![0; info.bytes.min(8 << 20) as usize];
        let mut at = 0;
        while at < info.bytes {
            let len = (info.bytes - at).min(buffer.len() as u64) as usize;
            let piece = &mut buffer[..len];
            read_exact_at(file, piece, info.offset + at).map_err(Error::io("read", path))?;
            sink(piece)?;
            at += len as u64;
        }
        Ok(())
    }

    /// A float tensor of any shape, widened to f32.
    ///
    /// # Errors
    /// [`Error::TensorAbsent`], [`Error::TensorDtype`] unless it is F32, F16 or BF16, [`Error::Io`].
    pub fn tensor(&self, name: &str) -> Result<HostTensor> {
        let (path, file, info) = self.find(name)?;
        let float = float_dtype(name, info.dtype)?;
        let mut data = vec![0.0; info.shape.iter().product()];
        let read = |words: &mut Vec<u16>, (index, out): (usize, &mut [f32])| {
            let offset = info.offset + (index * CHUNK * float.size()) as u64;
            read_floats(file, offset, float, words, out).map_err(Error::io("read", path))
        };
        data.par_chunks_mut(CHUNK).enumerate().try_for_each_init(Vec::new, read)?;
        Ok(HostTensor { shape: info.shape.clone(), data })
    }

    /// The linear layer `module`, dense or quantized, with its bias if it has one.
    ///
    /// # Errors
    /// [`Error::TensorAbsent`], [`Error::TensorDtype`], [`Error::TensorShape`], [`Error::Ambiguous`],
    /// [`Error::Module`], [`Error::NotFinite`] for scales and tables, [`Error::Io`].
    pub fn linear(&self, module: &str) -> Result<StoredLinear> {
        let (dense, codes) = (format!("{module}.weight"), format!("{module}.codes"));
        let weight = match (self.contains(&dense), self.contains(&codes)) {
            (true, true) => return Err(Error::Ambiguous { module: module.into() }),
            _ if self.is_quantized(module) => StoredWeight::Quantized(self.quantized(module)?),
            _ => {
                let [n, k] = self.dims(&dense, "[n, k]")?;
                StoredWeight::Dense { n, k, data: self.tensor(&dense)?.data }
            }
        };
        let (hadamard_size, hadamard_seed) = match &weight {
            StoredWeight::Dense { .. } => (None, None),
            StoredWeight::Quantized(_) => {
                let layout = self.layout(module)?;
                (layout.hadamard_size, layout.hadamard_seed)
            }
        };
        let n = match &weight {
            StoredWeight::Dense { n, .. } => *n,
            StoredWeight::Quantized(weight) => weight.n(),
        };
        Ok(StoredLinear { weight, bias: self.bias(module, n)?, hadamard_size, hadamard_seed })
    }

    /// The quantized linear layer `module`, its weight in kernel order: what [`Reader::linear`] gives, packed.
    ///
    /// # Errors
    /// As [`Reader::linear`]; [`Error::TensorAbsent`] for a layer that is not quantized.
    pub fn packed(&self, module: &str) -> Result<PackedLinear> {
        self.check_one_form(module)?;
        let weight = self.packed_weight(module)?;
        let bias = self.bias(module, weight.n)?;
        let Layout { hadamard_size, hadamard_seed, .. } = self.layout(module)?;
        Ok(PackedLinear { weight, bias, hadamard_size, hadamard_seed })
    }

    /// The quantized linear layers `modules`, which have one input, as one layer, their rows in `order`. None if formats,
    /// tables or rotations differ, if some alone have a bias, or if rows end where [`PackedWeight::stack`] says they must not.
    ///
    /// # Errors
    /// As [`Reader::packed`].
    pub fn packed_stack(&self, modules: &[String], order: Order) -> Result<Option<PackedLinear>> {
        let mut layouts = vec![];
        for module in modules {
            self.check_one_form(module)?;
            layouts.push(self.layout(module)?);
        }
        let rotation = |layout: &Layout| (layout.hadamard_size, layout.hadamard_seed);
        let Some((hadamard_size, hadamard_seed)) = layouts.first().map(rotation) else {
            return Ok(None);
        };
        let biases =
            modules.iter().zip(&layouts).map(|(module, layout)| self.bias(module, layout.n));
        let biases: Vec<_> = biases.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let alike = layouts.windows(2).all(|two| rotation(&two[0]) == rotation(&two[1]));
        if !alike || ![0, modules.len()].contains(&biases.len()) {
            return Ok(None);
        }
        let bias = match (biases.as_slice(), order) {
            ([], _) => None,
            ([first, second], Order::ByTurns) => Some(pack::by_turns(first, second, 1)),
            _ => Some(biases.concat()),
        };
        let weight = self.packed_stack_weight(modules, order)?;
        Ok(weight.map(|weight| PackedLinear { weight, bias, hadamard_size, hadamard_seed }))
    }

    /// Refuses a module that is stored both dense and quantized.
    fn check_one_form(&self, module: &str) -> Result<()> {
        match self.contains(&format!("{module}.weight"))
            && self.contains(&format!("{module}.codes"))
        {
            true => Err(Error::Ambiguous { module: module.into() }),
            false => Ok(()),
        }
    }

    /// The bias of the linear layer `module` of `n` features, if it has one.
    fn bias(&self, module: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let bias = format!("{module}.bias");
        if !self.contains(&bias) {
            return Ok(None);
        }
        let [len] = self.dims(&bias, "[n]")?;
        if len != n {
            return Err(shape_error(&bias, &[len], format!("[{n}]")));
        }
        Ok(Some(self.tensor(&bias)?.data))
    }

    /// A float tensor whose values are all finite.
    pub(super) fn finite(&self, name: &str) -> Result<Vec<f32>> {
        let HostTensor { shape, data } = self.tensor(name)?;
        // By chunks: a parallel search looks at a shared flag with every item.
        let broken = |chunk: &[f32]| !chunk.iter().all(|value| value.is_finite());
        let Some(chunk) = data.par_chunks(CHUNK).position_first(broken) else { return Ok(data) };
        let rest = data[chunk * CHUNK..].iter().position(|value| !value.is_finite());
        let index = chunk * CHUNK + rest.unwrap_or(0);
        let width = shape.last().copied().unwrap_or(1).max(1);
        let (row, col, value) = (index / width, index % width, data[index]);
        Err(Error::NotFinite { tensor: name.into(), row, col, value })
    }

    pub(super) fn dims<const D: usize>(&self, name: &str, needed: &str) -> Result<[usize; D]> {
        let shape = &self.info(name)?.shape;
        shape.as_slice().try_into().map_err(|_| shape_error(name, shape, needed.into()))
    }

    pub(super) fn find(&self, name: &str) -> Result<(&Path, &File, &TensorInfo)> {
        let absent = || Error::TensorAbsent { dir: self.dir.clone(), tensor: name.into() };
        self.shards.find(name).ok_or_else(absent)
    }
}

/// The float type of a tensor, or the refusal of any other type.
pub(super) fn float_dtype(name: &str, dtype: Dtype) -> Result<Float> {
    match dtype {
        Dtype::F32 => Ok(Float::F32),
        Dtype::F16 => Ok(Float::F16),
        Dtype::BF16 => Ok(Float::BF16),
        found => Err(Error::TensorDtype {
            tensor: name.into(),
            found: found.to_string(),
            needed: "F32, F16 or BF16",
        }),
    }
}

pub(super) fn shape_error(tensor: &str, found: &[usize], needed: String) -> Error {
    Error::TensorShape { tensor: tensor.into(), found: found.into(), needed }
}

/// Reads `out.len()` floats at `offset`; `words` is scratch.
pub(super) fn read_floats(
    file: &File,
    offset: u64,
    float: Float,
    words: &mut Vec<u16>,
    out: &mut [f32],
) -> std::io::Result<()> {
    if float == Float::F32 {
        read_exact_at(file, bytemuck::cast_slice_mut(out), offset)?;
        out.iter_mut().for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
        return Ok(());
    }
    words.resize(out.len(), 0);
    read_exact_at(file, bytemuck::cast_slice_mut(words), offset)?;
    words.iter_mut().for_each(|word| *word = u16::from_le(*word));
    if float == Float::F16 {
        words.reinterpret_cast::<f16>().convert_to_f32_slice(out);
    } else {
        let widen = |(out, word): (&mut f32, &u16)| *out = f32::from_bits(u32::from(*word) << 16);
        out.iter_mut().zip(words.iter()).for_each(widen);
    }
    Ok(())
}
