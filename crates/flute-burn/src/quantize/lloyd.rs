//! Makes the grids: the points that a normal variable is nearest to with the least mean squared error.
//!
//! One dimension is Lloyd's and Max's fixed point (1957; 1960): every boundary the midpoint of its neighbours, every
//! point the mean of its cell, both in closed form. In two dimensions means are sums over a lattice of pixels weighted
//! by the density; Lloyd's iteration ends in the nearest of many local minima, so points are first shaken while they
//! move, less and less (stochastic relaxation; Zeger, Vaisey and Gersho 1992), from a fixed seed. The same grids come
//! out on every run of one machine, whatever its threads; across machines only to rounding, which is why
//! [`grid`](super::grid) holds the result.

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use rayon::prelude::*;
use std::f64::consts::{PI, TAU};

/// Pixels reach to this radius: beyond it lies 1.5e-8 of the probability.
const RADIUS: f64 = 6.0;
/// Lattice steps and iterations: shaken on coarse pixels, settled on fine ones.
const SHAKEN: (f64, usize) = (0.06, 1500);
const SETTLED: (f64, usize) = (0.02, 150);
/// One of those whose grids err less than the ones that others ship.
const SEED: u64 = 1;

/// `count` (even) points on the line, ascending, symmetric around 0.
pub(super) fn line(count: usize) -> Vec<f64> {
    let evenly = |index: usize| 4.0 * (index as f64 + 0.5) / count as f64 - 2.0;
    let mut points: Vec<f64> = (0..count).map(evenly).collect();
    loop {
        let next: Vec<f64> = cells(&points).map(|(low, high)| mean(low, high)).collect();
        let moved = next.iter().zip(&points).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        points = next;
        // With 16 points a step covers 1/29 of what is left: 3e-12 at most remains.
        if moved < 1e-13 {
            break;
        }
    }
    // Rounding leaves the two halves some 1e-14 apart.
    for index in 0..count / 2 {
        let magnitude = (points[count - 1 - index] - points[index]) / 2.0;
        (points[index], points[count - 1 - index]) = (-magnitude, magnitude);
    }
    points
}

/// The mean squared error of ascending `points` for N(0, 1).
pub(super) fn line_error(points: &[f64]) -> f64 {
    let edge = |x: f64| if x.is_finite() { x * density(x) } else { 0.0 };
    let cell = |((low, high), point): ((f64, f64), &f64)| {
        let variance = mass(low, high) + edge(low) - edge(high);
        let moment = density(low) - density(high);
        variance - 2.0 * point * moment + point * point * mass(low, high)
    };
    cells(points).zip(points).map(cell).sum()
}

/// The cell of each point.
fn cells(points: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    let middle = |index: usize| (points[index] + points[index + 1]) / 2.0;
    let last = points.len() - 1;
    (0..points.len()).map(move |index| {
        let low = if index == 0 { f64::NEG_INFINITY } else { middle(index - 1) };
        (low, if index == last { f64::INFINITY } else { middle(index) })
    })
}

fn mean(low: f64, high: f64) -> f64 {
    (density(low) - density(high)) / mass(low, high)
}

fn mass(low: f64, high: f64) -> f64 {
    below(high) - below(low)
}

fn density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / TAU.sqrt()
}

/// Φ(x) = ½ + φ(x) · (x + x³/3 + x⁵/(3·5) + …): all terms of one sign, so nothing cancels.
fn below(x: f64) -> f64 {
    if x.abs() > 9.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-18 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + density(x) * sum
}

/// `count` points of the plane, sorted by their coordinates.
pub(super) fn plane(count: usize) -> Vec<[f64; 2]> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut points = sunflower(count);
    let (step, rounds) = SHAKEN;
    for round in 0..rounds {
        points = descend(&points, step).0;
        let left = 1.0 - (round + 1) as f64 / rounds as f64;
        let shake = 0.6 * left.powi(3) / (count as f64).sqrt();
        for [x, y] in &mut points {
            let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
            let radius = shake * (-2.0 * radius.ln()).sqrt();
            (*x, *y) = (*x + radius * (TAU * angle).cos(), *y + radius * (TAU * angle).sin());
        }
    }
    let (step, rounds) = SETTLED;
    for _ in 0..rounds {
        points = descend(&points, step).0;
    }
    points.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    points
}

/// The mean squared error of any points of the plane for N(0, I₂), per dimension.
pub(super) fn plane_error(points: &[[f64; 2]]) -> f64 {
    descend(points, SETTLED.0).1
}

/// A spiral as dense as an optimal grid is far from its edge: like the square root of the density (Zador).
fn sunflower(count: usize) -> Vec<[f64; 2]> {
    let turn = PI * (3.0 - 5.0f64.sqrt());
    let point = |index: usize| {
        let rest = 1.0 - (index as f64 + 0.5) / count as f64;
        let (radius, angle) = ((-4.0 * rest.ln()).sqrt(), turn * index as f64);
        [radius * angle.cos(), radius * angle.sin()]
    };
    (0..count).map(point).collect()
}

/// What the pixels of a cell sum to: density, density times x and y.
#[derive(Clone, Copy, Default)]
struct Cell([f64; 3]);

/// The mean of every point's cell, and the mean squared error per dimension of `points` themselves.
fn descend(points: &[[f64; 2]], step: f64) -> (Vec<[f64; 2]>, f64) {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let side = (RADIUS / step).ceil() as i32;
    let columns = (-side..=side).into_par_iter().map(|column| {
        let x = f64::from(column) * step;
        let start = sorted.partition_point(|point| point[0] < x);
        let mut cells = vec![Cell::default(); sorted.len()];
        let (mut error, mut mass) = (0.0, 0.0);
        for row in -side..=side {
            let y = f64::from(row) * step;
            let weight = (-(x * x + y * y) / 2.0).exp();
            let (nearest, distance) = nearest(&sorted, start, [x, y]);
            let Cell(sums) = &mut cells[nearest];
            sums[0] += weight;
            sums[1] += weight * x;
            sums[2] += weight * y;
            error += weight * distance;
            mass += weight;
        }
        (cells, error, mass)
    });
    // Summed in order, so that threads change nothing.
    let columns: Vec<_> = columns.collect();
    let mut sums = vec![Cell::default(); sorted.len()];
    let (mut error, mut mass) = (0.0, 0.0);
    for (cells, column_error, column_mass) in &columns {
        for (Cell(sum), Cell(cell)) in sums.iter_mut().zip(cells) {
            (0..3).for_each(|i| sum[i] += cell[i]);
        }
        (error, mass) = (error + column_error, mass + column_mass);
    }
    let mean = |(Cell([weight, x, y]), point): (&Cell, &[f64; 2])| match *weight > 0.0 {
        true => [x / weight, y / weight],
        false => *point,
    };
    (sums.iter().zip(&sorted).map(mean).collect(), error / mass / 2.0)
}

/// The nearest of points sorted by x, and its squared distance; the search goes outwards from `start`, where their x
/// passes that of `pixel`, until x alone is farther than the best.
fn nearest(sorted: &[[f64; 2]], start: usize, pixel: [f64; 2]) -> (usize, f64) {
    let (mut best, mut least) = (0, f64::INFINITY);
    let mut look = |index: usize| {
        let (dx, dy) = (sorted[index][0] - pixel[0], sorted[index][1] - pixel[1]);
        let distance = dx * dx + dy * dy;
        if distance < least {
            (best, least) = (index, distance);
        }
        dx * dx < least
    };
    let (mut left, mut right) = (start, start);
    let (mut leftward, mut rightward) = (true, true);
    while leftward || rightward {
        if leftward && left > 0 {
            left -= 1;
            leftward = look(left);
        } else {
            leftward = false;
        }
        if rightward && right < sorted.len() {
            rightward = look(right);
            right += 1;
        } else {
            rightward = false;
        }
    }
    (best, least)
}
