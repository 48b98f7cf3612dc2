//! What all layers of one step share: positions, and which tokens see which.

use super::cache::Cache;
use super::rope::Rotations;
use burn::tensor::{Bool, Device, Int, Tensor};

/// A step: `tokens` new ones behind `start` that were seen before.
pub(super) struct Step {
    /// Tokens seen before this step.
    pub(super) start: usize,
    /// The same of each sequence, on the device.
    pub(super) position: Tensor<1, Int>,
    /// Of every position.
    pub(super) rotations: Rotations,
    /// That of sliding layers.
    pub(super) window: Option<usize>,
    full: View,
    /// None where the window still reaches back to the first token.
    sliding: Option<View>,
}

/// The keys that a layer reads.
pub(super) struct View {
    /// Position of the first of them.
    pub(super) first: usize,
    /// `[tokens, keys]`, true where a token may not look; none if all may look at all of them.
    pub(super) mask: Option<Tensor<2, Bool>>,
}

impl Step {
    /// `tokens` behind those that `cache` has; `window` is that of sliding layers.
    pub(super) fn new(cache: &Cache, tokens: usize, window: Option<usize>) -> Self {
        let (start, device) = (cache.len(), cache.position.device());
        let slides = window.filter(|window| start + tokens > *window);
        Self {
            start,
            position: cache.position.clone(),
            rotations: cache.rotations.clone(),
            window,
            full: View::full([start, tokens], &device),
            sliding: slides.map(|window| View::sliding([start, tokens], window, &device)),
        }
    }

    /// What a layer sees.
    pub(super) fn view(&self, slides: bool) -> &View {
        self.sliding.as_ref().filter(|_| slides).unwrap_or(&self.full)
    }
}

impl View {
    fn full([start, tokens]: [usize; 2], device: &Device) -> Self {
        // A single token sees everything before it and itself.
        let mask =
            (tokens > 1).then(|| Tensor::tril_mask([tokens, start + tokens], start as i64, device));
        Self { first: 0, mask }
    }

    fn sliding([start, tokens]: [usize; 2], window: usize, device: &Device) -> Self {
        // The first new token sees no further back than this, and a single one sees all from here on.
        let first = (start + 1).saturating_sub(window);
        let (shape, diagonal) = ([tokens, start + tokens - first], (start - first) as i64);
        let mask = || {
            let later = Tensor::<2, Bool>::tril_mask(shape, diagonal, device);
            let gone = Tensor::<2, Bool>::triu_mask(shape, diagonal + 1 - window as i64, device);
            later.bool_or(gone)
        };
        Self { first, mask: (tokens > 1).then(mask) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions of the keys that each new token sees in a sliding layer.
    fn seen(start: usize, tokens: usize, window: usize) -> Vec<Vec<usize>> {
        let config = crate::checkpoint::shapes::named("tiny").unwrap();
        let mut cache = Cache::new(&config, [1, 32], burn::tensor::DType::F32, &Device::flex());
        let cache = cache.as_mut().unwrap();
        cache.advance(start);
        let step = Step::new(cache, tokens, Some(window));
        let view = step.view(true);
        let keys = start + tokens - view.first;
        let mask = match &view.mask {
            Some(mask) => mask.clone().int().try_into_vec_as::<i32>().unwrap(),
            None => vec![0; tokens * keys],
        };
        let row =
            |row: &[i32]| (0..keys).filter(|i| row[*i] == 0).map(|i| view.first + i).collect();
        mask.chunks(keys).map(row).collect()
    }

    #[test]
    fn a_token_sees_itself_and_the_tokens_of_its_window() {
        for window in [1usize, 2, 4, 7, 30] {
            for (start, tokens) in [(0usize, 1usize), (0, 9), (3, 1), (3, 6), (12, 1), (12, 5)] {
                let expected: Vec<Vec<usize>> = (start..start + tokens)
                    .map(|token| ((token + 1).saturating_sub(window)..=token).collect())
                    .collect();
                assert_eq!(seen(start, tokens, window), expected, "{start}, {tokens}, {window}");
            }
        }
    }
}
