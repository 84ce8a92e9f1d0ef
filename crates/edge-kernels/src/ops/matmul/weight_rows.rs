//! Weights in f32, some rows at a time, for references of products.

use crate::format::Format;
use crate::op::HostBuffer;
use crate::pack::unpack_rows;

/// Weight rows that are dequantised at a time: bounds the scratch memory of the host device.
const STRIP_ROWS: usize = 512;

/// Calls `visit(first row, rows)` over a weight matrix `[n, k]` in f32, a strip at a time.
pub(crate) fn for_weight_rows(
    format: Format,
    shape: [u32; 2],
    weights: &[HostBuffer<'_>],
    mut visit: impl FnMut(usize, &[f32]),
) {
    let [n, k] = shape.map(|size| size as usize);
    if format == Format::F32 {
        visit(0, &weights[0].f32()[..n * k]);
        return;
    }
    let scales = weights.get(1).map_or(&[][..], HostBuffer::u32);
    let mut strip = vec![0.0; STRIP_ROWS.min(n) * k];
    for first in (0..n).step_by(STRIP_ROWS) {
        let rows = STRIP_ROWS.min(n - first);
        let strip = &mut strip[..rows * k];
        unpack_rows(format, shape, weights[0].u32(), scales, first, strip);
        visit(first, strip);
    }
}
