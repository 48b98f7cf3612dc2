//! Caches whose blocks somebody else has, or nobody.

use crate::{devices, ensure_within, positions, table, tensor, values, wide};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Tensor};
use flute_burn::fused::{self, Attend, Slot};

#[test]
fn what_lies_in_no_block_is_neither_stored_nor_seen_on_any_device() -> Result<()> {
    let tables = |device: &Device| {
        let on = (device, DType::F32);
        [Tensor::ones([128, 2], on), Tensor::zeros([128, 2], on)]
    };
    let (form, (k, v)) =
        (Attend { scale: 0.5, cap: None, window: None }, (values(40, 768), values(41, 768)));
    for on in devices() {
        for tokens in [1, 3] {
            let qkv = values(42, 3 * tokens * 12);
            let cache = |values: &[f32]| tensor(values, [3, 1, 64, 4], &on);
            let slot = |[keys, values]: [Tensor<4>; 2], blocks: &[i32]| {
                let (start, table) = (positions(&[62, 64, -1], &on.0), table(blocks, 3, &on.0));
                Slot { keys, values, start, table }
            };
            // The first goes on where it has no block, the second has nothing before, the third stands nowhere.
            let blocks = [2, -1, 3, 0, 1, -1];
            let input = tensor(&qkv, [3, tokens, 12], &on);
            let rotated =
                fused::rotate_append(input, tables(&on.0), slot([cache(&k), cache(&v)], &blocks));
            let caches = [rotated.keys, rotated.values];
            let found = fused::attend(rotated.query, slot(caches.clone(), &blocks), form);

            let [mut keys, mut stored] = [k.clone(), v.clone()];
            for t in 0..tokens {
                let place = |b: usize| match (b, 62 + t) {
                    (0, position @ ..64) => Some(2 * 64 + position),
                    (1, _) => Some(t),
                    _ => None,
                };
                for b in 0..3 {
                    let Some(row) = place(b) else { continue };
                    let from = (b * tokens + t) * 12;
                    keys[row * 4..][..4].copy_from_slice(&qkv[from + 4..][..4]);
                    stored[row * 4..][..4].copy_from_slice(&qkv[from + 8..][..4]);
                }
            }
            let [found_keys, found_values] = caches;
            ensure!(found_keys.try_into_vec_as::<f32>()? == keys, "{tokens}: keys");
            ensure!(found_values.try_into_vec_as::<f32>()? == stored, "{tokens}: values");

            let mut expected = vec![];
            for (b, t) in (0..3).flat_map(|b| (0..tokens).map(move |t| (b, t))) {
                let rows = match b {
                    0 => 128..128 + (62 + t + 1).min(64),
                    1 => 0..t + 1,
                    _ => 0..0,
                };
                let query = &qkv[(b * tokens + t) * 12..][..4];
                let weight = |row: usize| {
                    let key = wide(&keys[row * 4..][..4]);
                    (wide(query).zip(key).map(|(q, k)| q * k).sum::<f64>() * form.scale).exp()
                };
                let total: f64 = rows.clone().map(weight).sum();
                expected.extend((0..4).map(|i| {
                    let value = |row: usize| f64::from(stored[row * 4 + i]);
                    let sum: f64 = rows.clone().map(|row| weight(row) * value(row)).sum();
                    if total > 0.0 { sum / total } else { 0.0 }
                }));
            }
            let relative = if on.1 == DType::F32 { 2e-5 } else { 4e-3 };
            ensure_within("holed attention", found, &expected, relative)?;
        }
    }
    Ok(())
}
