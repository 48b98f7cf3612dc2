//! FLUTE for Burn: linear layers in 2, 3 and 4 bits, the models that hold them, and the files they live in.
//!
//! Weights are codes into a table (integers, small floats, Normal Float, your own) with one scale a group. On a GPU
//! they stay codes: the kernels of [`flute_cube`] multiply by them as they are. On a machine without a GPU everything
//! runs too, on Burn's Flex backend, slower.
//!
//! # Quick start
//!
//! One layer of your own model:
//!
//! ```
//! use burn::nn::LinearConfig;
//! use burn::tensor::{Distribution, Tensor};
//! use flute_burn::linear::FluteLinear;
//! use flute_burn::quantize::Method;
//! use flute_cube::{Bits, Group, Table};
//!
//! let device = flute_burn::device::parse("cpu")?; // or "auto", "cuda:0", "vulkan", "wgpu"
//! let dense = LinearConfig::new(256, 512).init(&device);
//! let method = Method::Absmax { table: Table::nf(Bits::Four), group: Group::Size(64) };
//! let linear = FluteLinear::from_linear(&dense, &method)?;
//!
//! let x = Tensor::<3>::random([2, 10, 256], Distribution::Default, &device);
//! assert_eq!(linear.forward(x).dims(), [2, 10, 512]);
//! # Ok::<(), flute_burn::error::Error>(())
//! ```
//!
//! A whole model, from a directory in Hugging Face layout, dense or quantized:
//!
//! ```no_run
//! use flute_burn::{device, generate::{self, GenerateOptions}, model::{LoadOptions, Model}, text::Tokenizer};
//! use std::path::Path;
//!
//! let dir = Path::new("Llama-3.2-1B-nf4");
//! let model = Model::load(dir, &LoadOptions::new(device::parse("auto")?))?;
//! let tokenizer = Tokenizer::open(dir)?;
//! let prompt = tokenizer.encode("The capital of France is", true)?;
//! let mut stream = tokenizer.stream();
//! for token in generate::generate(&model, &prompt, &GenerateOptions::default())? {
//!     print!("{}", stream.push(token?.id)?.unwrap_or_default());
//! }
//! # Ok::<(), flute_burn::error::Error>(())
//! ```
//!
//! # Crate map
//!
//! - [`mod@linear`]: [`FluteLinear`](linear::FluteLinear), a Burn module, and [`AnyLinear`](linear::AnyLinear), which is
//!   dense or quantized.
//! - [`mod@module`]: any Burn module on FLUTE weights: [`quantize_module`] and the function [`linear()`].
//! - [`op`]: the operation under it, for tensors of your own; [`mod@dequantize`]: back to a dense weight.
//! - [`mod@dense`]: few rows times a dense weight.
//! - [`rows`](mod@rows): rows of a packed weight, as an embedding looks them up.
//! - [`device`]: devices by name, and what this machine has.
//! - [`quantize`]: from weights to codes.
//! - [`sensitivity`]: how much each layer of a model matters.
//! - [`hadamard`]: the rotation that some weights need of their activations.
//! - [`fused`]: what a decoding model does between its products, in one launch each.
//! - [`mod@choose`]: the likeliest token, put where the next step reads it; [`mod@lend`]: its buffer, for the host.
//! - [`checkpoint`]: reading and writing model directories, and converting dense ones.
//! - [`model`]: LLaMA, its kin and Gemma-2, and the cache of a sequence.
//! - [`text`]: tokenizer, incremental detokenizer, chat template.
//! - [`sample`], [`generate`](mod@generate): from logits to tokens.
//! - [`eval`]: the perplexity of a text; [`mod@compare`]: that of a model quantized in many ways.
//! - [`bench`](mod@bench): the speed of a model, and what bounds it.
//! - [`error`]: the one error of all of them.
//!
//! # Features
//!
//! A program turns on the runtimes that it links; each loads its driver when it is first used, so a program built with
//! all of them runs on machines without.
//!
//! - `cuda`: NVIDIA GPUs, the fast path.
//! - `wgpu`: any GPU, shaders in WGSL.
//! - `vulkan`: `wgpu`, with shaders in SPIR-V on Vulkan.
//! - `metal`: `wgpu`, with shaders in MSL on Metal.
//! - `rocm`: AMD GPUs.
//! - `fusion` (default): Burn's kernel fusion around the operation.

#![deny(unsafe_code)]

pub mod bench;
pub mod checkpoint;
pub mod choose;
pub mod compare;
pub mod dense;
pub mod dequantize;
pub mod device;
pub mod error;
pub mod eval;
pub mod fused;
pub mod generate;
pub mod hadamard;
pub mod learn;
pub mod lend;
pub mod linear;
pub mod model;
pub mod module;
pub mod op;
pub mod quantize;
pub mod rows;
pub mod sample;
pub mod sensitivity;
pub mod text;

pub use module::{QuantizeConfig, linear, quantize_module};
