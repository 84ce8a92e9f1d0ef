//! Linear algebra by faer, on one thread: the same sums in the same order, whatever the machine
//! is busy with. Threads work beside each other on other rows.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, MatMut, MatRef, Par, Spec};

/// What faer keeps for each thread that multiplies, for copies of blocks that fit into caches.
pub(super) const THREAD_BYTES: u64 = 4 << 20;

/// Columns that are inverted together.
const INVERTED: usize = 128;

/// Rows and columns that are transposed together.
const TRANSPOSED: usize = 64;

/// Numbers of a row-major matrix `[rows, cols]` that begin `stride` apart from row to row.
#[derive(Clone, Copy)]
pub(super) struct Rows<T> {
    pub data: T,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl<'a> Rows<&'a [f32]> {
    fn view(self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice_with_stride(self.data, self.rows, self.cols, self.stride)
    }
}

impl<'a> Rows<&'a mut [f32]> {
    fn view(self) -> MatMut<'a, f32> {
        let Self { data, rows, cols, stride } = self;
        // By columns and transposed: `from_row_major_slice_with_stride_mut` of faer 0.24 takes
        // the stride of rows for that of columns.
        MatMut::from_column_major_slice_with_stride_mut(data, cols, rows, stride).transpose_mut()
    }
}

/// `out += factor * left · right`.
pub(super) fn add_product(out: Rows<&mut [f32]>, left: Rows<&[f32]>, right: Rows<&[f32]>, by: f32) {
    matmul::matmul(out.view(), Accum::Add, left.view(), right.view(), by, Par::Seq);
    clear_upper_halves();
}

/// The Cholesky factor of `matrix [k, k]` in place, in the triangle that is lower by columns;
/// false where there is none.
pub(super) fn factorise(matrix: &mut [f32], k: usize) -> bool {
    let params = Spec::<llt::LltParams, f32>::default();
    let scratch = llt::cholesky_in_place_scratch::<f32>(k, Par::Seq, params);
    let mut memory = MemBuffer::new(scratch);
    let lower = MatMut::from_column_major_slice_mut(&mut *matrix, k, k);
    let stack = MemStack::new(&mut memory);
    let done = llt::cholesky_in_place(lower, Default::default(), Par::Seq, stack, params).is_ok();
    clear_upper_halves();
    done && matrix.iter().step_by(k + 1).all(|x| x.is_finite() && *x > 0.0)
}

/// The inverse of a lower triangular matrix that lies by columns, in its place, by rows, with zeros
/// in the other triangle, whatever was there. Beside the matrix it takes a block's columns twice.
///
/// From the last block of columns to the first, `[A 0; B C]` with `C` inverted already becomes
/// `[A⁻¹ 0; -C⁻¹ B A⁻¹ C⁻¹]` (LAPACK's `trtri`): faer inverts out of place only, and a further
/// matrix of this size is what a budget has no room for.
pub(super) fn invert_in_place(matrix: &mut [f32], k: usize) {
    let mut diagonal = vec![0.0; INVERTED * INVERTED];
    let mut below = vec![0.0; INVERTED * k];
    let mut end = k;
    while end > 0 {
        let start = (end - 1) / INVERTED * INVERTED;
        let (width, rest) = (end - start, k - end);
        let whole = MatMut::from_column_major_slice_mut(&mut *matrix, k, k);
        let (_, _, _, rest_of) = whole.split_at_mut(start, start);
        let (mut top, _, mut under, inverted) = rest_of.split_at_mut(width, width);
        let mut own =
            MatMut::from_column_major_slice_mut(&mut diagonal[..width * width], width, width);
        own.fill(0.0);
        invert_lower_triangular(own.as_mut(), top.as_ref(), Par::Seq);
        let mut copy = MatMut::from_column_major_slice_mut(&mut below[..rest * width], rest, width);
        copy.copy_from(&under);
        matmul::matmul(under.as_mut(), Accum::Replace, copy.as_ref(), own.as_ref(), 1.0, Par::Seq);
        copy.copy_from(&under);
        triangular::matmul(
            under,
            BlockStructure::Rectangular,
            Accum::Replace,
            inverted.as_ref(),
            BlockStructure::TriangularLower,
            copy.as_ref(),
            BlockStructure::Rectangular,
            -1.0,
            Par::Seq,
        );
        top.copy_from(&own);
        end = start;
    }
    clear_upper_halves();
    transpose_lower(matrix, k);
}

/// What [`invert_in_place`] takes beside the matrix.
pub(super) fn inversion_bytes(k: usize) -> u64 {
    4 * (INVERTED * (INVERTED + k)) as u64
}

/// Moves the triangle that is lower by columns to where it is lower by rows; zeros in its place.
fn transpose_lower(matrix: &mut [f32], k: usize) {
    // By tiles, of which rows and columns fit into the cache together.
    for first in (0..k).step_by(TRANSPOSED) {
        for second in (first..k).step_by(TRANSPOSED) {
            for column in first..k.min(first + TRANSPOSED) {
                for row in second.max(column + 1)..k.min(second + TRANSPOSED) {
                    matrix[row * k + column] = std::mem::take(&mut matrix[column * k + row]);
                }
            }
        }
    }
}

/// Ends what faer's assembly on x86-64 leaves open: it returns without `vzeroupper`, and as long
/// as the upper halves of the vector registers are in use, each scalar instruction waits for them.
/// The rest of the solver took ten times as long.
fn clear_upper_halves() {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx")]
        fn clear() {
            std::arch::x86_64::_mm256_zeroupper();
        }
        if std::arch::is_x86_feature_detected!("avx") {
            // SAFETY: the processor has AVX.
            unsafe { clear() }
        }
    }
}
