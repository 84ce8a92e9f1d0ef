//! Frequencies of the rotary position embedding, and how models stretch them to long contexts.

use std::f64::consts::TAU;

/// How a model changes the frequencies `theta^(-2i/head_dim)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// `rope_type: llama3`: waves longer than the original context are slowed down by `factor`,
    /// short ones stay, those between are blended.
    Llama3 {
        /// Slow-down of the long waves.
        factor: f64,
        /// Waves longer than `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context of the original training, in tokens.
        original_max_position_embeddings: f64,
    },
    /// `rope_type: linear`: all frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
}

impl RopeScaling {
    /// The frequency that takes the place of `frequency` (radians per position), as Hugging Face
    /// transformers computes it (`_compute_llama3_parameters`,
    /// `_compute_linear_scaling_rope_parameters`).
    fn scale(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: context,
            } => {
                let wavelength = TAU / frequency;
                if wavelength > context / low_freq_factor {
                    frequency / factor
                } else if wavelength < context / high_freq_factor {
                    frequency
                } else {
                    let smooth = (context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// The table of [`rope`](super::rope): `[positions, head_dim]`, each row the cosines of
/// `position * frequency` (`head_dim / 2` of them), then the sines. Angles are formed in f64,
/// because f32 angles lose precision at long positions.
///
/// # Panics
/// When `head_dim` is odd.
pub fn rope_table(positions: u32, head_dim: u32, theta: f64, scaling: RopeScaling) -> Vec<f32> {
    assert!(head_dim.is_multiple_of(2), "head_dim {head_dim} has no pairs");
    let frequencies: Vec<f64> = (0..head_dim / 2)
        .map(|i| scaling.scale(theta.powf(-2.0 * f64::from(i) / f64::from(head_dim))))
        .collect();
    let mut table = Vec::with_capacity(positions as usize * head_dim as usize);
    for position in 0..positions {
        let angle = |frequency: &f64| f64::from(position) * frequency;
        table.extend(frequencies.iter().map(|f| angle(f).cos() as f32));
        table.extend(frequencies.iter().map(|f| angle(f).sin() as f32));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of Llama 3.2 1B, with theta 500000 and head_dim 64.
    const LLAMA32: RopeScaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };

    fn frequency(i: u32) -> f64 {
        500000_f64.powf(-f64::from(i) / 32.0)
    }

    #[test]
    fn rows_are_cosines_then_sines() {
        let table = rope_table(3, 4, 100.0, RopeScaling::None);
        let want = [1.0, 1.0, 0.0, 0.0].map(|x: f64| x as f32);
        assert_eq!(table[..4], want);
        for (got, want) in
            table[8..].iter().zip([2_f64.cos(), 0.2_f64.cos(), 2_f64.sin(), 0.2_f64.sin()])
        {
            assert_eq!(*got, want as f32);
        }
        let linear = rope_table(5, 4, 100.0, RopeScaling::Linear { factor: 2.0 });
        assert_eq!(linear[16..], table[8..]);
    }

    #[test]
    fn llama3_scales_long_waves_only() {
        // Waves: 2π · 500000^(i/32). Below 2048 up to i = 14, above 8192 from i = 18 on.
        for i in 0..32 {
            let (plain, scaled) = (frequency(i), LLAMA32.scale(frequency(i)));
            match i {
                0..=14 => assert_eq!(scaled, plain, "{i}"),
                18.. => assert_eq!(scaled, plain / 32.0, "{i}"),
                _ => assert!(scaled < plain && scaled > plain / 32.0, "{i}"),
            }
        }
    }

    #[test]
    fn llama3_blends_in_between_as_transformers_does() {
        // From the Python of transformers, in f64, for i = 15, 16, 17.
        for (i, want) in
            [(15, 0.001290547928209264), (16, 0.00042955679655936815), (17, 9.70828780262767e-05)]
        {
            let got = LLAMA32.scale(frequency(i));
            assert!((got / want - 1.0).abs() < 1e-12, "{i}: {got} {want}");
        }
    }
}
