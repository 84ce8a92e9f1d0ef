//! The solver of layer-wise compression: one weight matrix in, one packed matrix out, pruned and
//! quantised together so that the layer's output on calibration inputs changes least.
//!
//! For a weight `W [n, k]` and the sum `H [k, k]` of `x xᵀ` over the calibration's inputs `x`,
//! the squared change of the outputs is `tr(dW H dWᵀ)`. [`second_order`] lowers it column by
//! column: what a column loses by pruning and rounding is made up for in the columns that are
//! still to come, by the optimal brain surgeon's step (GPTQ, Frantar et al. 2022; SparseGPT,
//! Frantar & Alistarh 2023). [`nearest`] moves no weight: it prunes by the weights' and inputs'
//! sizes (Wanda, Sun et al. 2023) and searches scales, for when there is no time or no Hessian.
//!
//! Nothing here knows files or devices, and results are the same for any number of threads: rows
//! are solved in strips of fixed size, each by one thread. Another machine's vector instructions
//! may round sums otherwise.

mod columns;
mod hessian;
mod linear;
mod scale;

#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};
use edge_kernels::Format;
use edge_kernels::pack::{self, PackedHost, Scale};
use rayon::prelude::*;

use columns::{Curvature, Solver};
pub use hessian::{DAMPING, Hessian, Prepared};

/// Rows that a thread solves together: a multiple of the rows that share positions.
const STRIP: usize = 64;

/// A weight matrix to solve.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// Output channels, `n`.
    pub rows: usize,
    /// Input channels, `k`.
    pub cols: usize,
    /// The weights `[rows, cols]`, row-major.
    pub data: &'a [f32],
}

/// A solved matrix.
#[derive(Clone, Debug)]
pub struct Solved {
    /// The matrix as kernels read it.
    pub packed: PackedHost,
    /// `tr(dW H dWᵀ) / tr(W H Wᵀ)`: the squared change of the layer's outputs on the calibration,
    /// relative to the outputs. Without a Hessian, the same with the diagonal that was given.
    pub error: f64,
}

/// Prunes and quantises with second-order information.
///
/// Columns are taken in order. The scale (and minimum) of a group is searched when its first
/// column is reached, on the weights as they are by then; of each four columns the two to keep are
/// chosen when the first of them is reached, those with the largest `w² / [H⁻¹]_jj` (SparseGPT's
/// criterion) in sum over the rows that share positions.
///
/// # Errors
/// When a weight is not finite.
///
/// # Panics
/// When the sizes of weight and Hessian do not fit together.
pub fn second_order(weight: Weight, format: Format, prepared: &Prepared) -> Result<Solved> {
    assert_eq!(weight.cols, prepared.hessian().k, "inputs of the weight and of the Hessian");
    let solved = solve(weight, format, &Curvature::of(prepared))?;
    let error = output_error(weight, &solved.1, prepared.hessian());
    Ok(Solved { packed: solved.0, error })
}

/// Prunes and quantises each weight for itself, with the scales whose squared errors are least.
///
/// `importance [cols]` is the diagonal of the Hessian: it weighs the squared errors, and weights
/// are kept by `w² h`, as Wanda's `|w| sqrt(h)` orders them, in sum over the rows that share
/// positions. Without it all inputs count alike.
///
/// # Errors
/// When a weight or an importance is not finite, or an importance is negative.
///
/// # Panics
/// When the sizes do not fit together.
pub fn nearest(weight: Weight, format: Format, importance: Option<&[f32]>) -> Result<Solved> {
    let ones = vec![1.0; weight.cols];
    let importance = importance.unwrap_or(&ones);
    assert_eq!(importance.len(), weight.cols, "inputs of the weight and their importance");
    if let Some(j) = importance.iter().position(|h| !h.is_finite() || *h < 0.0) {
        anyhow::bail!(
            "the importance of input {j} is {}, not a sum of squares; calibrate with other text",
            importance[j]
        );
    }
    let (packed, solved) = solve(weight, format, &Curvature::diagonal(importance))?;
    let rows = weight.data.par_chunks(weight.cols.max(1));
    let sums = rows.zip(solved.par_chunks(weight.cols.max(1))).map(|(original, solved)| {
        let mut sums = [0.0_f64; 2];
        for ((w, q), h) in original.iter().zip(solved).zip(importance) {
            let (w, q, h) = (f64::from(*w), f64::from(*q), f64::from(*h));
            sums[0] += (w - q) * (w - q) * h;
            sums[1] += w * w * h;
        }
        sums
    });
    Ok(Solved { packed, error: ratio(sums.collect()) })
}

/// `tr(dW H dWᵀ) / tr(W H Wᵀ)` of a matrix that stands for a weight: `solved [rows, cols]`, such
/// as [`PackedHost::unpack`] gives; 0 where the layer has no output anyway.
///
/// # Panics
/// When the sizes do not fit together.
pub fn output_error(weight: Weight, solved: &[f32], hessian: &Hessian) -> f64 {
    assert_eq!(weight.cols, hessian.k, "inputs of the weight and of the Hessian");
    assert_eq!(weight.data.len(), solved.len(), "size of the matrix");
    let strip = (STRIP * weight.cols).max(1);
    let strips = weight.data.par_chunks(strip).zip(solved.par_chunks(strip));
    let sums = strips.map(|(original, solved)| {
        let moved: Vec<f32> = original.iter().zip(solved).map(|(w, q)| w - q).collect();
        [hessian.quadratic(&moved), hessian.quadratic(original)]
    });
    ratio(sums.collect())
}

/// The quotient of two sums of which each thread has a part; added in order.
fn ratio(parts: Vec<[f64; 2]>) -> f64 {
    let [part, whole] = parts.iter().fold([0.0, 0.0], |[a, b], [x, y]| [a + x, b + y]);
    if whole > 0.0 { part.max(0.0) / whole } else { 0.0 }
}

/// The most bytes of host memory that [`Prepared::new`] and [`second_order`] of a weight
/// `[rows, cols]` in this format take at once, with what they are given, the weight and the
/// Hessian: two matrices `[cols, cols]`, two `[rows, cols]`, the packed one, and what rayon's
/// threads and the calling one work with.
pub fn solver_bytes(format: Format, rows: usize, cols: usize) -> u64 {
    let [n, k] = [rows, cols].map(|size| size as u64);
    let sparse = format.packing().is_some_and(|packing| packing.is_sparse());
    let mask = if sparse { n * k } else { 0 };
    let groups = format.group().map_or(0, |group| k.div_ceil(u64::from(group)));
    // By rows, then by groups too.
    let scales = size_of::<Scale>() as u64 * groups * n;
    let packed = format.bytes(rows as u32, cols as u32) + scales;
    let threads = rayon::current_num_threads() as u64;
    // Two matrices of a strip's rows: what rounding moved, and errors or a product.
    let strips = threads * 4 * STRIP as u64 * (k + hessian::TILE as u64);
    let solve = 4 * (2 * k * k + 2 * n * k) + mask + scales + packed.max(strips);
    let prepare = 4 * (2 * k * k + n * k) + linear::inversion_bytes(cols);
    (threads + 1) * linear::THREAD_BYTES + Curvature::bytes(cols) + solve.max(prepare)
}

/// Solves; the packed matrix, and what it unpacks to.
fn solve(weight: Weight, format: Format, curvature: &Curvature) -> Result<(PackedHost, Vec<f32>)> {
    let Weight { rows, cols, data } = weight;
    assert_eq!(data.len(), rows * cols, "size of the weight");
    if let Some(i) = data.par_iter().position_first(|x| !x.is_finite()) {
        let (row, column, x) = (i / cols, i % cols, data[i]);
        ensure!(
            x.is_finite(),
            "row {row}, column {column} of the weight is {x}, not a finite number; download the \
             checkpoint again"
        );
    }
    let packing = format.packing();
    let sparse = packing.is_some_and(|packing| packing.is_sparse());
    let groups = format.group().map_or(0, |group| cols.div_ceil(group as usize));
    let mut solved = data.to_vec();
    let mut mask = vec![true; if sparse { data.len() } else { 0 }];
    let mut scales = vec![Scale::default(); rows * groups];
    let solver = Solver { format, cols, curvature };
    if !data.is_empty() {
        let mut masks = mask.chunks_mut(STRIP * cols);
        let mut scales = scales.chunks_mut((STRIP * groups).max(1));
        let strips = solved.chunks_mut(STRIP * cols).map(|weights| columns::Strip {
            weights,
            mask: masks.next().unwrap_or_default(),
            scales: scales.next().unwrap_or_default(),
        });
        let strips: Vec<columns::Strip> = strips.collect();
        strips.into_par_iter().for_each(|strip| solver.solve(strip));
    }
    let [n, k] = [rows, cols].map(|size| size as u32);
    let Some(packing) = packing else { return Ok((pack::pack(format, n, k, &solved), solved)) };
    let by_group = (0..groups * rows).map(|i| scales[i % rows * groups + i / rows]);
    let by_group: Vec<Scale> = by_group.collect();
    Ok((pack::pack_scaled(packing, n, k, &solved, &mask, &by_group), solved))
}
