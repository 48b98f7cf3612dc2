//! Kernels against the definition of correct, on every runtime that this machine has.
//!
//! `FLUTE_REQUIRE=cuda,wgpu` makes a missing runtime a failure; without it, it is a line of output.
//! `FLUTE_MATRIX` chooses how much of the matrix runs:
//!
//! - `quick` (the default): every value of every axis and every plan, but not every pair of them.
//! - `full`: the whole product of the axes. Every case runs with its selected plan and with an eighth of the others,
//!   dealt so that each plan meets all bits, types and groups. In as many processes as there are cores, up to 16.
//! - `every`: the same with all plans, which is hours of compilation where there are hundreds.
//! - `sanitize`: 100 small cases of one launch each, for compute-sanitizer.
//!
//! `FLUTE_SHARD=2/4` runs the second quarter of `quick`, `full` or `every`, and `FLUTE_CASE` the cases whose name contains its
//! value.

mod attend;
mod blocks;
mod case;
mod choose;
mod clusters;
mod cooperative;
mod decode;
mod dense;
mod device;
mod elsewhere;
mod gate;
mod gated;
mod gemv;
mod hadamard;
mod lengths;
mod matrix;
mod next;
mod norm;
mod oracle;
mod plans;
mod prompt;
mod recorded;
mod refusals;
mod repeats;
mod rotate;
mod rows;
mod run;
mod selection;
mod tuning;
