//! A model that is loaded and answers, its text appearing on stdout as it is made.

use crate::args::{RuntimeArgs, SamplingArgs};
use crate::stop::StopText;
use crate::{output, progress};
use flute_burn::checkpoint::Reader;
use flute_burn::device;
use flute_burn::generate::{Finish, GenerateOptions, generate};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::sample::Sampling;
use flute_burn::text::Tokenizer;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

/// A model, its tokenizer, and how much is said about them on stderr.
pub(crate) struct Session {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    quiet: bool,
}

impl Session {
    /// Loads `dir`. What can be refused without loading weights is refused first.
    pub(crate) fn open(dir: &Path, args: &RuntimeArgs, quiet: bool) -> anyhow::Result<Self> {
        Reader::open(dir)?;
        let tokenizer = Tokenizer::open(dir)?;
        let mut options = LoadOptions::new(device::parse(&args.device)?);
        options.dtype = args.dtype.into();
        options.dequantize = args.dequantize;
        let bar = progress::steps(quiet, "blocks").with_message("loading");
        let model = Model::load_with(dir, &options, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let session = Self { model, tokenizer, quiet };
        tracing::debug!("loaded {} on {}", dir.display(), session.place());
        Ok(session)
    }

    /// Device and type of activations, in words.
    pub(crate) fn place(&self) -> String {
        format!("{} in {}", device::name(self.model.device()), self.model.dtype().name())
    }

    /// Continues `prompt` on stdout and returns the text.
    pub(crate) fn reply(&self, prompt: &[u32], args: &SamplingArgs) -> anyhow::Result<String> {
        let options = GenerateOptions {
            max_new_tokens: args.max_tokens,
            sampling: args.into(),
            graph: !args.graph.off,
            ..Default::default()
        };
        let start = Instant::now();
        let mut generation = generate(&self.model, prompt, &options)?;
        let (mut pieces, mut stop) = (self.tokenizer.stream(), StopText::new(&args.stop));
        let (mut text, mut times, mut ended) = (String::new(), vec![], false);
        while !ended && let Some(token) = generation.next() {
            times.push(start.elapsed().as_secs_f64());
            let piece = pieces.push(token?.id)?.unwrap_or_default();
            ended = show(stop.push(&piece), &mut text)?;
        }
        if !ended {
            let rest = pieces.finish()?.unwrap_or_default();
            if !show(stop.push(&rest), &mut text)? {
                show((stop.finish(), true), &mut text)?;
            }
        }
        output::line("")?;
        if !self.quiet {
            self.tell(prompt.len(), &times, generation.finish());
        }
        Ok(text)
    }

    /// Speed and the reason of the end. `times` are the seconds at which the tokens came.
    fn tell(&self, prompt: usize, times: &[f64], finish: Option<Finish>) {
        let [first, .., last] = times else { return };
        let rate = (times.len() - 1) as f64 / (last - first);
        let end = match finish {
            Some(Finish::Context) => ", the context is full",
            Some(Finish::Length) => ", the limit of --max-tokens",
            Some(Finish::Stop(_)) | None => "",
        };
        let place = self.place();
        let speed = format!("{prompt} tokens read in {first:.2} s, {rate:.1} tokens/s written");
        // Nothing is lost where nobody reads stderr.
        let _ = writeln!(io::stderr().lock(), "[{place}: {speed}{end}]");
    }
}

/// Shows and keeps a piece of text; passes on whether it was the last.
fn show((piece, ended): (String, bool), text: &mut String) -> anyhow::Result<bool> {
    output::piece(&piece)?;
    text.push_str(&piece);
    Ok(ended)
}

impl From<&SamplingArgs> for Sampling {
    fn from(args: &SamplingArgs) -> Self {
        let SamplingArgs { temperature, top_k, top_p, min_p, seed, .. } = *args;
        Self { temperature, top_k, top_p, min_p, seed }
    }
}
