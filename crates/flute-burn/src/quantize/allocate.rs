//! Which choice for which layer: the least total loss that fits a budget.
//!
//! A knapsack with one choice a layer, solved exactly. The dynamic programme runs over layers and keeps, for every
//! total size, the least loss that reaches it, but only where no smaller size has as little (Nemhauser and Ullmann
//! 1969), so that sizes are bytes and no table over them is needed. States that cannot become the best are dropped:
//! with a price λ on bytes, the rest of the layers costs at least `Σ min (loss + λ·bytes) − λ·(what is left)`, and a
//! state above the best known assignment by that bound is not continued. At the λ where the relaxed assignment meets
//! the budget the bound is so close that few states remain (560 layers of 7 choices: 4 to 260 ms). Refused: no
//! choices, losses that are not finite, budgets below the smallest assignment.

use crate::error::{Error, Result};

/// One way to store a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Its size.
    pub bytes: u64,
    /// What it costs; any unit that adds up over layers.
    pub loss: f64,
}

/// A partial assignment: the choices of the first layers.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    loss: f64,
    /// The state of one layer less, and what this one takes.
    from: usize,
    choice: usize,
}

/// For every layer the index of its choice, so that the sum of losses is the least of all assignments of at most
/// `budget` bytes.
///
/// # Errors
/// [`Error::InvalidOption`] if a layer has no choice, a loss is not finite, or the budget is less than the smallest
/// assignment takes.
///
/// ```
/// use flute_burn::quantize::{Choice, allocate};
///
/// let choice = |bytes, loss| Choice { bytes, loss };
/// let layers = [vec![choice(2, 9.0), choice(4, 1.0)], vec![choice(2, 3.0), choice(4, 0.5)]];
/// assert_eq!(allocate(&layers, 6)?, [1, 0]);
/// # Ok::<(), flute_burn::error::Error>(())
/// ```
pub fn allocate(layers: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>> {
    check(layers, budget)?;
    let price = price(layers, budget);
    let known = loss(layers, &filled(layers, price, budget));
    // Sums in another order differ in their last bits: what is as good as the best must survive.
    let limit = known + 1e-9 * known.abs() + f64::MIN_POSITIVE;
    let least_after = suffixes(layers, |choice| choice.bytes as f64);
    let priced_after = suffixes(layers, |choice| choice.loss + price * choice.bytes as f64);

    let mut stages: Vec<Vec<State>> = vec![vec![State { bytes: 0, loss: 0.0, from: 0, choice: 0 }]];
    for (index, choices) in layers.iter().enumerate() {
        let mut next = vec![];
        for (from, state) in stages[index].iter().enumerate() {
            for (choice, Choice { bytes, loss }) in choices.iter().enumerate() {
                let (bytes, loss) = (state.bytes + bytes, state.loss + loss);
                let fits = bytes as f64 + least_after[index + 1] <= budget as f64;
                let left = budget.saturating_sub(bytes) as f64;
                if fits && loss + priced_after[index + 1] - price * left <= limit {
                    next.push(State { bytes, loss, from, choice });
                }
            }
        }
        next.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
        let mut least = f64::INFINITY;
        next.retain(|state| {
            let better = state.loss < least;
            least = least.min(state.loss);
            better
        });
        stages.push(next);
    }

    // Sizes ascend and losses descend: the last state is the best.
    let mut at = stages[layers.len()].len().saturating_sub(1);
    let mut chosen = vec![0; layers.len()];
    for index in (0..layers.len()).rev() {
        let state = stages[index + 1][at];
        (chosen[index], at) = (state.choice, state.from);
    }
    Ok(chosen)
}

fn check(layers: &[Vec<Choice>], budget: u64) -> Result<()> {
    let invalid =
        |name, found: String, needed: String| Err(Error::InvalidOption { name, found, needed });
    if layers.is_empty() || layers.iter().any(Vec::is_empty) {
        return invalid("the choices of a layer", "empty".into(), "at least one".into());
    }
    if let Some(odd) = layers.iter().flatten().find(|choice| !choice.loss.is_finite()) {
        return invalid("the loss of a choice", odd.loss.to_string(), "finite".into());
    }
    // Beyond it sums of sizes are no longer exact in f64.
    let most = layers.iter().flat_map(|choices| choices.iter().map(|c| c.bytes).max());
    let most = most.fold(0u64, u64::saturating_add);
    if most >= 1 << 53 {
        return invalid("the size of all layers", most.to_string(), "less than 2^53 bytes".into());
    }
    let least = layers.iter().flat_map(|choices| choices.iter().map(|c| c.bytes).min()).sum();
    if budget < least {
        let (found, needed) = (format!("{budget} bytes"), format!("{least} bytes or more"));
        return invalid("the budget", found, needed);
    }
    Ok(())
}

/// For every index the sum over the layers from there on of the least `cost` of a choice.
fn suffixes(layers: &[Vec<Choice>], cost: impl Fn(&Choice) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; layers.len() + 1];
    for (index, choices) in layers.iter().enumerate().rev() {
        let least = choices.iter().map(&cost).fold(f64::INFINITY, f64::min);
        sums[index] = sums[index + 1] + least;
    }
    sums
}

/// The least price of a byte at which what every layer would take fits the budget.
fn price(layers: &[Vec<Choice>], budget: u64) -> f64 {
    let fits = |price| bytes(layers, &cheapest(layers, price)) <= budget;
    if fits(0.0) {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, 1e-12);
    while !fits(high) && high < 1e300 {
        (low, high) = (high, high * 16.0);
    }
    for _ in 0..100 {
        let middle = low + (high - low) / 2.0;
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}

/// What every layer takes at a price of bytes; the smaller choice on a tie.
fn cheapest(layers: &[Vec<Choice>], price: f64) -> Vec<usize> {
    let cost = |choice: &Choice| choice.loss + price * choice.bytes as f64;
    let best = |choices: &Vec<Choice>| {
        let order = |a: &usize, b: &usize| {
            let (a, b) = (&choices[*a], &choices[*b]);
            cost(a).total_cmp(&cost(b)).then(a.bytes.cmp(&b.bytes))
        };
        (0..choices.len()).min_by(order).unwrap_or(0)
    };
    layers.iter().map(best).collect()
}

/// A good assignment: what layers take at `price`, and then one better choice after another while it fits.
fn filled(layers: &[Vec<Choice>], price: f64, budget: u64) -> Vec<usize> {
    let mut chosen = cheapest(layers, price);
    if bytes(layers, &chosen) > budget {
        // No price reaches it where many choices tie; the smallest assignment does.
        let least = |choices: &Vec<Choice>| (0..choices.len()).min_by_key(|c| choices[*c].bytes);
        chosen = layers.iter().map(|choices| least(choices).unwrap_or(0)).collect();
    }
    let mut left = budget - bytes(layers, &chosen);
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (layer, choices) in layers.iter().enumerate() {
            let own = choices[chosen[layer]];
            for (index, choice) in choices.iter().enumerate() {
                let gain = own.loss - choice.loss;
                if choice.bytes <= own.bytes + left && gain > best.map_or(0.0, |(gain, ..)| gain) {
                    best = Some((gain, layer, index));
                }
            }
        }
        let Some((_, layer, index)) = best else { return chosen };
        left = left + layers[layer][chosen[layer]].bytes - layers[layer][index].bytes;
        chosen[layer] = index;
    }
}

fn bytes(layers: &[Vec<Choice>], chosen: &[usize]) -> u64 {
    layers.iter().zip(chosen).map(|(choices, index)| choices[*index].bytes).sum()
}

fn loss(layers: &[Vec<Choice>], chosen: &[usize]) -> f64 {
    layers.iter().zip(chosen).map(|(choices, index)| choices[*index].loss).sum()
}
