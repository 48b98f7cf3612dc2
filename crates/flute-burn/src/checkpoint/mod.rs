//! Model directories: the Hugging Face layout, and ours.
//!
//! Read: dense directories (`config.json`, `model.safetensors` or shards with an index) and quantized ones, in which
//! `X.weight` is replaced by
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `X.codes` | U8 | `[n, row bytes]` | codes in canonical order ([`flute_cube::pack`]) |
//! | `X.scales` | F16, BF16 or F32 | `[n, groups]` | one factor a group |
//! | `X.table` | F32 | `[2^bits]` or `[2^(2·bits), 2]` | what codes name |
//!
//! and whose `config.json` has a [`QuantizationConfig`]. Nothing in such a directory depends on a device. Quantized
//! directories of other programs are read too ([`import`]). Written, whole or not at all: ours from dense weights, by
//! [`convert()`], and any of the formats of [`Target`] from quantized ones, by [`export()`].
//!
//! Directories are untrusted: everything is checked before it is allocated, no path leaves the directory, nothing in
//! it is executed (pickles are refused), and each way of being wrong is its own [`crate::error::Error`].

mod architecture;
mod budget;
mod card;
mod companions;
mod config;
mod convert;
mod export;
mod floats;
mod generation;
mod header;
pub mod import;
mod inspect;
pub(crate) mod json;
mod layout;
mod measure;
mod modules;
pub mod pattern;
mod positioned;
mod quantization;
mod raw;
mod reader;
pub(crate) mod revise;
mod rope;
pub mod shapes;
mod shards;
mod writer;

pub use architecture::Architecture;
pub use budget::{AssignedLayer, Assignment, BudgetOptions, ChoiceCount, assign};
pub use config::{Activation, ModelConfig};
pub use convert::{ConvertOptions, Progress, ScaleDtype, Summary, convert};
pub use export::{ExportOptions, Exported, Target, export};
pub use generation::GenerationConfig;
pub use header::{MAX_HEADER, MAX_RANK, MAX_TENSORS, TensorInfo};
pub use inspect::{InspectedLinear, InspectedTensor, Inspection, inspect};
pub use measure::ClassError;
pub use quantization::{ModuleOverride, QuantizationConfig, Scheme};
pub use reader::{HostTensor, PackedLinear, RawTensor, Reader, StoredLinear, StoredWeight};
pub use rope::{Rope, RopeScaling};
pub use writer::{TensorSpec, Writer, WriterOptions};
