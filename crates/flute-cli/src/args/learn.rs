//! What `flute quantize --learn-scales` takes.

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use flute_burn::learn::What;
use flute_burn::learn::text::Objective;

/// Training of what codes do not hold.
#[derive(Debug, Args)]
#[command(next_help_heading = "Learning")]
pub(crate) struct LearnArgs {
    /// Train the scales on --text after quantizing; codes and size stay. An interrupted run goes on
    /// when the same command is given again
    #[arg(
        long,
        requires = "text",
        env = "FLUTE_LEARN_SCALES",
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) learn_scales: bool,

    /// Train the tables too, every layer its own
    #[arg(
        long,
        requires = "learn_scales",
        env = "FLUTE_LEARN_TABLES",
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) learn_tables: bool,

    /// What to learn: to predict what the dense model does, which takes its memory too and less
    /// text, or to predict the text
    #[arg(long, default_value = "dense", value_name = "WHAT", env = "FLUTE_OBJECTIVE")]
    pub(crate) objective: ObjectiveArg,

    /// Windows of the text to train on, spread evenly over it
    #[arg(long, default_value_t = 128, value_name = "N", env = "FLUTE_SAMPLES")]
    pub(crate) samples: usize,

    /// Tokens of a window; the model's context if that is shorter
    #[arg(long, default_value_t = 2048, value_name = "TOKENS", env = "FLUTE_SEQ_LEN")]
    pub(crate) seq_len: usize,

    /// Rate of the first step, as a fraction of a scale; it falls to 0
    #[arg(long, default_value_t = flute_burn::learn::RATE, value_name = "RATE", env = "FLUTE_LR")]
    pub(crate) lr: f64,

    /// Passes over the windows
    #[arg(long, default_value_t = 1, value_name = "N", env = "FLUTE_EPOCHS")]
    pub(crate) epochs: usize,
}

/// What a model learns to predict.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ObjectiveArg {
    Dense,
    Text,
}

impl From<ObjectiveArg> for Objective {
    fn from(objective: ObjectiveArg) -> Self {
        match objective {
            ObjectiveArg::Dense => Self::Dense,
            ObjectiveArg::Text => Self::Text,
        }
    }
}

impl LearnArgs {
    /// What is trained.
    pub(crate) fn what(&self) -> What {
        if self.learn_tables { What::ScalesAndTables } else { What::Scales }
    }
}
