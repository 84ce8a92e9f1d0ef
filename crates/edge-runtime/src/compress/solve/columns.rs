//! The solver's work on a strip of rows: columns in order, each pruned, rounded, and its error
//! passed on.

use std::ops::Range;

use edge_kernels::pack::{self, Scale};
use edge_kernels::{Format, Packing};

use super::hessian::{DAMPING, Prepared};
use super::linear::{self, Rows};
use super::scale;

/// Columns whose errors reach the columns behind them in one product of matrices. A multiple of
/// every group.
const BATCH: usize = 128;

/// Columns of which 2:4 sparsity keeps two.
const FOUR: usize = 4;

/// Most columns that share a scale.
const MAX_GROUP: usize = 64;

/// What the damping of an input that is always 0 counts for.
const DEAD: f32 = 1.0 / (1 << 20) as f32;

/// What the solver knows of the inputs.
pub(super) struct Curvature<'a> {
    /// `U [k, k]` of [`Prepared`]; without it no error is passed on.
    factor: Option<&'a [f32]>,
    /// `U[j, j]`.
    diagonal: Vec<f32>,
    /// `1 / U[j, j]²`: what a squared error of column `j` costs, with the least error that later
    /// columns can leave of it.
    importance: Vec<f32>,
}

impl<'a> Curvature<'a> {
    /// That of a Hessian.
    pub(super) fn of(prepared: &'a Prepared) -> Self {
        let (hessian, factor) = (prepared.hessian(), prepared.factor());
        let diagonal = factor.iter().step_by(hessian.k + 1).copied().collect();
        Self { factor: Some(factor), ..Self::new(&hessian.diagonal(), diagonal) }
    }

    /// That of a diagonal Hessian, damped by [`DAMPING`].
    pub(super) fn diagonal(hessian: &[f32]) -> Self {
        let sum: f64 = hessian.iter().map(|h| f64::from(*h)).sum();
        let inverse_mean = if sum > 0.0 { hessian.len() as f64 / sum } else { 0.0 };
        let damped = |h: &f32| (f64::from(*h) * inverse_mean) as f32 + DAMPING as f32;
        Self::new(hessian, hessian.iter().map(|h| damped(h).sqrt().recip()).collect())
    }

    /// Of the diagonals of the Hessian and of `U`.
    fn new(hessian: &[f32], diagonal: Vec<f32>) -> Self {
        let squares = hessian.iter().zip(&diagonal);
        // Inputs that are always 0 decide nothing but where there are no others.
        let importance = |(h, u): (&f32, &f32)| (u * u).recip() * if *h > 0.0 { 1.0 } else { DEAD };
        Self { factor: None, importance: squares.map(importance).collect(), diagonal }
    }

    /// Bytes beside the factor, for `k` columns.
    pub(super) fn bytes(k: usize) -> u64 {
        (2 * size_of::<f32>() * k) as u64
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
        let inner = columns.len();
        let factor = &factor[columns.start * cols + columns.end..];
        linear::add_product(
            Rows { data: &mut weights[columns.end..], rows, cols: behind, stride: cols },
            Rows { data: errors, rows, cols: inner, stride: BATCH },
            Rows { data: factor, rows: inner, cols: behind, stride: cols },
            -1.0,
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

    /// The two of four columns from `j` that the rows of a band had best keep. Pruning `w` costs
    /// `w² / [H⁻¹]_jj`, where `H` is without the columns that are done with.
    fn keep(&self, band: &Band, j: usize) -> [usize; 2] {
        let mut scores = [f64::NEG_INFINITY; FOUR];
        for (i, score) in scores.iter_mut().enumerate().take(self.cols - j) {
            let column = band.weights.iter().skip(j + i).step_by(self.cols);
            let squares: f64 = column.fold(0.0, |sum, w| sum + f64::from(*w) * f64::from(*w));
            *score = squares * f64::from(self.curvature.importance[j + i]);
        }
        pack::largest_two(&scores)
    }
}

/// Rows that share their positions; one where none does.
struct Band<'a> {
    weights: &'a mut [f32],
    mask: &'a mut [bool],
    scales: &'a mut [Scale],
    groups: usize,
}
