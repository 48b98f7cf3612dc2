//! Model directories: what is read, what is written, and what is refused.

#[path = "checkpoint/bad_config.rs"]
mod bad_config;
#[path = "checkpoint/bad_tensors.rs"]
mod bad_tensors;
#[path = "checkpoint/bad_weights.rs"]
mod bad_weights;
#[path = "checkpoint/conversion.rs"]
mod conversion;
#[path = "checkpoint/damage.rs"]
mod damage;
#[path = "checkpoint/families.rs"]
mod families;
#[path = "checkpoint/generations.rs"]
mod generations;
#[path = "checkpoint/model_dir.rs"]
mod model_dir;
#[path = "checkpoint/writing.rs"]
mod writing;

/// Asserts that a refusal is of one kind, and that its message says certain words.
macro_rules! assert_refused {
    ($error:expr, $pattern:pat $(if $guard:expr)?, $($words:expr),+) => {{
        let error: flute_burn::error::Error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
        let message = error.to_string();
        $(assert!(message.contains($words), "'{message}' does not say '{}'", $words);)+
    }};
}
pub(crate) use assert_refused;
