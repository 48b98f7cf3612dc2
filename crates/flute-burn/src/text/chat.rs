//! Chat templates: programs in Jinja that a model's author wrote, run on a budget.
//!
//! The template is `chat_template.jinja`, else the key of `tokenizer_config.json` (a string, or named templates of
//! which `default` counts). It sees `messages`, `add_generation_prompt` and the special tokens that
//! `tokenizer_config.json` names, may call `raise_exception`, and reaches nothing else: no files, no environment, no
//! clock (`strftime_now` is not defined, and templates that know it test for that, so a prompt does not change from
//! day to day). Source, steps, memory and output are limited.

use crate::checkpoint::json::{read_bounded, read_value};
use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Bytes of a template that are read.
const SOURCE_LIMIT: u64 = 256 << 10;
/// Bytes of `tokenizer_config.json` that are read; some hold thousands of added tokens.
const CONFIG_LIMIT: u64 = 16 << 20;
/// Bytes of a rendered conversation beyond those of its messages.
const OUTPUT_LIMIT: usize = 4 << 20;
/// One unit is a step or 64 bytes made (minijinja), so this bounds time to well under a second and memory to 32 MB.
const FUEL: u64 = 500_000;
const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<&'static str, String>,
}

impl ChatTemplate {
    /// The template of the model in `dir`.
    ///
    /// # Errors
    /// [`Error::TemplateAbsent`], [`Error::Template`] if it does not parse, [`Error::FileTooLarge`], [`Error::Json`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config_path = dir.join("tokenizer_config.json");
        let config = read_value(&config_path, CONFIG_LIMIT)?.unwrap_or_default();
        let file = dir.join("chat_template.jinja");
        let source = match read_bounded(&file, SOURCE_LIMIT)? {
            Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            None => configured(&config, &config_path)?,
        };
        let source = source.ok_or_else(|| Error::TemplateAbsent { dir: dir.into() })?;
        let names = ["bos_token", "eos_token", "unk_token", "pad_token"];
        let token = |name| Some((name, token_text(config.get(name)?)?));
        Self::new(source, names.into_iter().filter_map(token).collect())
    }

    /// A template of `source`, which sees `tokens` (such as `bos_token`) as variables.
    ///
    /// # Errors
    /// [`Error::Template`] if it does not parse.
    pub fn new(source: String, tokens: BTreeMap<&'static str, String>) -> Result<Self> {
        let failed = |source| Error::Template { source };
        let mut environment = Environment::new();
        // Both as transformers sets them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Refused))
        });
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned(NAME, source).map_err(failed)?;
        Ok(Self { environment, tokens })
    }

    /// The conversation as markup; with `add_generation_prompt` it ends where the assistant begins to speak.
    ///
    /// Special tokens inside `messages` look like those of the template afterwards: what users wrote goes through
    /// [`super::Tokenizer::encode_chat`] instead.
    ///
    /// # Errors
    /// [`Error::TemplateRefused`] if the template raises an exception, [`Error::Template`] if it fails or exceeds its
    /// budget.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let turn = |m: &Message| {
            Value::from(BTreeMap::from([
                ("role", Value::from(&m.role)),
                ("content", Value::from(&m.content)),
            ]))
        };
        let mut context: BTreeMap<&str, Value> =
            self.tokens.iter().map(|(name, text)| (*name, Value::from(text))).collect();
        context.insert("messages", messages.iter().map(turn).collect());
        context.insert("add_generation_prompt", add_generation_prompt.into());
        let said: usize = messages.iter().map(|m| m.content.len()).sum();
        let mut output = Limited { bytes: vec![], limit: OUTPUT_LIMIT.saturating_add(said) };
        let template = self.environment.get_template(NAME).map_err(refusal)?;
        template.render_captured_to(Value::from(context), &mut output).map_err(refusal)?;
        Ok(String::from_utf8_lossy(&output.bytes).into_owned())
    }
}

/// Says that an error is what the template itself raised.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Refused;

fn refusal(source: minijinja::Error) -> Error {
    let mut cause = std::error::Error::source(&source);
    while let Some(error) = cause {
        if error.is::<Refused>() {
            return Error::TemplateRefused { message: source.detail().unwrap_or_default().into() };
        }
        cause = error.source();
    }
    Error::Template { source }
}

/// The template that `tokenizer_config.json` holds.
fn configured(config: &serde_json::Value, path: &Path) -> Result<Option<String>> {
    let named = |list: &Vec<serde_json::Value>| {
        let template = list.iter().find(|entry| entry["name"] == "default").or(list.first())?;
        template["template"].as_str().map(str::to_owned)
    };
    let source = match config.get("chat_template") {
        Some(serde_json::Value::String(source)) => Some(source.clone()),
        Some(serde_json::Value::Array(list)) => named(list),
        _ => None,
    };
    match source {
        Some(source) if source.len() as u64 > SOURCE_LIMIT => {
            let (found, limit) = (source.len() as u64, SOURCE_LIMIT);
            Err(Error::FileTooLarge { path: path.into(), found, limit })
        }
        source => Ok(source),
    }
}

/// A special token as `tokenizer_config.json` writes it: a string, or an object with its content.
fn token_text(value: &serde_json::Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// Takes at most `limit` bytes.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("the output exceeds {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
