//! Patterns that name modules: `down_proj`, `layers.0`, `model.layers.*.self_attn.*`.
//!
//! A pattern without `*` matches where it is a run of whole components of the module's dotted name, which covers the
//! full name, its end, its beginning and its middle (`layers.1` does not match layer 10). With `*`, which stands for
//! any characters, it must match the full name.

/// Whether `pattern` names `module`.
pub fn matches(pattern: &str, module: &str) -> bool {
    match pattern.split_once('*') {
        None => format!(".{module}.").contains(&format!(".{pattern}.")),
        Some((head, rest)) => module.strip_prefix(head).is_some_and(|module| ends(rest, module)),
    }
}

/// Whether `module` is anything followed by a match of `rest`. The earliest place of each literal is always right,
/// so the work is linear in the pieces.
fn ends(rest: &str, mut module: &str) -> bool {
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match module.find(piece) {
            Some(at) => module = &module[at + piece.len()..],
            None => return false,
        }
    }
    module.ends_with(last)
}
