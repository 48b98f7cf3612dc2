//! `flute doctor --shape` and `flute tune`: plans of products, chosen and measured.

use super::{DENSE, QUANTIZED, command, done, json, stderr, text};
use std::process::Output;

/// What was measured on this machine before is not what is tested.
fn alone<'a>(home: &tempfile::TempDir, arguments: impl IntoIterator<Item = &'a str>) -> Output {
    let mut command = command(arguments);
    command.current_dir(home.path()).env("XDG_CACHE_HOME", home.path());
    command.output().unwrap()
}

/// A device whose kernels run here, by the name that `doctor` gives it.
fn device(home: &tempfile::TempDir) -> Option<String> {
    let name = std::env::var("FLUTE_DEVICE").unwrap_or_else(|_| "wgpu:cpu".into());
    let probe = ["tune", "--device", &name, "--forget", "--quiet"];
    alone(home, probe).status.success().then_some(name)
}

#[test]
fn doctor_plans_the_products_that_are_named() {
    let home = tempfile::tempdir().unwrap();
    let shapes = ["--shape", "4096x4096", "--shape", "tiny", "--m", "1,16", "--bits", "3"];
    let found = json(alone(&home, ["doctor", "--json"].into_iter().chain(shapes)));
    for device in found["devices"].as_array().unwrap() {
        let Some(products) = device["gpu"]["products"].as_array() else { continue };
        // Query, key and value are one product, and so are gate and up.
        assert_eq!(products.len(), 2 * (1 + 4), "{device}");
        assert_eq!((&products[0]["n"], &products[0]["format"]), (&4096.into(), &"W3G128".into()));
        assert_eq!(products[2]["n"], 256 + 2 * 128);
        assert!(products.iter().all(|product| product["microseconds"].is_null()));
    }
}

#[test]
fn shapes_that_are_none_are_usage_errors() {
    let home = tempfile::tempdir().unwrap();
    for wrong in ["4096", "0x64", "4096x", "12x99999999", "llama-99b"] {
        let output = alone(&home, ["doctor", "--shape", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", stderr(&output));
    }
    let output = alone(&home, ["doctor", "--shape", "64x64", "--m", "0"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn what_has_no_kernels_has_no_plans_to_measure() {
    let home = tempfile::tempdir().unwrap();
    let output = alone(&home, ["tune", "--shape", "64x64", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cpu runs no kernel"), "{}", stderr(&output));
}

#[test]
fn measured_plans_are_kept_for_later_runs_until_forgotten() {
    let home = tempfile::tempdir().unwrap();
    let Some(device) = device(&home) else { return println!("no kernels run here") };
    let tune = |more: &[&'static str]| {
        let arguments = ["tune", "--device", &device, "--dtype", "f32"].into_iter();
        alone(&home, arguments.chain(more.iter().copied()))
    };
    let found = json(tune(&["--shape", "64x96", "--m", "3", "--group-size", "32", "--json"]));
    let product = &found["products"][0];
    assert_eq!(product["m"], 3);
    assert!(product["microseconds"].as_f64() <= product["unmeasured_microseconds"].as_f64());
    let kept = found["stored_in"].as_str().unwrap();
    assert!(std::path::Path::new(kept).exists(), "{kept}");

    let words = done(tune(&["--shape", "64x96", "--m", "4", "--group-size", "32"]));
    assert!(words.starts_with("64x96 m=4 W4G32 f32: "), "{words}");
    assert!(words.contains(" µs (unmeasured "), "{words}");

    let output = tune(&[]);
    assert!(stderr(&output).contains("--shape NxK"), "{}", stderr(&output));
    let output = tune(&[text(&DENSE)]);
    assert!(stderr(&output).contains("is not quantized"), "{}", stderr(&output));
    let forgotten = json(tune(&["--forget", "--json"]));
    assert_eq!(forgotten["products"].as_array().unwrap().len(), 0);
}

#[test]
fn the_products_of_a_model_are_those_of_its_directory() {
    let home = tempfile::tempdir().unwrap();
    let Some(device) = device(&home) else { return println!("no kernels run here") };
    let arguments = ["tune", text(&QUANTIZED), "--device", &device, "--dtype", "f32", "--json"];
    let found = json(alone(&home, arguments));
    let shapes: Vec<_> = found["products"].as_array().unwrap().iter().collect();
    assert_eq!(shapes.len(), 4);
    assert!(shapes.iter().all(|product| product["format"] == "W4G64"));
}
