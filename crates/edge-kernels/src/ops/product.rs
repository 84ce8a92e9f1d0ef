//! Products of strided matrices on the host, through the `gemm` crate.

use gemm::Parallelism;

/// Products below this many multiply-adds stay on one thread.
const PARALLEL_FROM: usize = 1 << 18;

/// Where a matrix lies in a slice, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// Of the first element.
    pub offset: usize,
    /// Between rows.
    pub row: usize,
    /// Between columns.
    pub col: usize,
}

impl Layout {
    /// Row-major with rows `row` apart.
    pub(crate) fn rows(offset: usize, row: usize) -> Self {
        Self { offset, row, col: 1 }
    }

    /// The same memory as the transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        Self { row: self.col, col: self.row, ..self }
    }

    fn check(self, [rows, cols]: [usize; 2], len: usize) {
        let last = self.offset + (rows - 1) * self.row + (cols - 1) * self.col;
        assert!(last < len, "a matrix of {rows}x{cols} reaches element {last} of {len}");
    }
}

/// dst (+)= alpha · a\[m,k\] · b\[k,n\], with `shape` = \[m, n, k\]; large ones on all threads.
///
/// # Panics
/// When a matrix reaches beyond its slice.
pub(crate) fn product(
    shape: [usize; 3],
    alpha: f32,
    accumulate: bool,
    a: (&[f32], Layout),
    b: (&[f32], Layout),
    dst: (&mut [f32], Layout),
) {
    let parallel = shape.iter().product::<usize>() >= PARALLEL_FROM;
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    product_by(parallelism, shape, alpha, accumulate, a, b, dst);
}

/// The same on the calling thread, for references that run in parallel themselves.
///
/// # Panics
/// As [`product`].
pub(crate) fn product_alone(
    shape: [usize; 3],
    alpha: f32,
    accumulate: bool,
    a: (&[f32], Layout),
    b: (&[f32], Layout),
    dst: (&mut [f32], Layout),
) {
    product_by(Parallelism::None, shape, alpha, accumulate, a, b, dst);
}

fn product_by(
    parallelism: Parallelism,
    [m, n, k]: [usize; 3],
    alpha: f32,
    accumulate: bool,
    (a, a_at): (&[f32], Layout),
    (b, b_at): (&[f32], Layout),
    (dst, dst_at): (&mut [f32], Layout),
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    a_at.check([m, k], a.len());
    b_at.check([k, n], b.len());
    dst_at.check([m, n], dst.len());
    // SAFETY: the checks above hold every element of the three matrices within its slice, the
    // strides are at most the slices' lengths, and `dst` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr().add(dst_at.offset),
            dst_at.col as isize,
            dst_at.row as isize,
            accumulate,
            a.as_ptr().add(a_at.offset),
            a_at.col as isize,
            a_at.row as isize,
            b.as_ptr().add(b_at.offset),
            b_at.col as isize,
            b_at.row as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small enough for Miri, which watches what `gemm` reads and writes.
    #[test]
    fn views_are_multiplied_where_they_lie() {
        // a = [[1, 2], [3, 4], [5, 6]] from element 1 on, b = [[1, 0, 2], [0, 1, 3]] transposed.
        let a = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 0.0, 1.0, 2.0, 3.0];
        let mut out = [1.0; 11];
        let (a_at, b_at) = (Layout::rows(1, 2), Layout::rows(0, 2).transposed());
        let out_at = Layout::rows(0, 4);
        product([3, 3, 2], 2.0, true, (&a, a_at), (&b, b_at), (&mut out, out_at));
        assert_eq!(out, [3.0, 5.0, 17.0, 1.0, 7.0, 9.0, 37.0, 1.0, 11.0, 13.0, 57.0]);
    }

    #[test]
    #[should_panic(expected = "reaches element")]
    fn a_view_beyond_its_slice_is_refused() {
        let (a, mut out) = ([0.0; 4], [0.0; 3]);
        let at = Layout::rows(0, 2);
        product([2, 2, 2], 1.0, false, (&a, at), (&a, at), (&mut out, at));
    }
}
