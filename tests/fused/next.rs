//! The next token in one operation, against the two that it is made of.

use crate::{devices, positions, table, tensor, values};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Tensor};
use flute_burn::fused::{self, Attend, Next, Slot};
use std::panic::{AssertUnwindSafe, catch_unwind};

const FORM: Attend = Attend { scale: 0.25, cap: None, window: None };

/// What two sequences of 70 and of 3 tokens have, in no order.
struct Before {
    on: (Device, DType),
    heads: usize,
    dim: usize,
}

impl Before {
    fn slot(&self) -> Slot {
        let cache = |seed| {
            let shape = [5, 1, 64, self.dim];
            tensor(&values(seed, 5 * 64 * self.dim), shape, &self.on)
        };
        let device = &self.on.0;
        let (start, table) = (positions(&[70, 3], device), table(&[3, 0, 4, -1], 2, device));
        Slot { keys: cache(50), values: cache(51), start, table }
    }

    fn qkv(&self, tokens: usize) -> Tensor<3> {
        let features = (self.heads + 2) * self.dim;
        tensor(&values(52, 2 * tokens * features), [2, tokens, features], &self.on)
    }

    fn rotations(&self) -> [Tensor<2>; 2] {
        let half = self.dim / 2;
        [f32::cos, f32::sin].map(|of| {
            let values: Vec<f32> = (0..128 * half).map(|at| of(at as f32 * 0.21)).collect();
            tensor(&values, [128, half], &(self.on.0.clone(), DType::F32))
        })
    }
}

#[test]
fn the_next_token_is_what_its_rotation_and_its_attention_make_of_it() -> Result<()> {
    // The last has heads that no kernel attends to.
    for (dim, form) in [
        (16, FORM),
        (128, Attend { window: Some(9), cap: Some(2.0), ..FORM }),
        (320, Attend { scale: 0.05, ..FORM }),
    ] {
        for on in devices() {
            let before = Before { on, heads: 3, dim };
            let (qkv, rotations) = (before.qkv(1), before.rotations());
            let next = fused::attend_next(qkv.clone(), rotations.clone(), before.slot(), form);
            let rotated = fused::rotate_append(qkv, rotations, before.slot());
            let (keys, values) = (rotated.keys.clone(), rotated.values.clone());
            let y = fused::attend(rotated.query, Slot { keys, values, ..before.slot() }, form);
            ensure!(next.y.dims() == [2, 1, 3 * dim] && next.y.dtype() == before.on.1);
            let bits = |tensor: Tensor<4>| tensor.try_into_vec_as::<f32>();
            ensure!(bits(next.y.unsqueeze())? == bits(y.unsqueeze())?, "{dim}: y");
            ensure!(bits(next.keys)? == bits(rotated.keys)?, "{dim}: keys");
            ensure!(bits(next.values)? == bits(rotated.values)?, "{dim}: values");
        }
    }
    Ok(())
}

#[test]
fn a_cache_that_somebody_else_holds_keeps_what_it_has_while_the_next_token_is_computed()
-> Result<()> {
    for on in devices() {
        let before = Before { on, heads: 2, dim: 8 };
        let held = before.slot();
        let Next { keys, values, .. } =
            fused::attend_next(before.qkv(1), before.rotations(), held.clone(), FORM);
        let bits = |tensor: Tensor<4>| tensor.try_into_vec_as::<f32>();
        let fresh = before.slot();
        let (old_keys, old_values) = (bits(fresh.keys)?, bits(fresh.values)?);
        ensure!(bits(held.keys)? == old_keys && bits(held.values)? == old_values);
        // Of what it returns two rows are new: position 70 in block 0, position 3 in block 4.
        for (new, old) in [(bits(keys)?, old_keys), (bits(values)?, old_values)] {
            let rows = new.chunks(8).zip(old.chunks(8)).enumerate();
            let changed: Vec<usize> =
                rows.filter(|(_, (new, old))| new != old).map(|(row, _)| row).collect();
            ensure!(changed == [6, 4 * 64 + 3], "{changed:?}");
        }
    }
    Ok(())
}

#[test]
fn several_tokens_and_heads_that_do_not_share_keys_evenly_are_no_next_token() {
    let before = Before { on: (Device::flex(), DType::F32), heads: 3, dim: 8 };
    let refusal = |qkv: Tensor<3>, slot: Slot| {
        let ask = AssertUnwindSafe(|| fused::attend_next(qkv, before.rotations(), slot, FORM));
        *catch_unwind(ask).expect_err("refused").downcast::<String>().expect("a sentence")
    };
    let many = refusal(before.qkv(2), before.slot());
    assert_eq!(many, "2 tokens of each sequence are not the next one");
    let device = &before.on.0;
    let cache = || Tensor::zeros([5, 2, 64, 8], (device, DType::F32));
    let uneven = refusal(
        Tensor::zeros([2, 1, 7 * 8], (device, DType::F32)),
        Slot { keys: cache(), values: cache(), ..before.slot() },
    );
    assert_eq!(uneven, "3 heads of queries do not attend to 2 heads");
}
