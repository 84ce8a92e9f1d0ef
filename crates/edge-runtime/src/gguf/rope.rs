//! Llama 3's rotary frequencies: GGUF has the factor of each frequency as a tensor, and
//! `config.json` the rule that they follow (transformers, `_compute_llama3_parameters`).

use std::f64::consts::TAU;

use crate::config::{ModelConfig, RopeScaling};

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3 {
    /// Divisor of long waves.
    pub factor: f64,
    /// Waves above `context / low` are long.
    pub low: f64,
    /// Waves below `context / high` are short.
    pub high: f64,
    /// Tokens.
    pub context: f64,
}

/// Llama 3.1 to 3.3 differ in the factor alone.
const PUBLISHED: Llama3 = Llama3 { factor: 8.0, low: 1.0, high: 4.0, context: 8192.0 };

/// How far factors may be off: f32, and sums that others form in f32.
const TOLERANCE: f64 = 1e-4;

/// Wavelengths of the unscaled frequencies, tokens.
fn wavelengths(theta: f64, head_dim: usize) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| TAU * theta.powf(2.0 * i as f64 / head_dim as f64))
}

impl Llama3 {
    /// What the frequency of a wave is divided by.
    fn divisor(&self, wave: f64) -> f64 {
        if wave < self.context / self.high {
            1.0
        } else if wave > self.context / self.low {
            self.factor
        } else {
            let smooth = (self.context / wave - self.low) / (self.high - self.low);
            1.0 / ((1.0 - smooth) / self.factor + smooth)
        }
    }

    /// The tensor `rope_freqs.weight`: what each of `head_dim / 2` frequencies is divided by.
    pub fn divisors(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        wavelengths(theta, head_dim).map(|wave| self.divisor(wave) as f32).collect()
    }

    fn fits(&self, factors: &[f32], theta: f64) -> bool {
        let own = self.divisors(theta, 2 * factors.len());
        let close = |(own, given): (&f32, &f32)| {
            (f64::from(*own) / f64::from(*given) - 1.0).abs() < TOLERANCE
        };
        own.iter().zip(factors).all(close)
    }
}

/// The rule of a configuration that has it.
pub fn of_config(config: &ModelConfig) -> Option<Llama3> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: context,
    } = config.rope_scaling
    else {
        return None;
    };
    Some(Llama3 { factor, low, high, context: context as f64 })
}

/// The rule that gives these divisors of frequencies, if there is one. `low` and `high` count only
/// through `context / low` and `context / high`, so that any context will do: the published one
/// where none is given.
pub fn recognise(
    factors: &[f32],
    theta: f64,
    head_dim: usize,
    context: Option<u64>,
) -> Option<Llama3> {
    let largest = f64::from(factors.iter().copied().fold(1.0, f32::max));
    if factors.len() != head_dim / 2 || !(largest.is_finite() && theta >= 1.0) {
        return None;
    }
    let context = context.filter(|context| (1..1 << 24).contains(context));
    let given = context.map_or(PUBLISHED.context, |context| context as f64);
    let rule = |low: f64, high: f64| Llama3 { factor: largest, low, high, context: given };
    let mut rules = vec![rule(PUBLISHED.low, PUBLISHED.high)];
    let waves: Vec<f64> = wavelengths(theta, head_dim).collect();
    // Between the bounds, the share of the unscaled frequency is linear in context / wave.
    let between: Vec<(f64, f64)> = waves
        .iter()
        .zip(factors)
        .filter(|(_, factor)| **factor > 1.0 && f64::from(**factor) < largest)
        .map(|(wave, factor)| {
            let smooth = (1.0 / f64::from(*factor) - 1.0 / largest) / (1.0 - 1.0 / largest);
            (given / wave, smooth)
        })
        .collect();
    let kept = waves.iter().zip(factors).filter(|(_, factor)| **factor <= 1.0);
    let kept = kept.map(|(wave, _)| given / wave).fold(f64::INFINITY, f64::min);
    let slowed = waves.iter().zip(factors).filter(|(_, factor)| f64::from(**factor) >= largest);
    let slowed = slowed.map(|(wave, _)| given / wave).fold(0.0, f64::max);
    match between.as_slice() {
        [] => rules.push(rule(slowed + (kept - slowed) / 3.0, kept - (kept - slowed) / 3.0)),
        // A bound that the neighbours allow, and the other from the one value.
        [(at, smooth)] => {
            rules.push(rule((at - smooth * kept) / (1.0 - smooth), kept));
            rules.push(rule(slowed, slowed + (at - slowed) / smooth));
        }
        [(first, high_smooth), .., (last, low_smooth)] => {
            let span = (first - last) / (high_smooth - low_smooth);
            let low = last - low_smooth * span;
            rules.push(rule(low, low + span));
        }
    }
    rules.into_iter().find(|rule| {
        rule.low > 0.0 && rule.low < rule.high && rule.high.is_finite() && rule.fits(factors, theta)
    })
}
