//! `flute quantize --learn-scales`.

use crate::{DENSE, SHORT_TEXT, done, flute, perplexity, stderr, text};

#[test]
fn scales_are_learned_and_the_model_reads_as_before() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("learned");
    let printed = done(flute([
        "quantize",
        text(&DENSE),
        "-o",
        text(&target),
        "--bits",
        "3",
        "--learn-scales",
        "--text",
        text(&SHORT_TEXT),
        "--samples",
        "4",
        "--seq-len",
        "64",
        "--device",
        "cpu",
    ]));
    assert!(printed.contains("W3G64 nf, learned: 42 layers"), "{printed}");
    assert!(printed.contains("learned in 4 steps at "), "{printed}");
    let found = perplexity(&target);
    assert!(found > 1.0 && found < 100.0, "{found}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "no state is left behind");
}

#[test]
fn learning_without_a_text_is_a_usage_error() {
    let output = flute(["quantize", text(&DENSE), "-o", "nowhere", "--learn-scales"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--text"), "{}", stderr(&output));
}
