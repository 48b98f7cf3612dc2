//! The model card: the `README.md` of a directory that conversion writes.
//!
//! It says what the model was made from, how, and how large it is. No date and no machine: the same conversion writes
//! the same bytes.

use super::convert::Summary;
use super::quantization::{QuantizationConfig, dtype_name};

/// What a card says.
pub(super) struct Card<'a> {
    /// Name of the source directory.
    pub(super) base: &'a str,
    pub(super) method: &'a str,
    pub(super) config: &'a QuantizationConfig,
    pub(super) summary: &'a Summary,
}

impl Card<'_> {
    pub(super) fn render(&self) -> String {
        let Self { base, method, config, summary } = self;
        let (scheme, scale) = (config.scheme, dtype_name(config.scale_dtype));
        let mut skipped = config.modules_to_not_convert.join(", ");
        if skipped.is_empty() {
            skipped.push_str("none");
        }
        let mut card = format!(
            "---\nlibrary_name: flute\nbase_model: {quoted}\nbase_model_relation: quantized\n\
             tags:\n- flute\n- lut-gemm\n- {bits}-bit\n---\n\n\
             # {base}, {bits} bits\n\n\
             Quantized with [FLUTE](https://github.com/flute-rs/flute): every linear layer but \
             those named below is stored as codes into a table, with one scale a group.\n\n\
             | | |\n|---|---|\n\
             | method | {method} |\n| table | {table} |\n| bits a code | {bits} |\n\
             | weights a scale | {group} |\n| scales | {scale} |\n| left dense | {skipped} |\n\
             | quantized layers | {quantized} |\n| bits a quantized weight | {rate:.3} |\n\
             | bytes of tensors | {after} (was {before}) |\n",
            // Quoted as JSON, which YAML is: a directory may be called anything.
            quoted = serde_json::Value::from(*base),
            bits = scheme.bits,
            table = scheme.table_name(),
            group = scheme.group,
            quantized = summary.quantized,
            rate = summary.bits_per_weight,
            after = summary.bytes_after,
            before = summary.bytes_before,
        );
        if let Some(size) = scheme.hadamard_size {
            card.push_str(&format!("| weights rotated together | {size} |\n"));
            if let Some(seed) = scheme.hadamard_seed {
                card.push_str(&format!("| seed of their signs | {seed} |\n"));
            }
        }
        if !config.modules.is_empty() {
            card.push_str(
                "\nModules that differ are listed in `quantization_config` of `config.json`.\n",
            );
        }
        card.push_str(
            "\n## Error of the weights\n\n| layers | count | relative squared error | largest |\n",
        );
        card.push_str("|---|---|---|---|\n");
        for class in &summary.classes {
            card.push_str(&format!(
                "| {} | {} | {:.3e} | {:.3e} |\n",
                class.class,
                class.layers,
                class.relative_error(),
                class.max_error
            ));
        }
        card.push_str(
            "\n## Use\n\n```console\n$ flute generate <this directory> -p \"Hello\"\n```\n",
        );
        card
    }
}
