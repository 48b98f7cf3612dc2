//! `tokenizer.json`, through the `tokenizers` crate.
//!
//! Who wrote a text decides how it is read. In a user's text, `<|eot_id|>` is eight characters that spell a token, not
//! the token: [`Tokenizer::encode`] keeps it text. In markup that a program wrote it is the token:
//! [`Tokenizer::encode_markup`]. A conversation is both, and [`Tokenizer::encode_chat`] keeps them apart. Refused:
//! SentencePiece files alone; truncation and padding that the file asks for are dropped, since a prompt cut in silence
//! is worse than one refused.

use super::chat::{ChatTemplate, Message};
use super::detokenizer::Detokenizer;
use crate::checkpoint::json::read_bounded;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;
use std::sync::OnceLock;

/// Bytes of `tokenizer.json` that are read.
const LIMIT: u64 = 64 << 20;

/// Marks a special token in a user's text while a template runs over it. It is a noncharacter: no text has it, no
/// filter of a template touches it.
const MARK: char = '\u{FDD0}';

/// Text to tokens and back.
pub struct Tokenizer {
    /// Special tokens in a text stay text.
    plain: tokenizers::Tokenizer,
    /// Special tokens in a text are tokens; made when first needed.
    markup: OnceLock<Box<tokenizers::Tokenizer>>,
    /// Special tokens and their ids, longest first.
    special: Vec<(String, u32)>,
}

impl Tokenizer {
    /// Reads the `tokenizer.json` of `dir`.
    ///
    /// # Errors
    /// [`Error::TokenizerAbsent`], [`Error::FileTooLarge`], [`Error::Tokenizer`], [`Error::Io`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("tokenizer.json");
        match read_bounded(&path, LIMIT)? {
            Some(bytes) => Self::from_bytes(&bytes),
            None => Err(Error::TokenizerAbsent { path }),
        }
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut plain = tokenizers::Tokenizer::from_bytes(bytes).map_err(failed("be read"))?;
        plain.with_truncation(None).map_err(failed("be read"))?.with_padding(None);
        plain.set_encode_special_tokens(true);
        if let Some(processor) = plain.get_post_processor() {
            let processor =
                serde_json::to_value(processor).map_err(|e| failed("be read")(e.into()))?;
            check_processor(&processor).map_err(|e| failed("be read")(e.into()))?;
        }
        let tokens = plain.get_added_tokens_decoder().into_iter();
        let special = tokens.filter(|(_, token)| token.special && !token.content.is_empty());
        let mut special: Vec<_> = special.map(|(id, token)| (token.content, id)).collect();
        special.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        Ok(Self { plain, markup: OnceLock::new(), special })
    }

    /// Tokens of a user's `text`, in which special tokens are text. With `add_special`, what the tokenizer puts around
    /// a text (such as the first token of a sequence) is added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        ids(&self.plain, text, add_special)
    }

    /// Tokens of `markup` that a program wrote, in which special tokens are tokens. Not for text from users.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_markup(&self, markup: &str, add_special: bool) -> Result<Vec<u32>> {
        let tokenizer = self.markup.get_or_init(|| {
            let mut markup = Box::new(self.plain.clone());
            markup.set_encode_special_tokens(false);
            markup
        });
        ids(tokenizer, markup, add_special)
    }

    /// Tokens of a conversation: the template's special tokens are tokens, those inside roles and contents are text.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]; [`Error::Tokenizer`].
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let marked: Vec<Message> = messages
            .iter()
            .map(|m| Message { role: self.mark(&m.role), content: self.mark(&m.content) })
            .collect();
        let text = template.render(&marked, add_generation_prompt)?;
        if !text.contains(MARK) {
            return self.encode_markup(&text, false);
        }
        // Only here pieces are encoded apart, which a tokenizer that looks across them could tell.
        let (mut tokens, mut rest) = (vec![], text.as_str());
        while let Some((at, token, id)) = self.next_special(rest) {
            tokens.extend(self.encode(&rest[..at].replace(MARK, ""), false)?);
            tokens.push(id);
            rest = &rest[at + token.len()..];
        }
        tokens.extend(self.encode(&rest.replace(MARK, ""), false)?);
        Ok(tokens)
    }

    /// Text of `tokens`; with `skip_special` without special tokens. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        self.plain.decode(tokens, skip_special).map_err(failed("decode"))
    }

    /// A detokenizer for tokens that arrive one by one, special tokens skipped.
    pub fn stream(&self) -> Detokenizer<'_> {
        Detokenizer::new(self)
    }

    /// The id of a token, special or not.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.plain.token_to_id(token)
    }

    /// Tokens that exist, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.plain.get_vocab_size(true)
    }

    /// `text` with a mark inside every special token.
    fn mark(&self, text: &str) -> String {
        let mut rest = &*text.replace(MARK, "");
        let mut marked = String::with_capacity(rest.len());
        while let Some((at, token, _)) = self.next_special(rest) {
            let first = token.chars().next().map_or(0, char::len_utf8);
            marked.push_str(&rest[..at + first]);
            marked.push(MARK);
            // What follows the first character may begin another special token.
            rest = &rest[at + first..];
        }
        marked.push_str(rest);
        marked
    }

    /// The first special token of `text`, the longest one where several begin, with its place and id.
    fn next_special<'a>(&'a self, text: &str) -> Option<(usize, &'a str, u32)> {
        let found =
            self.special.iter().filter_map(|(token, id)| Some((text.find(token)?, token, *id)));
        // `special` is sorted by length, and of equal places the first is kept.
        found.min_by_key(|(at, ..)| *at).map(|(at, token, id)| (at, token.as_str(), id))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str, add_special: bool) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, add_special).map_err(failed("encode"))?;
    Ok(encoding.get_ids().to_vec())
}

/// Refuses a post-processor whose templates name special tokens that it does not define: the crate reads it and panics
/// at the first text.
fn check_processor(processor: &Value) -> Result<(), String> {
    for processor in processor["processors"].as_array().into_iter().flatten() {
        check_processor(processor)?;
    }
    for piece in ["single", "pair"].iter().filter_map(|side| processor[side].as_array()).flatten() {
        if let Some(id) = piece["SpecialToken"]["id"].as_str()
            && processor["special_tokens"].get(id).is_none()
        {
            return Err(format!("its post-processor names the undefined special token '{id}'"));
        }
    }
    Ok(())
}

fn failed(action: &'static str) -> impl FnOnce(tokenizers::Error) -> Error {
    move |source| Error::Tokenizer { action, source }
}
