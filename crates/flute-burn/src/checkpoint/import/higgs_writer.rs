//! HIGGS models written as transformers reads them; [`super::higgs`] has the tensors.
//!
//! Written are tiles of 32, the type that transformers computes in (f16 or bf16), and in `tune_metadata` a template of
//! such tiles, which FLUTE replaces by the fastest one when it loads the model on a GPU of another size. Padded layers
//! are written padded: so the format has them, though transformers 5 allocates unpadded ones and cannot load those.
//! Refused: weights that are not rotated, layers that differ (one line of `config.json` speaks for all), and groups
//! and shapes that transformers or FLUTE do not take.

use super::tiles::FluteTiles;
use super::{check_range, pairs_of};
use crate::checkpoint::layout::{Layout, stored_dtype};
use crate::checkpoint::writer::TensorSpec;
use crate::error::{Error, Result};
use flute_cube::{Bits, Dtype as Float, Format, Group, Quantized};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const PARTS: [&str; 4] = ["weight", "scales", "tables", "tables2"];
/// The GPU that templates are named for: an H100 or H200.
const NUM_SMS: u32 = 132;

/// What all modules of such a model share.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) struct HiggsWriter {
    format: Format,
    p: usize,
    block: Option<usize>,
    dtype: Float,
}

impl HiggsWriter {
    /// One for modules like that of `layout`, in `dtype`.
    pub(in crate::checkpoint) fn new(layout: &Layout, dtype: Float) -> Self {
        Self { format: layout.format, p: layout.dim, block: layout.hadamard_size, dtype }
    }

    /// Refuses a module that transformers could not read beside the others.
    pub(in crate::checkpoint) fn check(&self, module: &str, layout: &Layout) -> Result<()> {
        let refuse = |reason: String| {
            let what = format!("{module} in the HIGGS format of transformers");
            Err(Error::Unsupported { what, reason })
        };
        if module.ends_with("embed_tokens") {
            return refuse("its embedding is dense; this one is in codes".into());
        }
        let Some(block) = layout.hadamard_size else {
            return refuse("it has rotated weights; this is not rotated".into());
        };
        if let Some(seed) = layout.hadamard_seed {
            return refuse(format!("its rotations are plain; this has the random signs of {seed}"));
        }
        let own = Self::new(layout, self.dtype);
        if (own.format, own.p, own.block) != (self.format, self.p, self.block) {
            return refuse(format!(
                "all its layers are alike; this is {} and the first is {}",
                own.words(),
                self.words()
            ));
        }
        match layout.format.group {
            Group::Size(group @ (64 | 128 | 256)) if block.is_multiple_of(group as usize) => (),
            group => {
                let found = format!("this has {group} in blocks of {block}");
                return refuse(format!(
                    "its groups are 64, 128 or 256 and divide the block; {found}"
                ));
            }
        }
        FluteTiles::new(layout.format.bits).check(module, layout.n, layout.k)
    }

    fn words(&self) -> String {
        let Self { format, p, block, .. } = self;
        format!("{format} with p = {p}, rotated in blocks of {}", block.unwrap_or(1))
    }

    /// The tensors of `module`. `tables2` says F16 whatever its bits mean.
    pub(in crate::checkpoint) fn specs(&self, module: &str, layout: &Layout) -> Vec<TensorSpec> {
        let (Format { bits, group }, dtype) = (self.format, stored_dtype(self.dtype));
        let (n, k, codes) = (layout.n, layout.k, bits.codes());
        let shapes = [
            (Dtype::I16, vec![FluteTiles::new(bits).rows(n), k]),
            (dtype, vec![n, group.count(k)]),
            (dtype, vec![codes]),
            (Dtype::F16, vec![codes, codes, 2]),
        ];
        let spec = |(part, (dtype, shape))| {
            let name = format!("{module}.{part}");
            TensorSpec { name, dtype, shape }
        };
        PARTS.into_iter().zip(shapes).map(spec).collect()
    }

    /// The bytes of those tensors. Scales and grid are rounded to the type.
    pub(in crate::checkpoint) fn parts(
        &self,
        module: &str,
        weight: &Quantized,
    ) -> Result<Vec<(&'static str, Vec<u8>)>> {
        check_range(module, weight, self.dtype)?;
        let (bits, values) = (self.format.bits, weight.table().values());
        let tiles = FluteTiles::new(bits);
        let (codes, tables, tables2) = if self.p == 1 {
            let tables = self.dtype.encode(values);
            let pairs = pairs_of(&tables);
            (tiles.pack(weight.codes(), weight.n(), weight.k())?, tables, pairs)
        } else {
            let low = (bits.codes() - 1) as u8;
            let halves = weight.codes().iter().flat_map(|code| [code >> bits.get(), code & low]);
            let halves: Vec<u8> = halves.collect();
            // What FLUTE's own code leaves there; no kernel reads it.
            let counting: Vec<f32> = (0..bits.codes()).map(|index| index as f32).collect();
            let codes = tiles.pack(&halves, weight.n(), weight.k())?;
            (codes, self.dtype.encode(&counting), self.dtype.encode(values))
        };
        let bytes = [codes, self.dtype.encode(weight.scales()), tables, tables2];
        Ok(PARTS.into_iter().zip(bytes).collect())
    }

    /// The `quantization_config` of `layouts`; `dense` names the linear layers beside them.
    pub(in crate::checkpoint) fn config(
        &self,
        layouts: &BTreeMap<&str, Layout>,
        dense: &[String],
    ) -> Value {
        let Self { format, p, dtype, .. } = self;
        let (bits, block) = (format.bits, self.block.unwrap_or(1));
        let Group::Size(group) = format.group else { return Value::Null };
        let dtype = match dtype {
            Float::BF16 => "torch.bfloat16",
            _ => "torch.float16",
        };
        let tuned = |(module, layout): (&&str, &Layout)| {
            let entry = json!({
                "M": 1, "N": layout.n, "K": layout.k, "num_bits": bits.get(), "group_size": group,
                "num_sms": NUM_SMS, "dtype": dtype, "device": "cuda:0", "template_id": template(bits),
            });
            ((*module).to_owned(), entry)
        };
        json!({
            "quant_method": super::higgs::METHOD,
            "bits": bits.get(),
            "p": p,
            "modules_to_not_convert": dense,
            "hadamard_size": block,
            "group_size": group,
            "tune_metadata": layouts.iter().map(tuned).collect::<Map<String, Value>>(),
        })
    }
}

/// A template with tiles of 32.
fn template(bits: Bits) -> u32 {
    if bits == Bits::Four { 16 } else { 4 }
}
