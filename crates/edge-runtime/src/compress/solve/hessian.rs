//! The Hessian of a layer's inputs, and the factor of its inverse.

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use super::linear::{self, Rows};

/// The share of the mean diagonal that is added to the diagonal, by default: GPTQ's.
pub const DAMPING: f64 = 0.01;

/// Columns of a product that are held at once.
pub(super) const TILE: usize = 256;

/// Doublings of the damping after which a matrix is no sum of `x xᵀ`: 1 % has become 10^7 times
/// the mean diagonal.
const DOUBLINGS: u32 = 30;

/// What the squared error of a layer's output depends on: its inputs' second moments.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Input channels.
    pub k: usize,
    /// The sum of `x xᵀ` over all tokens, `[k, k]`, both triangles.
    pub sum: Vec<f32>,
    /// Tokens in the sum.
    pub tokens: u64,
}

impl Hessian {
    /// The diagonal `[k]`: importance of inputs for [`nearest`](super::nearest).
    pub fn diagonal(&self) -> Vec<f32> {
        self.sum.iter().step_by(self.k + 1).copied().collect()
    }

    /// `tr(D H Dᵀ)` of `rows [n, k]`.
    pub(super) fn quadratic(&self, rows: &[f32]) -> f64 {
        let k = self.k;
        let n = rows.len() / k.max(1);
        let mut product = vec![0.0; n * TILE.min(k)];
        let mut sum = 0.0;
        for first in (0..k).step_by(TILE) {
            let width = TILE.min(k - first);
            let product = &mut product[..n * width];
            product.fill(0.0);
            // The triangle beside a tile of the diagonal counts twice, for its mirror image.
            for (columns, by) in [(0..first, 2.0), (first..first + width, 1.0)] {
                let (start, inner) = (columns.start, columns.len());
                linear::add_product(
                    Rows { data: &mut *product, rows: n, cols: width, stride: width },
                    Rows { data: &rows[start..], rows: n, cols: inner, stride: k },
                    Rows {
                        data: &self.sum[start * k + first..],
                        rows: inner,
                        cols: width,
                        stride: k,
                    },
                    by,
                );
            }
            for (product, row) in product.chunks_exact(width).zip(rows.chunks_exact(k)) {
                let terms = product.iter().zip(&row[first..]);
                sum += terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            }
        }
        sum
    }
}

/// A Hessian with the factor of its inverse, for all matrices that have the same inputs.
///
/// The factor is `U`, upper triangular, with `UᵀU = (H / mean + damping I)⁻¹`, where `mean` is the
/// mean of the diagonal. `U[j, j]²` is the diagonal of the inverse of `H` without the columns
/// before `j`, which are done with, and `U[j, j..] / U[j, j]` is what the error of column `j` moves
/// the columns from `j` by. An input that is always 0 has the damping for its curvature: its
/// weights are rounded for themselves, and are the first to be pruned, but are not made 0, since
/// another text may need them.
#[derive(Debug)]
pub struct Prepared<'a> {
    hessian: &'a Hessian,
    factor: Vec<f32>,
    damping: f64,
}

impl<'a> Prepared<'a> {
    /// Factorises, with `damping` times the mean diagonal added to the diagonal ([`DAMPING`]), or
    /// twice that, and so on, until the factorisation succeeds.
    ///
    /// # Errors
    /// When the sums are not finite, of no tokens, or cannot be sums of `x xᵀ`.
    ///
    /// # Panics
    /// When `sum` has not `k * k` elements, or the damping is not positive.
    pub fn new(hessian: &'a Hessian, damping: f64) -> Result<Self> {
        let k = hessian.k;
        assert_eq!(hessian.sum.len(), k * k, "size of the Hessian");
        assert!(damping > 0.0 && damping.is_finite(), "damping {damping}");
        ensure!(hessian.tokens > 0, "the calibration has no tokens; give it a longer text");
        if let Some(i) = hessian.sum.par_iter().position_first(|x| !x.is_finite()) {
            bail!(
                "the sum of the products of inputs {} and {} over {} tokens of calibration is {}, \
                 not a finite number; calibrate on other text or another device",
                i / k,
                i % k,
                hessian.tokens,
                hessian.sum[i]
            );
        }
        let diagonal = hessian.diagonal();
        if let Some(j) = diagonal.iter().position(|x| *x < 0.0) {
            bail!("the sum of squares of input {j} is {}; calibrate again", diagonal[j]);
        }
        let mean = diagonal.iter().map(|x| f64::from(*x)).sum::<f64>() / k.max(1) as f64;
        // Of inputs that are all 0 nothing is known.
        let inverse_mean = if mean > 0.0 { 1.0 / mean } else { 0.0 };
        let mut work = Vec::new();
        let used = (0..=DOUBLINGS).map(|i| damping * f64::from(i).exp2()).find(|damping| {
            work.clear();
            // Backwards: the lower factor of that, inverted and turned round again, is the upper
            // one that is wanted.
            work.extend(hessian.sum.iter().rev().map(|x| (f64::from(*x) * inverse_mean) as f32));
            work.iter_mut().step_by(k + 1).for_each(|x| *x += *damping as f32);
            linear::factorise(&mut work, k)
        });
        let Some(damping) = used else {
            bail!(
                "the sums over {} tokens of calibration are not positive semi-definite; calibrate \
                 again",
                hessian.tokens
            );
        };
        linear::invert_in_place(&mut work, k);
        work.reverse();
        Ok(Self { hessian, factor: work, damping })
    }

    /// What was prepared.
    pub fn hessian(&self) -> &'a Hessian {
        self.hessian
    }

    /// The damping that it took, as a share of the mean diagonal.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// `U [k, k]`, row-major, with zeros below the diagonal.
    pub(super) fn factor(&self) -> &[f32] {
        &self.factor
    }
}
