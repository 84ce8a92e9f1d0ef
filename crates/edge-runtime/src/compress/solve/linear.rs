//! Linear algebra by faer, on one thread: the same sums in the same order, whatever the machine
//! is busy with. Threads work beside each other on other rows.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, MatMut, MatRef, Par, Spec};

/// What faer keeps for each thread that multiplies, for copies of blocks that fit into caches.
pub(super) const THREAD_BYTES: u64 = 4 << 20;

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

/// The inverse of a lower triangular matrix that lies by columns; it lies by rows.
pub(super) fn invert(lower: &[f32], k: usize) -> Vec<f32> {
    let mut out = vec![0.0; k * k];
    let lower = MatRef::from_column_major_slice(lower, k, k);
    invert_lower_triangular(MatMut::from_row_major_slice_mut(&mut out, k, k), lower, Par::Seq);
    clear_upper_halves();
    out
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
