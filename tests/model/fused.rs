//! Projections of one input in one product.

use crate::{LLAMA, kernel_device};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{self, ConvertOptions};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};
use std::path::Path;

fn logits(dir: &Path, device: Device, fuse: bool) -> Result<(Vec<f32>, Model)> {
    let options = LoadOptions { dtype: Some(DType::F32), fuse, ..LoadOptions::new(device) };
    let model = Model::load(dir, &options)?;
    let ids: Vec<u32> = (0..9).map(|i| i * 7 + 1).collect();
    let mut cache = model.new_cache(1, ids.len())?;
    let logits = model.forward(model.tokens(&ids, 1)?, &mut cache)?;
    Ok((logits.try_into_vec_as::<f32>()?, model))
}

fn method(bits: Bits) -> Method {
    Method::Absmax { table: Table::nf(bits), group: Group::Size(64) }
}

#[test]
fn fused_projections_give_the_logits_of_unfused_ones() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let quantized = scratch.path().join("quantized");
    LLAMA.quantize(Table::nf(Bits::Four), 64, &quantized)?;
    // Where q, k and v or gate and up have different widths, they cannot be one.
    let mixed = scratch.path().join("mixed");
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    let mut options = ConvertOptions::new(LLAMA.path(), &mixed, method(Bits::Four), &mut quiet);
    options.overrides = vec![("k_proj".into(), method(Bits::Three))];
    options.skip = vec!["up_proj".into()];
    checkpoint::convert(options)?;

    for (dir, blocks) in [(&quantized, 4), (&mixed, 7)] {
        for device in [Some(Device::flex()), kernel_device()?].into_iter().flatten() {
            let ((found, fused), (expected, apart)) =
                (logits(dir, device.clone(), true)?, logits(dir, device, false)?);
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{blocks} products a block: largest difference {worst:.1e}");
            ensure!(found.len() == expected.len() && worst <= 2e-5, "{worst}");
            ensure!(fused.weights().linears == 6 * 7 + 1);
            ensure!(fused.weights().quantized == apart.weights().quantized);
            let layers = |model: &Model| model.to_string().matches("FluteLinear {").count();
            ensure!(layers(&apart) == apart.weights().quantized, "every layer is one of its own");
            let fewer = layers(&apart) - layers(&fused);
            ensure!(fewer == 6 * (7 - blocks), "{fewer} fewer layers");
        }
    }
    Ok(())
}
