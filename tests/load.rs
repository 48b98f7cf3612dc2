//! What loading a model asks of the host. One test, since the memory of a process is what it looks at.

#[path = "../benches/load/noise.rs"]
#[expect(dead_code, reason = "the bench reports more of it")]
mod noise;
#[path = "../benches/load/process.rs"]
mod process;

use flute_burn::checkpoint::shapes;
use flute_burn::device;
use flute_burn::model::{LoadOptions, Model};
use flute_cube::Format;
use noise::Noise;
use process::{Used, Watch};

#[test]
fn loading_takes_the_memory_of_the_model_and_of_a_few_layers() {
    let mut config = shapes::config_json("llama-3.2-1b").unwrap();
    config["hidden_size"] = 1024.into();
    config["vocab_size"] = 2048.into();
    let noise = Noise::new(config, Format::new(4, 128).unwrap()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    noise.write(&dir).unwrap();
    let blocks = noise.block_bytes() * noise.layers() as u64;
    let watch = Watch::start();
    let model = Model::load(&dir, &LoadOptions::new(device::parse("cpu").unwrap())).unwrap();
    let Some(Used { peak_bytes: most, kept_bytes: kept, .. }) = watch.and_then(Watch::end) else {
        eprintln!("skipped: this system does not tell how much memory a process has had");
        return;
    };
    assert_eq!(model.weights().quantized, 7 * noise.layers());
    let megabytes = |bytes: u64| bytes >> 20;
    println!("{} MiB at most, {} kept", megabytes(most), megabytes(kept));
    assert!(kept > blocks / 10 * 9, "on the CPU the model is kept: {kept} of {blocks}");
    // A product of two layers, and what threads read into: nothing that grows with the number of layers.
    let allowed = 2 * noise.block_bytes() + (32 << 20);
    assert!(allowed < blocks / 3, "else the test would see nothing");
    assert!(most - kept < allowed, "{} MiB beside the model", megabytes(most - kept));
}
