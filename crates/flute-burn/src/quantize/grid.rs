//! Grids: the `2^(bits·p)` points that best stand for a normal variable of p dimensions.
//!
//! Rotated weights, divided by the norm of their block, are close to N(0, 1); a table of least mean squared error for
//! it is what HIGGS (arXiv 2411.17525) quantizes with. p is 1 or 2, what the kernels' tables hold. On the line the grid
//! is computed when it is asked for; those of the plane take seconds to make and are shipped, so that a weight has the
//! same codes on every machine.

use super::{lloyd, planes};
use crate::error::{Error, Result};
use flute_cube::{Bits, Table};
use serde::Serialize;

/// A grid, freshly made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// Bits of a code, per weight.
    pub bits: Bits,
    /// Dimensions: weights that one code names.
    pub p: usize,
    /// Mean squared error for a standard normal variable, per dimension.
    pub error: f64,
    /// The points, each of p coordinates, sorted.
    pub points: Vec<Vec<f64>>,
}

/// Makes the grid of `bits` and `p` anew: at once for p = 1, in seconds for p = 2.
///
/// # Errors
/// [`Error::InvalidOption`] unless p is 1 or 2.
pub fn generate(bits: Bits, p: usize) -> Result<Grid> {
    check_p(p)?;
    let (points, error): (Vec<Vec<f64>>, f64) = if p == 1 {
        let points = lloyd::line(bits.codes());
        let error = lloyd::line_error(&points);
        (points.into_iter().map(|point| vec![point]).collect(), error)
    } else {
        let points = lloyd::plane(bits.pairs());
        let error = lloyd::plane_error(&points);
        (points.iter().map(|point| point.to_vec()).collect(), error)
    };
    Ok(Grid { bits, p, error, points })
}

/// The grid of `bits` and `p` as a table.
///
/// # Errors
/// [`Error::InvalidOption`] unless p is 1 or 2.
///
/// ```
/// use flute_burn::quantize::grid;
/// use flute_cube::Bits;
///
/// let table = grid::table(Bits::Two, 1)?;
/// assert_eq!(table.values(), [-1.510_417_6, -0.452_780_04, 0.452_780_04, 1.510_417_6]);
/// # Ok::<(), flute_burn::error::Error>(())
/// ```
pub fn table(bits: Bits, p: usize) -> Result<Table> {
    check_p(p)?;
    if p == 1 {
        let points: Vec<f32> = lloyd::line(bits.codes()).iter().map(|x| *x as f32).collect();
        return Ok(Table::custom(bits, &points)?);
    }
    let points: &[[f32; 2]] = match bits {
        Bits::Two => &planes::TWO,
        Bits::Three => &planes::THREE,
        Bits::Four => &planes::FOUR,
    };
    Ok(Table::pairs(bits, points)?)
}

/// The mean squared error of a table's values for a standard normal variable, per dimension.
pub fn error(table: &Table) -> f64 {
    if table.dim() == 2 {
        let (points, _) = table.values().as_chunks();
        let wide: Vec<[f64; 2]> =
            points.iter().map(|point: &[f32; 2]| point.map(f64::from)).collect();
        return lloyd::plane_error(&wide);
    }
    let mut points: Vec<f64> = table.values().iter().map(|value| f64::from(*value)).collect();
    points.sort_by(f64::total_cmp);
    lloyd::line_error(&points)
}

fn check_p(p: usize) -> Result<()> {
    match p {
        1 | 2 => Ok(()),
        _ => Err(Error::InvalidOption { name: "p", found: p.to_string(), needed: "1 or 2".into() }),
    }
}
