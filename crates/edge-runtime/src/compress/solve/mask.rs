//! Which two of four columns 2:4 sparsity keeps.

/// Columns of which two are kept.
pub(super) const FOUR: usize = 4;

/// The pairs that can be kept; of equally good ones the first is.
const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];

/// What pruning two of four columns costs, for each pair that can be kept.
///
/// With `S` the inverse Hessian of the columns from these four on, cut to the pruned two, it is
/// `w S⁻¹ wᵀ` of their weights: the squared change of the output after the best correction of all
/// columns that remain (the optimal brain surgeon's `w² / [H⁻¹]_jj` for two weights at once).
#[derive(Clone, Debug)]
pub(super) struct Costs([[f64; 3]; 6]);

impl Costs {
    /// Of the inverse Hessian of `S.len()` columns, four or what is left of them.
    pub(super) fn new(inverse: impl Fn(usize, usize) -> f64, columns: usize) -> Self {
        Self(PAIRS.map(|kept| {
            let [a, b] = others(kept);
            match (a < columns, b < columns) {
                (true, true) => {
                    let (aa, ab, bb) = (inverse(a, a), inverse(a, b), inverse(b, b));
                    // Columns that are nearly the same leave nothing of the determinant.
                    let determinant = (aa * bb - ab * ab).max(aa * bb * 1e-9);
                    [bb / determinant, -2.0 * ab / determinant, aa / determinant]
                }
                (true, false) => [1.0 / inverse(a, a), 0.0, 0.0],
                _ => [0.0; 3],
            }
        }))
    }

    /// The pair to keep where rows share it: each row's four weights, the missing ones 0.
    pub(super) fn keep(&self, rows: impl Iterator<Item = [f32; FOUR]>) -> [usize; 2] {
        let mut totals = [0.0_f64; 6];
        for row in rows {
            for ((total, kept), [aa, ab, bb]) in totals.iter_mut().zip(PAIRS).zip(self.0) {
                let [a, b] = others(kept).map(|column| f64::from(row[column]));
                *total += aa * a * a + ab * a * b + bb * b * b;
            }
        }
        let mut best = 0;
        for (i, total) in totals.iter().enumerate() {
            if *total < totals[best] {
                best = i;
            }
        }
        PAIRS[best]
    }
}

/// The two columns that are not kept.
fn others([a, b]: [usize; 2]) -> [usize; 2] {
    let mut rest = (0..FOUR).filter(|column| *column != a && *column != b);
    std::array::from_fn(|_| rest.next().expect("four less two"))
}
