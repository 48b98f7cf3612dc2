//! `flute grid`: makes a grid of least mean squared error for the normal distribution and prints it as JSON.

use crate::args::GridArgs;
use crate::output;
use flute_burn::quantize::grid;

pub(crate) fn run(args: &GridArgs) -> anyhow::Result<()> {
    Ok(output::json(&grid::generate(args.bits, args.dimension.into())?)?)
}
