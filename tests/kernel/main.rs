//! Kernels against the definition of correct, on every runtime that this machine has.
//!
//! `FLUTE_REQUIRE=cuda,wgpu` makes a missing runtime a failure; without it, it is a line of output.
//! `FLUTE_MATRIX` chooses how much of the matrix runs: `quick` (the default: every value of every axis and every
//! plan), `full` (the whole product; `FLUTE_SHARD=2/4` runs its second quarter) or `sanitize` (100 cases of one plan
//! each, small enough for compute-sanitizer). `FLUTE_CASE` runs the cases whose name contains its value.

mod case;
mod device;
mod matrix;
mod oracle;
mod refusals;
mod run;
