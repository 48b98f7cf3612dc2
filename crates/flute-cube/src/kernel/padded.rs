//! Rows of x as tensor copies want them: whole vectors of 16 bytes, from an address that is one.

use crate::Problem;
use cubecl::{prelude::*, server::Handle};

/// x in rows of whole vectors of 16 bytes: itself, or a copy whose rows end in zeros.
pub(super) fn vectors_of_x<F: Float + CubeElement>(
    client: &Client,
    problem: &Problem,
    x: &Handle,
) -> Handle {
    let Problem { m, k, .. } = *problem;
    if k.is_multiple_of(8) && x.offset_start.unwrap_or(0).is_multiple_of(16) {
        return x.clone();
    }
    let len = m * k.next_multiple_of(8);
    let copy = client.empty(2 * len);
    // SAFETY: `x` was measured, `copy` holds `len` elements, and the kernel stays below both.
    unsafe {
        pad_rows::launch_unchecked::<F>(
            client,
            CubeCount::Static((len.div_ceil(256) as u32).min(1 << 16), 1, 1),
            CubeDim::new_1d(256),
            BufferArg::from_raw_parts(x.clone(), m * k),
            BufferArg::from_raw_parts(copy.clone(), len),
            k as u32,
        );
    }
    copy
}

/// Rows of `k` elements to rows of the next multiple of eight, the rest of them 0.
#[cube(launch_unchecked)]
fn pad_rows<F: Float>(x: &[F], copy: &mut [F], k: u32) {
    let (from, to) = (k as usize, (k as usize).div_ceil(8) * 8);
    let mut i = ABSOLUTE_POS;
    while i < copy.len() {
        let (row, column) = (i / to, i % to);
        copy[i] = select(column < from, x[row * from + min(column, from - 1)], F::new(0.0));
        i += CUBE_COUNT * CUBE_DIM as usize;
    }
}
