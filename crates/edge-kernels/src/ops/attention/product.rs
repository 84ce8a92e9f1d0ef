//! Small products of strided matrices, on one thread: the references run in parallel over blocks
//! of rows and sequences already.

use gemm::Parallelism;

/// Part of a slice as a matrix.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// First element.
    pub offset: usize,
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub col: usize,
}

impl View {
    /// Rows of contiguous elements, `row` apart.
    pub(super) fn rows(offset: usize, row: usize) -> Self {
        Self { offset, row, col: 1 }
    }

    /// The transposed matrix.
    pub(super) fn transposed(self) -> Self {
        Self { row: self.col, col: self.row, ..self }
    }

    fn assert_within(self, rows: usize, cols: usize, len: usize) {
        let last = self.offset + (rows - 1) * self.row + (cols - 1) * self.col;
        assert!(last < len, "element {last} of a slice of {len}");
    }
}

/// `out[m,n] (+)= factor · a[m,k] · b[k,n]`, for `[m, n, k]`.
pub(super) fn product(
    [m, n, k]: [usize; 3],
    factor: f32,
    accumulate: bool,
    (a, a_view): (&[f32], View),
    (b, b_view): (&[f32], View),
    (out, out_view): (&mut [f32], View),
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    a_view.assert_within(m, k, a.len());
    b_view.assert_within(k, n, b.len());
    out_view.assert_within(m, n, out.len());
    // SAFETY: every element of the three matrices lies within its slice, as just asserted, and
    // `out` is borrowed mutably, so it overlaps neither of the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr().add(out_view.offset),
            out_view.col as isize,
            out_view.row as isize,
            accumulate,
            a.as_ptr().add(a_view.offset),
            a_view.col as isize,
            a_view.row as isize,
            b.as_ptr().add(b_view.offset),
            b_view.col as isize,
            b_view.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
