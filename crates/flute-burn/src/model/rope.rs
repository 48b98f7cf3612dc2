//! Rotary position embedding (RoFormer, arXiv 2104.09864), in f32, as Hugging Face lays it out.
//!
//! Checkpoints in Hugging Face layout have the rows of q and k permuted so that feature `i` rotates with `i + d/2`;
//! they are used as they are. Served: no scaling, linear scaling, and the one of Llama 3.1; configurations refuse the
//! others when they are read.

use crate::checkpoint::{Rope, RopeScaling};
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::f64::consts::TAU;

/// The rotations of every position of a context.
#[derive(Clone, Debug)]
pub(super) struct Rotations {
    /// `[positions, head_dim / 2]`, f32.
    cos: Tensor<2>,
    /// `[positions, head_dim / 2]`, f32.
    sin: Tensor<2>,
}

impl Rotations {
    /// For positions `0..positions` of heads of `head_dim` features.
    pub(super) fn new(rope: &Rope, head_dim: usize, positions: usize, device: &Device) -> Self {
        let frequencies = frequencies(rope, head_dim);
        let angles = || {
            let row = |position| frequencies.iter().map(move |f| position as f32 * f);
            (0..positions).flat_map(row)
        };
        let tensor = |values: Vec<f32>| {
            let data = TensorData::new(values, [positions, head_dim / 2]);
            Tensor::from_data(data, (device, DType::F32))
        };
        Self {
            cos: tensor(angles().map(f32::cos).collect()),
            sin: tensor(angles().map(f32::sin).collect()),
        }
    }

    /// Cosines and sines.
    pub(super) fn tables(&self) -> [Tensor<2>; 2] {
        [self.cos.clone(), self.sin.clone()]
    }
}

/// Radians per position of each rotating pair, `[head_dim / 2]`.
///
/// Rounded to f32 before a position multiplies it, as the software does that the models were trained with.
fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let base = |i: usize| rope.theta.powf(-2.0 * i as f64 / head_dim as f64);
    let scale = |frequency: f64| match rope.scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            // How many full turns the original context held: below `low` the frequency is divided, above `high` it
            // is kept, between them the two are mixed linearly.
            let turns = original as f64 * frequency / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / factor)
        }
    };
    (0..head_dim / 2).map(|i| scale(base(i)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { theta: 500_000.0, scaling }
    }

    #[test]
    fn frequencies_fall_from_one_to_the_inverse_of_theta() {
        let plain = frequencies(&rope(RopeScaling::None), 64);
        assert_eq!((plain.len(), plain[0]), (32, 1.0));
        assert!((plain[16] - 500_000f32.powf(-0.5)).abs() < 1e-9);
        let linear = frequencies(&rope(RopeScaling::Linear { factor: 4.0 }), 64);
        assert!(linear.iter().zip(&plain).all(|(l, p)| (l * 4.0 - p).abs() < 1e-9));
    }

    #[test]
    fn llama_3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let (plain, scaled) =
            (frequencies(&rope(RopeScaling::None), 128), frequencies(&rope(scaling), 128));
        let turns = |i: usize| 8192.0 * plain[i] / std::f32::consts::TAU;
        for i in 0..64 {
            let ratio = scaled[i] / plain[i];
            if turns(i) > 4.0 {
                assert_eq!(ratio, 1.0, "pair {i}");
            } else if turns(i) < 1.0 {
                assert!((ratio - 0.125).abs() < 1e-6, "pair {i}: {ratio}");
            } else {
                assert!((0.125..=1.0).contains(&ratio), "pair {i}: {ratio}");
            }
        }
    }

    #[test]
    fn position_zero_is_not_turned_and_pair_zero_turns_by_a_radian_a_position() {
        let rotations = Rotations::new(&rope(RopeScaling::None), 4, 8, &Device::flex());
        let [cos, sin] = rotations.tables().map(|table| table.try_into_vec_as::<f32>().unwrap());
        assert_eq!((&cos[..2], &sin[..2]), ([1.0; 2].as_slice(), [0.0; 2].as_slice()));
        for (position, (cos, sin)) in cos.chunks(2).zip(sin.chunks(2)).enumerate() {
            let angle = position as f32;
            assert!((cos[0] - angle.cos()).abs() < 1e-6 && (sin[0] - angle.sin()).abs() < 1e-6);
            assert!((cos[1].powi(2) + sin[1].powi(2) - 1.0).abs() < 1e-6, "{position}");
        }
    }
}
