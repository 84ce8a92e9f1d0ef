//! The solver's work on a strip of rows: columns in order, each pruned, rounded, and its error
//! passed on.

use std::ops::Range;

use edge_kernels::pack::{self, Scale};
use edge_kernels::{Format, Packing};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, Par};

use super::hessian::{DAMPING, Prepared, strided};
use super::mask::{Costs, FOUR};
use super::scale;

/// Columns whose errors reach the columns behind them in one product of matrices. A multiple of
/// every group.
const BATCH: usize = 128;

/// Most columns that share a scale.
const MAX_GROUP: usize = 64;

/// What the solver knows of the inputs.
pub(super) struct Curvature<'a> {
    /// `U [k, k]` of [`Prepared`]; without it no error is passed on.
    factor: Option<&'a [f32]>,
    /// `U[j, j]`.
    diagonal: Vec<f32>,
    /// `1 / U[j, j]²`: what a squared error of column `j` costs.
    importance: Vec<f32>,
    /// Of each four columns.
    costs: Vec<Costs>,
}

impl<'a> Curvature<'a> {
    /// That of a Hessian.
    pub(super) fn of(prepared: &'a Prepared) -> Self {
        let (k, factor) = (prepared.hessian().k, prepared.factor());
        let diagonal = factor.iter().step_by(k + 1).copied().collect();
        let above = |first: usize, row: usize, column: usize| {
            f64::from(factor[(first + row) * k + first + column])
        };
        let inverse = |first: usize, a: usize, b: usize| {
            (0..=a.min(b)).map(|i| above(first, i, a) * above(first, i, b)).sum()
        };
        Self { factor: Some(factor), ..Self::new(diagonal, inverse) }
    }

    /// That of a diagonal Hessian, damped by [`DAMPING`].
    pub(super) fn diagonal(hessian: &[f32]) -> Self {
        let sum: f64 = hessian.iter().map(|h| f64::from(*h)).sum();
        let inverse_mean = if sum > 0.0 { hessian.len() as f64 / sum } else { 0.0 };
        let damped = |h: &f32| (f64::from(*h) * inverse_mean) as f32 + DAMPING as f32;
        let diagonal: Vec<f32> = hessian.iter().map(|h| damped(h).sqrt().recip()).collect();
        let of = diagonal.clone();
        Self::new(
            diagonal,
            |first, a, b| {
                if a == b { f64::from(of[first + a]).powi(2) } else { 0.0 }
            },
        )
    }

    /// Of the diagonal of `U`, and the inverse Hessians of each four columns (the first of them,
    /// then row and column) and all behind them.
    fn new(diagonal: Vec<f32>, inverse: impl Fn(usize, usize, usize) -> f64) -> Self {
        let k = diagonal.len();
        let importance = diagonal.iter().map(|u| (u * u).recip()).collect();
        let fours = (0..k).step_by(FOUR);
        let costs = fours.map(|first| Costs::new(|a, b| inverse(first, a, b), k - first));
        Self { factor: None, costs: costs.collect(), importance, diagonal }
    }

    /// Bytes beside the factor, for `k` columns.
    pub(super) fn bytes(k: usize) -> u64 {
        (2 * size_of::<f32>() * k + size_of::<Costs>() * k.div_ceil(FOUR)) as u64
    }
}

/// Some rows that one thread solves.
pub(super) struct Strip<'a> {
    /// Weights, then what they become, `[rows, cols]`.
    pub weights: &'a mut [f32],
    /// What is kept, `[rows, cols]`; empty where all is.
    pub mask: &'a mut [bool],
    /// Of each row and group, `[rows, groups]`; empty in formats without scales.
    pub scales: &'a mut [Scale],
}

/// What is the same for all rows.
pub(super) struct Solver<'a> {
    pub format: Format,
    pub cols: usize,
    pub curvature: &'a Curvature<'a>,
}

impl Solver<'_> {
    /// Solves a strip. Its first row must be the first of those that share positions.
    pub(super) fn solve(&self, strip: Strip) {
        let Strip { weights, mask, scales } = strip;
        let rows = weights.len() / self.cols;
        let sparse = self.format.packing().filter(|packing| packing.is_sparse());
        let shared = sparse.map_or(1, |packing| packing.rows_of_positions() as usize);
        let groups = scales.len() / rows;
        let mut errors = vec![0.0; rows * BATCH];
        for first in (0..self.cols).step_by(BATCH) {
            let columns = first..(first + BATCH).min(self.cols);
            let mut masks = mask.chunks_mut(shared * self.cols);
            let mut scales = scales.chunks_mut((shared * groups).max(1));
            let errors_of = errors.chunks_mut(shared * BATCH);
            for (weights, errors) in weights.chunks_mut(shared * self.cols).zip(errors_of) {
                let mut band = Band {
                    weights,
                    mask: masks.next().unwrap_or_default(),
                    scales: scales.next().unwrap_or_default(),
                    groups,
                };
                self.columns(&mut band, columns.clone(), errors);
            }
            self.pass_on(weights, columns, &errors);
        }
    }

    /// Columns of a batch, in rows that share their positions, and their errors
    /// `(w - q) / U[j, j]`, `[rows, BATCH]`.
    fn columns(&self, band: &mut Band, columns: Range<usize>, errors: &mut [f32]) {
        let Self { cols, curvature, .. } = *self;
        let group = self.format.group().map_or(usize::MAX, |group| group as usize);
        for j in columns.clone() {
            if let Some(packing) = self.format.packing() {
                if j % group == 0 && group != usize::MAX {
                    self.search(band, packing, j..(j + group).min(cols));
                }
                if packing.is_sparse() && j % FOUR == 0 {
                    self.prune(band, j);
                }
            }
            let rows = band.weights.chunks_exact_mut(cols).zip(errors.chunks_exact_mut(BATCH));
            for (n, (row, errors)) in rows.enumerate() {
                let kept = band.mask.get(n * cols + j).is_none_or(|kept| *kept);
                let scale = band.scales.get(n * band.groups + j / group);
                let scale = scale.copied().unwrap_or_default();
                let rounded = if kept { pack::nearest(self.format, row[j], scale) } else { 0.0 };
                let error = (row[j] - rounded) / curvature.diagonal[j];
                row[j] = rounded;
                errors[j - columns.start] = error;
                if let Some(factor) = curvature.factor {
                    let later = &factor[j * cols..][j + 1..columns.end];
                    let behind = row[j + 1..columns.end].iter_mut().zip(later);
                    behind.for_each(|(w, u)| *w -= error * u);
                }
            }
        }
    }

    /// Passes the errors of a batch on to all columns behind it.
    fn pass_on(&self, weights: &mut [f32], columns: Range<usize>, errors: &[f32]) {
        let (cols, behind) = (self.cols, self.cols - columns.end);
        let Some(factor) = self.curvature.factor.filter(|_| behind > 0) else { return };
        let rows = weights.len() / cols;
        // By columns and transposed: faer 0.24's view of strided rows mistakes one for the other.
        let weights = &mut weights[columns.end..];
        let target = MatMut::from_column_major_slice_with_stride_mut(weights, behind, rows, cols);
        matmul(
            target.transpose_mut(),
            Accum::Add,
            strided(errors, rows, columns.len(), BATCH),
            strided(&factor[columns.start * cols + columns.end..], columns.len(), behind, cols),
            -1.0,
            Par::Seq,
        );
    }

    /// Scales of a group, for the weights that would be kept as they are now.
    fn search(&self, band: &mut Band, packing: Packing, group: Range<usize>) {
        let kept: Vec<usize> = match packing.is_sparse() {
            false => group.clone().collect(),
            true => {
                let fours = group.clone().step_by(FOUR);
                let kept = fours.flat_map(|j| self.keep(band, j).map(|column| j + column));
                kept.filter(|column| *column < self.cols).collect()
            }
        };
        let mut importance = [0.0; MAX_GROUP];
        for (out, column) in importance.iter_mut().zip(&kept) {
            *out = self.curvature.importance[*column];
        }
        let index = group.start / packing.group().expect("it is searched for") as usize;
        for (n, row) in band.weights.chunks_exact(self.cols).enumerate() {
            let mut values = [0.0; MAX_GROUP];
            for (out, column) in values.iter_mut().zip(&kept) {
                *out = row[*column];
            }
            let scale = scale::search(packing, &values[..kept.len()], &importance[..kept.len()]);
            band.scales[n * band.groups + index] = scale;
        }
    }

    /// Chooses what is kept of four columns from `j`.
    fn prune(&self, band: &mut Band, j: usize) {
        let kept = self.keep(band, j).map(|column| j + column);
        let four = j..(j + FOUR).min(self.cols);
        for mask in band.mask.chunks_exact_mut(self.cols) {
            mask[four.clone()].iter_mut().zip(four.clone()).for_each(|(mask, column)| {
                *mask = kept.contains(&column);
            });
        }
    }

    /// The two of four columns from `j` that the rows of a band had best keep.
    fn keep(&self, band: &Band, j: usize) -> [usize; 2] {
        let rows = band.weights.chunks_exact(self.cols);
        self.curvature.costs[j / FOUR].keep(rows.map(|row| {
            let mut four = [0.0; FOUR];
            four.iter_mut().zip(&row[j..]).for_each(|(out, w)| *out = *w);
            four
        }))
    }
}

/// Rows that share their positions; one where none does.
struct Band<'a> {
    weights: &'a mut [f32],
    mask: &'a mut [bool],
    scales: &'a mut [Scale],
    groups: usize,
}
