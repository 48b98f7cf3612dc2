//! From logits to a token, on the host.
//!
//! Filters apply in this order: temperature, `top_k`, `top_p`, `min_p`. Temperature 0 is greedy and ignores the rest; a
//! tie takes the lowest id. The random numbers are those of Xoshiro256++ from the seed, one a token: the same logits,
//! options and seed give the same tokens on every machine. Refused: values outside their ranges, logits that are not
//! numbers.

use crate::error::{Error, Result};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// How a token is drawn. The default is greedy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f32,
    /// Only this many likeliest tokens; 1 or more.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities together reach this; in (0, 1].
    pub top_p: Option<f32>,
    /// Only tokens at least this likely relative to the likeliest; in [0, 1].
    pub min_p: Option<f32>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Refuses values outside their ranges.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn validate(&self) -> Result<()> {
        let refuse = |name, found: String, needed: &str| {
            Err(Error::InvalidOption { name, found, needed: needed.into() })
        };
        let Self { temperature, top_k, top_p, min_p, .. } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return refuse("temperature", temperature.to_string(), "finite and 0 or more");
        }
        if top_k == Some(0) {
            return refuse("top-k", "0".into(), "1 or more");
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return refuse("top-p", p.to_string(), "in (0, 1]");
        }
        if let Some(p) = min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return refuse("min-p", p.to_string(), "in [0, 1]");
        }
        Ok(())
    }
}

/// Draws tokens: [`Sampling`] and the state of its random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: Xoshiro256PlusPlus,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub fn new(sampling: &Sampling) -> Result<Self> {
        sampling.validate()?;
        let rng = Xoshiro256PlusPlus::seed_from_u64(sampling.seed);
        Ok(Self { sampling: sampling.clone(), rng })
    }

    /// Whether it always takes the likeliest token.
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0
    }

    /// The next token after `logits` `[vocab]`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN or none is finite: the model or its device broke.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let best = greedy(logits)?;
        if self.is_greedy() {
            return Ok(best);
        }
        let top = logits[best as usize];
        let weight =
            |logit: f32| (f64::from(logit - top) / f64::from(self.sampling.temperature)).exp();
        let mut tokens: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(id, logit)| (id as u32, weight(*logit))).collect();
        // Likeliest first, ties by id: what top-k and top-p cut must not depend on a sort's whims.
        tokens.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        self.filter(&mut tokens);

        let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        let drawn = tokens.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a crumb behind the last token.
        Ok(drawn.or(tokens.last()).map_or(best, |(id, _)| *id))
    }

    /// Cuts `tokens`, sorted by falling weight; the first one always stays.
    fn filter(&self, tokens: &mut Vec<(u32, f64)>) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        tokens.truncate(top_k.unwrap_or(usize::MAX));
        if let Some(p) = top_p {
            let target = f64::from(p) * tokens.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let kept = tokens.iter().take_while(|(_, weight)| {
                let before = sum;
                sum += weight;
                before < target
            });
            let kept = kept.count();
            tokens.truncate(kept.max(1));
        }
        if let Some(p) = min_p {
            // Weights are relative to the likeliest token already.
            let kept = tokens.iter().take_while(|(_, weight)| *weight >= f64::from(p)).count();
            tokens.truncate(kept.max(1));
        }
    }
}

/// The likeliest token; the lowest id among equals.
fn greedy(logits: &[f32]) -> Result<u32> {
    let broken =
        |col: usize, value| Error::NotFinite { tensor: "logits".into(), row: 0, col, value };
    if let Some(col) = logits.iter().position(|logit| logit.is_nan()) {
        return Err(broken(col, f32::NAN));
    }
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    match logits.get(best) {
        Some(logit) if logit.is_finite() => Ok(best as u32),
        Some(logit) => Err(broken(best, *logit)),
        None => Err(Error::EmptyPrompt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -4.0];

    fn sampling() -> Sampling {
        Sampling { temperature: 1.0, seed: 7, ..Sampling::default() }
    }

    fn counts(sampling: &Sampling, draws: usize) -> [usize; 5] {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = [0; 5];
        for _ in 0..draws {
            counts[sampler.sample(&LOGITS).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn temperature_zero_takes_the_lowest_of_equal_logits() {
        let mut sampler = Sampler::new(&Sampling::default()).unwrap();
        assert_eq!(sampler.sample(&LOGITS).unwrap(), 1);
    }

    #[test]
    fn tokens_are_drawn_in_proportion_to_their_probabilities() {
        let draws = 200_000;
        let weights = LOGITS.map(|logit| f64::from(logit).exp());
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts(&sampling(), draws).into_iter().zip(weights) {
            let (expected, p) = (weight / total * draws as f64, weight / total);
            let deviation = (expected * (1.0 - p)).sqrt();
            assert!(
                (count as f64 - expected).abs() < 5.0 * deviation + 1.0,
                "{count} of {expected}"
            );
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens_and_another_one_others() {
        let draw = |seed| {
            let mut sampler = Sampler::new(&Sampling { seed, ..sampling() }).unwrap();
            (0..64).map(|_| sampler.sample(&LOGITS).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn each_filter_keeps_the_likeliest_tokens_alone() {
        let kept = |sampling: Sampling| counts(&sampling, 2000).map(|count| count > 0);
        assert_eq!(
            kept(Sampling { top_k: Some(1), ..sampling() }),
            [false, true, false, false, false]
        );
        assert_eq!(
            kept(Sampling { top_k: Some(2), ..sampling() }),
            [false, true, false, true, false]
        );
        // Probabilities: 0.399, 0.399, 0.147, 0.054, 0.000.
        assert_eq!(
            kept(Sampling { top_p: Some(0.5), ..sampling() }),
            [false, true, false, true, false]
        );
        assert_eq!(
            kept(Sampling { top_p: Some(0.9), ..sampling() }),
            [false, true, true, true, false]
        );
        assert_eq!(
            kept(Sampling { top_p: Some(1e-9), ..sampling() }),
            [false, true, false, false, false]
        );
        assert_eq!(
            kept(Sampling { min_p: Some(0.2), ..sampling() }),
            [false, true, true, true, false]
        );
        assert_eq!(
            kept(Sampling { min_p: Some(1.0), ..sampling() }),
            [false, true, false, true, false]
        );
    }

    #[test]
    fn values_outside_their_ranges_are_refused_by_name() {
        for (bad, name) in [
            (Sampling { temperature: -1.0, ..sampling() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..sampling() }, "temperature"),
            (Sampling { top_k: Some(0), ..sampling() }, "top-k"),
            (Sampling { top_p: Some(0.0), ..sampling() }, "top-p"),
            (Sampling { top_p: Some(1.5), ..sampling() }, "top-p"),
            (Sampling { min_p: Some(-0.1), ..sampling() }, "min-p"),
            (Sampling { min_p: Some(f32::NAN), ..sampling() }, "min-p"),
        ] {
            let error = Sampler::new(&bad).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn logits_that_are_not_numbers_are_refused() {
        let mut sampler = Sampler::new(&sampling()).unwrap();
        let error = sampler.sample(&[0.0, f32::NAN]).unwrap_err();
        assert!(matches!(error, Error::NotFinite { col: 1, .. }), "{error}");
        assert!(sampler.sample(&[f32::NEG_INFINITY; 3]).is_err());
    }
}
