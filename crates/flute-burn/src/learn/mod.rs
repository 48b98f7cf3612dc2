//! Learned Normal Float: scales that are trained, of codes that stay (FLUTE, arXiv 2407.10960, §4.2).
//!
//! Codes are fixed where round-to-nearest put them; a scale learns through the product alone: its gradient is that of
//! the weights which share it, times their table values. What is stored does not change, nor does what it costs to run.
//! Tables can be learned beside the scales, where the caller asks for it. Any module of Burn that holds
//! [`FluteLinear`](crate::linear::FluteLinear)s can learn:
//!
//! - [`Learner`] does the steps: loss, gradients, [`Relative`] Adam, and its state in a file.
//! - [`text`] feeds it the windows of a text and a [`Model`](crate::model::Model).
//! - [`directory`] does all of it from a dense directory to a quantized one, and goes on where it was interrupted.
//! - [`trainable`] alone prepares a module for a loop and an optimizer of one's own.
//!
//! Refused: modules without such layers, a loss that is not finite, a state that belongs to another run.

pub mod directory;
mod learner;
mod relative;
mod selection;
mod state;
pub mod text;
mod ties;
mod values;

pub use learner::{LearnOptions, Learner, RATE};
pub use relative::Relative;
pub use selection::{What, frozen, trainable};
pub use values::{LearnedWeight, learned_weight};
