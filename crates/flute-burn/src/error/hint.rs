//! The next step after an error, where there is one.

use super::Error;
use std::io;

impl Error {
    /// What the user can do about it, in one sentence; flags are those of the `flute` command.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space; what was written so far has been removed"
            }
            Self::NotADirectory { path }
                if path.extension().is_some_and(|e| e == "safetensors") =>
            {
                "name the directory that holds the file, with its config.json and tokenizer.json"
            }
            Self::NotADirectory { .. } | Self::FileAbsent { .. } => {
                "a model is a directory of config.json, tokenizer.json and *.safetensors"
            }
            Self::Pickle { .. } => "download the safetensors variant of the model, or convert it",
            Self::WeightsAbsent { .. } | Self::ShardAbsent { .. } => {
                "the download is probably incomplete; fetch the missing files"
            }
            Self::HeaderTruncated { .. }
            | Self::OutOfFile { .. }
            | Self::TensorGap { .. }
            | Self::IndexMismatch { .. } => {
                "the file is truncated or damaged; fetch it again and compare its checksum"
            }
            Self::PathEscapes { .. } => {
                "weights are read from the model's own directory alone; do not use this model"
            }
            Self::NotFinite { .. } => {
                "the checkpoint is damaged or diverged in training; check it, or --skip the layer"
            }
            Self::ScaleOverflow { .. } => "store scales in bf16 or f32 (--scale-dtype)",
            Self::AlreadyQuantized { .. } => "quantize the dense model it was made from",
            Self::PackedShape { .. } => {
                "its kernels serve no other shape; this program's format (--to flute) holds any"
            }
            Self::NotQuantized { .. } => "quantize it first: flute quantize <DIR> -o <DIR>",
            Self::NothingToQuantize { .. } => "shorten the skip list",
            Self::PatternUnmatched { .. } => {
                "name modules or parts of them: down_proj, layers.0, model.layers.*.self_attn.*"
            }
            Self::TargetExists { .. } => "choose another directory, or replace this with --force",
            Self::TargetForeign { .. } => "choose a directory that does not exist yet",
            Self::TokenizerAbsent { .. } => {
                "fetch tokenizer.json; tokenizer.model alone (SentencePiece) is not read"
            }
            Self::TemplateAbsent { .. } => {
                "this is probably a base model: generate from a plain prompt instead of chatting"
            }
            Self::Template { source } if source.kind() == minijinja::ErrorKind::OutOfFuel => {
                "the template runs too long to be honest; read chat_template.jinja"
            }
            Self::LearnState { .. } => {
                "repeat that run's options, or delete the file to begin anew"
            }
            Self::LossNotFinite { .. } => "learn more slowly (--lr)",
            Self::PromptTooLong { .. } => "shorten the prompt",
            Self::EmptyPrompt => "give some text with -p",
            Self::PoolFull { .. } | Self::BatchFull { .. } => {
                "release a sequence that has ended, or make a larger cache"
            }
            Self::UnknownDevice { .. } | Self::DeviceAbsent { .. } => {
                "`flute doctor` lists the devices of this machine"
            }
            Self::DeviceFailed { .. } => {
                "a failed device stays failed until the process ends; start again, or --device cpu"
            }
            Self::NotRecorded { .. } => "compute steps one by one (--no-graph)",
            _ => return None,
        };
        Some(hint.into())
    }
}
