//! Damaged files: whatever the damage, an answer and no panic.

use crate::model_dir::{ModelDir, dense_tensors, safetensors};
use flute_burn::checkpoint::inspect;
use flute_burn::text::{ChatTemplate, Tokenizer};
use flute_cube::{Bits, Group};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Opens and reads everything; what comes out does not matter, that something comes out does.
fn read_all(dir: &ModelDir) -> bool {
    inspect(&dir.path(), true).is_ok()
}

fn header_end(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize
}

#[test]
fn a_file_truncated_at_any_byte_of_its_header_is_refused() {
    let dir = ModelDir::new();
    let file = safetensors(&dense_tensors());
    let end = header_end(&file);
    println!("{end} bytes of header");
    for len in 0..end {
        dir.write("model.safetensors", &file[..len]);
        assert!(dir.open().is_err(), "truncated to {len} bytes");
    }
}

#[test]
fn a_file_truncated_at_any_other_byte_is_refused() {
    let dir = ModelDir::new();
    let file = safetensors(&dense_tensors());
    println!("seed 1");
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..1000 {
        let len = rng.random_range(header_end(&file)..file.len());
        dir.write("model.safetensors", &file[..len]);
        assert!(dir.open().is_err(), "truncated to {len} bytes");
    }
}

#[test]
fn any_byte_of_a_header_may_be_flipped_without_panic() {
    let dir = ModelDir::quantized(Bits::Three, Group::Size(32));
    let mut file = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let mut refused = 0;
    for at in 0..header_end(&file) {
        let byte = file[at];
        for flip in [0x01, 0x10, 0x80] {
            file[at] = byte ^ flip;
            dir.write("model.safetensors", &file);
            refused += usize::from(!read_all(&dir));
        }
        file[at] = byte;
    }
    println!("{refused} of {} refused", 3 * header_end(&file));
    assert!(refused > header_end(&file));
}

#[test]
fn any_byte_of_a_configuration_may_be_changed_without_panic() {
    let dir = ModelDir::quantized(Bits::Two, Group::Whole);
    let whole = std::fs::read(dir.path().join("config.json")).unwrap();
    println!("seed 2");
    let mut rng = StdRng::seed_from_u64(2);
    let bytes = b"0189-\"{}[],:.eE x\xff";
    for at in 0..whole.trim_ascii_end().len() {
        let mut file = whole.clone();
        file[at] = bytes[rng.random_range(0..bytes.len())];
        dir.write("config.json", &file);
        read_all(&dir);
        dir.write("config.json", &whole[..at]);
        assert!(!read_all(&dir), "truncated to {at} bytes");
    }
}

#[test]
fn a_tokenizer_may_be_truncated_or_changed_anywhere_without_panic() {
    let dir = ModelDir::new();
    let whole = std::fs::read("fixtures/tiny-llama/tokenizer.json").unwrap();
    println!("seed 3");
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..60 {
        let at = rng.random_range(0..whole.len());
        dir.write("tokenizer.json", &whole[..at]);
        assert!(Tokenizer::open(dir.path()).is_err(), "truncated to {at} bytes");
        let mut file = whole.clone();
        for _ in 0..4 {
            let at = rng.random_range(0..file.len());
            file[at] = rng.random_range(b' '..=b'~');
        }
        dir.write("tokenizer.json", &file);
        if let Ok(tokenizer) = Tokenizer::open(dir.path())
            && let Ok(ids) = tokenizer.encode("fn main() { println!(\"é\"); }", true)
        {
            let _ = tokenizer.decode(&ids, false);
        }
    }
}

#[test]
fn a_chat_template_may_be_any_text_without_panic() {
    println!("seed 4");
    let mut rng = StdRng::seed_from_u64(4);
    let parts = [
        "{{",
        "}}",
        "{%",
        "%}",
        "for",
        "m",
        "in",
        "messages",
        "if",
        "else",
        "endif",
        "endfor",
        "['role']",
        ".content",
        "|trim",
        "|tojson",
        "+",
        "~",
        "'x'",
        "loop.index0",
        "set",
        "=",
        "-",
        "raise_exception('no')",
        "(",
        ")",
        "[::-1]",
        "namespace()",
        "\n",
        " ",
        "é",
        "{#",
        "#}",
    ];
    let dir = ModelDir::new();
    for _ in 0..2000 {
        let count = rng.random_range(1..30);
        let source: Vec<&str> =
            (0..count).map(|_| parts[rng.random_range(0..parts.len())]).collect();
        dir.write("chat_template.jinja", source.join(" ").as_bytes());
        if let Ok(template) = ChatTemplate::open(dir.path()) {
            let _ = template.render(&[flute_burn::text::Message::new("user", "hi")], true);
        }
    }
}

#[test]
fn the_undamaged_directories_are_sound() {
    assert!(read_all(&ModelDir::new()));
    assert!(read_all(&ModelDir::quantized(Bits::Three, Group::Size(32))));
}
