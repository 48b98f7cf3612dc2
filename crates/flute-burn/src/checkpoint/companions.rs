//! What belongs to a model beside its weights: tokenizer, settings, licences. Copied, never read.

use super::reader::Reader;
use super::writer::Writer;
use crate::error::{Error, Result};

/// Files copied byte for byte where they exist.
const COMPANIONS: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
];

/// Copies what belongs to a model beside its weights, its licence included.
pub(super) fn write_companions(reader: &Reader, writer: &Writer) -> Result<()> {
    for name in COMPANIONS {
        writer.copy_from(reader.dir(), name)?;
    }
    let entries = std::fs::read_dir(reader.dir()).map_err(Error::io("list", reader.dir()))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("list", reader.dir()))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let legal = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
        if legal.iter().any(|prefix| name.starts_with(prefix)) && entry.path().is_file() {
            writer.copy_from(reader.dir(), name)?;
        }
    }
    Ok(())
}
