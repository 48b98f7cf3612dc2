//! How wide vectors may be: what the device loads, what divides a row, and what the start of each buffer allows.

use cubecl::{prelude::Client, server::Handle};

/// The widest vector, a power of two, in which rows of `len` elements of every one of `buffers` (with the bytes of an
/// element) may be read and written; at least 1.
pub(crate) fn width(client: &Client, len: usize, buffers: &[(&Handle, usize)]) -> usize {
    let most = client.properties().hardware.max_vector_size.max(1);
    let fits = |width: usize| {
        len.is_multiple_of(width)
            && buffers.iter().all(|(buffer, size)| {
                // A tensor may be a view that starts anywhere in its allocation.
                let bytes = width * size;
                bytes <= 16 && buffer.offset_start.unwrap_or(0).is_multiple_of(bytes as u64)
            })
    };
    [8, 4, 2].into_iter().find(|width| *width <= most && fits(*width)).unwrap_or(1)
}
