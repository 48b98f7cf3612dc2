//! The README says what is true: its commands run, its code is an example's, its promises have tests.

use super::{DENSE, done, flute};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// The lines of the first block of code in `language`.
fn block(readme: &str, language: &str) -> Vec<String> {
    let lines = readme.lines().skip_while(|line| *line != format!("```{language}")).skip(1);
    lines.take_while(|line| *line != "```").map(str::to_owned).collect()
}

/// Every file of Rust below `dir`, joined.
fn sources(dir: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() && name != "target" && name != ".git" {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &std::fs::read_to_string(&path).unwrap();
        }
    }
    text
}

#[test]
fn the_readme_s_commands_do_what_it_says() {
    let dir = tempfile::TempDir::new().unwrap();
    let here = |word: &str| match word {
        "tiny-llama-w4" => dir.path().join(word).to_str().unwrap().to_owned(),
        word => word.replace("fixtures/tiny-llama", DENSE.to_str().unwrap()),
    };
    let mut run = 0;
    for line in readme().lines().filter_map(|line| line.strip_prefix("$ flute ")) {
        // Quotes hold the only words with spaces.
        let quoted = line.split('"').enumerate();
        let words = quoted.flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().map(&here).collect::<Vec<String>>(),
            _ => vec![part.to_owned()],
        });
        let mut words: Vec<String> = words.collect();
        match words[0].as_str() {
            "eval" => words.extend(["--device", "cpu", "--dequantize"].map(str::to_owned)),
            "generate" => words.extend(["--device", "cpu"].map(str::to_owned)),
            _ => (),
        }
        assert!(!done(flute(words.iter().map(String::as_str))).is_empty(), "{line}");
        run += 1;
    }
    assert_eq!(run, 5);
}

#[test]
fn the_readme_s_code_is_that_of_the_example() {
    let example = std::fs::read_to_string(root().join("examples/linear.rs")).unwrap();
    let example: Vec<&str> = example.split_whitespace().collect();
    let code = block(&readme(), "rust");
    assert!(code.len() > 5, "{code:?}");
    for line in code.iter().filter(|line| !line.is_empty() && !line.starts_with("//")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let found = example.windows(words.len()).any(|window| window == words);
        assert!(found, "examples/linear.rs has no '{line}'");
    }
}

#[test]
fn every_promise_of_the_readme_has_a_test() {
    let sources = sources(&root());
    let readme = readme();
    let rows = readme.lines().skip_while(|line| !line.starts_with("| promise")).skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() >= 5, "{rows:?}");
    for row in rows {
        let names: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            assert!(sources.contains(&format!("fn {name}(")), "no test is called {name}");
        }
    }
}

#[test]
fn the_readme_s_perplexities_are_those_of_the_report() {
    let report = std::fs::read_to_string(root().join("docs/quality/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let found = |model: usize, series: &str, format: &str| {
        let ways = report["models"][model]["ways"].as_array().unwrap();
        let way = ways.iter().find(|way| {
            way["series"] == series && way["format"].as_str().unwrap().starts_with(format)
        });
        let perplexity = way.unwrap()["perplexity"].as_f64().unwrap();
        if perplexity < 100.0 { format!("{perplexity:.2}") } else { format!("{perplexity:.0}") }
    };
    let readme = readme();
    for (name, series) in [
        ("int", "int"),
        ("fp", "fp"),
        ("nf", "nf"),
        ("nf, learned", "learned"),
        ("higgs, p = 1", "higgs-line"),
        ("higgs, p = 2", "higgs-plane"),
        ("higgs, dynamic", "dynamic"),
    ] {
        let row = readme.lines().find(|line| line.starts_with(&format!("| {name} | ")));
        let cells: Vec<&str> = row.unwrap_or(name).split(" | ").skip(2).collect();
        let formats = match series {
            "dynamic" => ["at most 4", "at most 3", "at most 2.5"],
            _ => ["W4", "W3", "W2"],
        };
        for model in 0..2 {
            let own = formats.map(|format| found(model, series, format));
            let shown = cells[3 * model..].iter().map(|cell| cell.trim_end_matches(" |"));
            assert!(shown.take(3).eq(own.iter().map(String::as_str)), "{name}: {cells:?}, {own:?}");
        }
    }
}
