//! Text to tokens and back: tokenizer, incremental detokenizer, chat template.
//!
//! All three come from a model's directory and are untrusted: their files are bounded, a template runs on a budget
//! and reaches neither files nor environment, and special tokens that a user types stay text.

mod chat;
mod detokenizer;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use detokenizer::Detokenizer;
pub use tokenizer::Tokenizer;
