//! Layers of bitsandbytes against what bitsandbytes itself dequantizes.

use crate::edit::{Copy, Tensors, tensors};
use crate::{BITSANDBYTES, golden};
use anyhow::{Result, ensure};
use flute_burn::checkpoint::{Reader, StoredWeight};
use flute_cube::{Group, Quantized};
use half::f16;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

/// Adds module `x` of `[n, k]` in blocks of `blocksize`: code `i mod 16`, factor `block + 1`, table `−8 … 7`.
pub(crate) fn add_module(tensors: &mut Tensors, [n, k]: [usize; 2], blocksize: usize) {
    let floats = |values: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
        values.flat_map(f32::to_le_bytes).collect()
    };
    let (bytes, blocks) = ((n * k).div_ceil(2), (n * k).div_ceil(blocksize));
    let codes = (0..bytes).map(|i| (((2 * i % 16) << 4) | ((2 * i + 1) % 16)) as u8).collect();
    let factors = floats(&mut (0..blocks).map(|block| (block + 1) as f32));
    let map = floats(&mut (-8..8).map(|value| value as f32));
    let state = json!({
        "quant_type": "fp4", "blocksize": blocksize, "dtype": "float16", "shape": [n, k],
    });
    let state = state.to_string().into_bytes();
    for (part, dtype, shape, bytes) in [
        ("weight", Dtype::U8, vec![bytes, 1], codes),
        ("weight.absmax", Dtype::F32, vec![blocks], factors),
        ("weight.quant_map", Dtype::F32, vec![16], map),
        ("weight.quant_state.bitsandbytes__fp4", Dtype::U8, vec![state.len()], state),
    ] {
        tensors.insert(format!("x.{part}"), (dtype, shape, bytes));
    }
}

fn quantized(reader: &Reader, module: &str) -> Result<Quantized> {
    match reader.linear(module)?.weight {
        StoredWeight::Quantized(weight) => Ok(weight),
        StoredWeight::Dense { .. } => anyhow::bail!("{module} is dense"),
    }
}

#[test]
fn layers_dequantize_to_the_very_numbers_of_bitsandbytes() -> Result<()> {
    let bytes = std::fs::read(golden("bnb_layers.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let layers = [("nf4_64", 64), ("nf4_128", 128), ("fp4_64", 64), ("fp4_128", 128)];
    let mut stored = Tensors::new();
    for (layer, blocksize) in layers {
        let view = |part: &str| file.tensor(&format!("{layer}.{part}"));
        for (part, name) in
            [("weight", "weight"), ("absmax", "weight.absmax"), ("quant_map", "weight.quant_map")]
        {
            let view = view(part)?;
            let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            stored.insert(format!("{layer}.{name}"), tensor);
        }
        let kind = &layer[..3];
        let shape = view("dequantized")?.shape().to_vec();
        let state = json!({
            "quant_type": kind, "blocksize": blocksize, "dtype": "float16", "shape": shape,
        });
        let state = state.to_string().into_bytes();
        let name = format!("{layer}.weight.quant_state.bitsandbytes__{kind}");
        stored.insert(name, (Dtype::U8, vec![state.len()], state));
    }
    let copy = Copy::with_tensors(BITSANDBYTES, &stored)?;
    let reader = Reader::open(copy.path())?;
    for (layer, blocksize) in layers {
        let weight = quantized(&reader, layer)?;
        assert_eq!((weight.n(), weight.k()), (96, 256));
        assert_eq!(weight.format().group, Group::new(blocksize)?);
        assert_eq!(
            weight.table().kind().name(),
            if layer.starts_with("nf4") { "nf" } else { "custom" }
        );
        // bitsandbytes multiplies in f32 and rounds once to the type of the weight before. Its fp4 kernel gives the
        // zeros of code 8 a sign that its own table lacks, so that numbers are compared and not bits.
        let found: Vec<f16> = weight.dequantize().into_iter().map(f16::from_f32).collect();
        let expected = file.tensor(&format!("{layer}.dequantized"))?;
        let expected = expected.data().as_chunks().0.iter().map(|b| f16::from_le_bytes(*b));
        ensure!(found == expected.collect::<Vec<_>>(), "{layer}");
    }
    Ok(())
}

#[test]
fn doubly_quantized_factors_are_those_of_the_stored_parts() -> Result<()> {
    let dir = golden(BITSANDBYTES);
    let (reader, stored) = (Reader::open(&dir)?, tensors(&dir)?);
    let mut checked = 0;
    for name in stored.keys().filter(|name| name.ends_with(".absmax")) {
        let weight_name = name.trim_end_matches(".absmax");
        let part = |part: &str| reader.tensor(&format!("{weight_name}.{part}"));
        let (map, outer) = (part("nested_quant_map")?.data, part("nested_absmax")?.data);
        let state: serde_json::Value = serde_json::from_slice(
            &stored[&format!("{weight_name}.quant_state.bitsandbytes__nf4")].2,
        )?;
        let offset = state["nested_offset"].as_f64().unwrap_or(f64::NAN) as f32;
        let weight = quantized(&reader, weight_name.trim_end_matches(".weight"))?;
        let codes = &stored[name].2;
        assert_eq!(weight.scales().len(), codes.len());
        for (block, (code, scale)) in codes.iter().zip(weight.scales()).enumerate() {
            let product = map[usize::from(*code)] * outer[block / 256];
            assert_eq!((product + offset).to_bits(), scale.to_bits(), "{name}[{block}]");
            checked += 1;
        }
    }
    println!("{checked} factors");
    assert_eq!(checked, 6 * (3 * 3072 + 2 * 1024 + 2 * 512));
    Ok(())
}

#[test]
fn blocks_over_the_flattened_weight_are_read_wherever_a_group_describes_them() -> Result<()> {
    // Blocks inside rows, wider than kernels take, across rows, of several rows, and ending in the middle of one.
    let cases = [
        ([3, 128], 64, Group::Size(64)),
        ([2, 1024], 512, Group::Size(256)),
        ([5, 96], 64, Group::Size(32)),
        ([6, 128], 256, Group::Size(128)),
        ([8, 16], 64, Group::Whole),
        ([3, 160], 64, Group::Size(32)),
    ];
    for (shape @ [n, k], blocksize, group) in cases {
        let mut stored = Tensors::new();
        add_module(&mut stored, shape, blocksize);
        let copy = Copy::with_tensors(BITSANDBYTES, &stored)?;
        let weight = quantized(&Reader::open(copy.path())?, "x")?;
        assert_eq!((weight.n(), weight.k(), weight.format().group), (n, k, group));
        let expected = |at: usize| (at % 16) as f32 - 8.0;
        let expected: Vec<f32> =
            (0..n * k).map(|at| expected(at) * (at / blocksize + 1) as f32).collect();
        assert_eq!(weight.dequantize(), expected, "{shape:?} in blocks of {blocksize}");
    }
    Ok(())
}
