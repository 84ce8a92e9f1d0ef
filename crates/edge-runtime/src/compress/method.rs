//! How a layer is compressed, and the memory that it takes.

use anyhow::{Context, Result};
use clap::ValueEnum;
use edge_kernels::pack::{PackedHost, magnitude_mask, pack, pack_masked};
use edge_kernels::{Format, Sparsity};
use edge_scheduler::{ModelShape, Projection};

use super::solve::{
    DAMPING, Hessian, Prepared, Solved, Weight, nearest, output_error, second_order, solver_bytes,
};

/// How weights are pruned and rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Together, what a column loses made up for in later ones (SparseGPT, GPTQ)
    #[default]
    SecondOrder,
    /// Each weight for itself: searched scales, pruned by the sizes of weights and inputs (Wanda)
    Nearest,
    /// Each weight for itself: largest values as scales, pruned by the sizes of weights
    Round,
}

impl Method {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SecondOrder => "second-order",
            Self::Nearest => "nearest",
            Self::Round => "round",
        }
    }

    /// Whether it looks at the inputs of layers.
    pub fn needs_moments(self) -> bool {
        self != Self::Round
    }

    /// A weight in each of some formats. `hessian` is that of its inputs, where
    /// [`Method::needs_moments`].
    ///
    /// # Errors
    /// A weight or a sum is not finite, or the sums are no second moments.
    pub fn solve(
        self,
        weight: Weight<'_>,
        formats: &[Format],
        hessian: Option<&Hessian>,
    ) -> Result<Vec<Solved>> {
        let of_method = || hessian.context("a method that looks at inputs has their moments");
        match self {
            Self::SecondOrder => {
                let prepared = Prepared::new(of_method()?, DAMPING)?;
                formats.iter().map(|format| second_order(weight, *format, &prepared)).collect()
            }
            Self::Nearest => {
                let hessian = of_method()?;
                let diagonal = hessian.diagonal();
                let solve = |format: &Format| {
                    let Solved { packed, .. } = nearest(weight, *format, Some(&diagonal))?;
                    let error = output_error(weight, &packed.unpack(), hessian);
                    Ok(Solved { packed, error })
                };
                formats.iter().map(solve).collect()
            }
            Self::Round => formats.iter().map(|format| round(weight, *format, hessian)).collect(),
        }
    }

    /// The most bytes of host memory that [`Method::solve`] takes for a weight, with what it is
    /// given.
    pub fn bytes(self, format: Format, rows: usize, cols: usize) -> u64 {
        match self {
            Self::SecondOrder => solver_bytes(format, rows, cols),
            // The weight, what it becomes, the difference, a mask, and the Hessian.
            _ => 4 * (4 * rows * cols + cols * cols) as u64,
        }
    }

    /// The most bytes of host memory that compressing a block of this shape into one of these
    /// formats takes at once, its packed matrices included. Those of the formats `together` are
    /// held at once where sensitivity is measured.
    pub fn block_bytes(self, shape: &ModelShape, formats: &[Format], together: &[Format]) -> u64 {
        let sizes = || Projection::ALL.map(|projection| shape.projection(projection));
        let solved = |format: &Format| {
            let bytes = |(n, k): (u32, u32)| self.bytes(*format, n as usize, k as usize);
            sizes().map(bytes).into_iter().max().unwrap_or(0)
        };
        let packed =
            |format: &Format| -> u64 { sizes().map(|(n, k)| format.bytes(n, k)).iter().sum() };
        let solved = formats.iter().map(solved).max().unwrap_or(0);
        let one = formats.iter().map(packed).max().unwrap_or(0);
        solved + one.max(together.iter().map(packed).sum())
    }
}

/// Round to nearest and magnitude pruning: what second-order methods are compared with.
fn round(weight: Weight<'_>, format: Format, hessian: Option<&Hessian>) -> Result<Solved> {
    let (n, k) = (weight.rows as u32, weight.cols as u32);
    if let Some(i) = weight.data.iter().position(|x| !x.is_finite()) {
        anyhow::bail!(
            "row {}, column {} of the weight is {}, not a finite number; download the checkpoint \
             again",
            i / weight.cols,
            i % weight.cols,
            weight.data[i]
        );
    }
    let kept = format.packing().map_or(Sparsity::Dense, |packing| packing.kept());
    let packed: PackedHost = match kept {
        Sparsity::Dense => pack(format, n, k, weight.data),
        kept => pack_masked(format, n, k, weight.data, &magnitude_mask(kept, n, k, weight.data)),
    };
    let solved = packed.unpack();
    let error = match hessian {
        Some(hessian) => output_error(weight, &solved, hessian),
        None => {
            let (mut moved, mut all) = (0.0, 0.0);
            for (&w, &q) in weight.data.iter().zip(&solved) {
                moved += (f64::from(w) - f64::from(q)).powi(2);
                all += f64::from(w).powi(2);
            }
            if all > 0.0 { moved / all } else { 0.0 }
        }
    };
    Ok(Solved { packed, error })
}

#[cfg(test)]
mod tests {
    use edge_kernels::util::SeededRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn each_method_is_better_than_the_simpler_one() {
        let (rows, cols, tokens) = (64, 64, 300);
        let mut rng = SeededRng::seed_from_u64(3);
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
        };
        let data = draw(rows * cols);
        // Neighbouring inputs go together, and some are large.
        let mut x = draw(tokens * cols);
        for row in x.chunks_mut(cols) {
            for j in 1..cols {
                row[j] = 0.7 * row[j - 1] + row[j] * if j % 9 == 0 { 3.0 } else { 0.5 };
            }
        }
        let mut sum = vec![0.0f32; cols * cols];
        for row in x.chunks(cols) {
            for (i, a) in row.iter().enumerate() {
                for (j, b) in row.iter().enumerate() {
                    sum[i * cols + j] += a * b;
                }
            }
        }
        let hessian = Hessian { k: cols, sum, tokens: tokens as u64 };
        let weight = Weight { rows, cols, data: &data };
        let formats = [Format::two_four(4), Format::Q3, Format::row_grouped(4)];
        let errors = |method: Method| -> Vec<f64> {
            let solved = method.solve(weight, &formats, Some(&hessian)).expect("solved");
            solved.iter().for_each(|s| assert!(s.error > 0.0 && s.error < 1.0));
            solved.iter().map(|solved| solved.error).collect()
        };
        let [round, nearest, best] =
            [Method::Round, Method::Nearest, Method::SecondOrder].map(errors);
        for i in 0..formats.len() {
            let all = (formats[i].name(), round[i], nearest[i], best[i]);
            assert!(nearest[i] < round[i] && best[i] < 0.9 * nearest[i], "{all:?}");
        }
        // Without moments it is the error of the weights themselves.
        let own = Method::Round.solve(weight, &[Format::Q8], None).expect("solved");
        assert!(own[0].error > 0.0 && own[0].error < 1e-4);
        assert!(Method::Nearest.solve(weight, &formats, None).is_err());
    }
}
