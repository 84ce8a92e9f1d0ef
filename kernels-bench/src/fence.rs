//! Whether a value is news: the fence that a row's own history puts around it, and words for how
//! far beyond it a value lies.
//!
//! The fence is Tukey's, as in rustc-perf's comparison: quartiles of the history, widened by
//! multiples of the distance between them. Rows that never vary get a least width, and rows
//! without enough history a width by the spread of their own samples.

/// How often the distance between the quartiles is added on either side. Of a normal distribution
/// one value in 430,000 is outside.
const IQR_FACTOR: f64 = 3.0;

/// Values from which on quartiles mean something.
pub const HISTORY_MIN: usize = 5;

/// Least half widths of a fence, relative to its middle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Least {
    /// Where the history says how much the value varies.
    pub known: f64,
    /// Where it is too short for that.
    pub unknown: f64,
}

impl Least {
    /// Of times and rates: what a compiler's mood is allowed, and what a busy machine does to one
    /// row in a hundred.
    pub const TIMED: Self = Self { known: 0.05, unknown: 0.30 };

    /// Of bytes and losses, which a run repeats.
    pub const EXACT: Self = Self { known: 0.005, unknown: 0.005 };
}

/// How often the spread of the samples is added on either side with too little history.
const SPREAD_FACTOR: f64 = 4.0;

/// The values that are no news.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fence {
    /// The middle of the history.
    pub middle: f64,
    /// Least value within.
    pub low: f64,
    /// Largest value within.
    pub high: f64,
    /// How many values it stands on.
    pub values: usize,
}

/// The quartiles of some values, interpolated; the second is the median.
///
/// # Panics
/// Without values.
pub fn quartiles(values: &[f64]) -> [f64; 3] {
    assert!(!values.is_empty(), "quartiles are of values");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|share| {
        let place = share * (sorted.len() - 1) as f64;
        let (below, part) = (place.floor() as usize, place.fract());
        let above = sorted[(below + 1).min(sorted.len() - 1)];
        sorted[below] * (1.0 - part) + above * part
    })
}

impl Fence {
    /// Around a history (at least one value), at least `least` wide on either side, relative to
    /// its middle. `spread` is that of the samples, in the values' unit.
    ///
    /// # Panics
    /// Without history.
    pub fn of(history: &[f64], spread: f64, least: Least) -> Self {
        let [lower, middle, upper] = quartiles(history);
        let known = history.len() >= HISTORY_MIN;
        let (reach, least) = match known {
            true => (IQR_FACTOR * (upper - lower), least.known),
            false => (SPREAD_FACTOR * spread, least.unknown),
        };
        let least = least * middle.abs();
        // Few values do not say which of them is the odd one: all are within.
        let (lower, upper) = match known {
            true => (lower, upper),
            false => history.iter().fold((middle, middle), |(a, b), &v| (a.min(v), b.max(v))),
        };
        Self {
            middle,
            low: (lower - reach).min(middle - least),
            high: (upper + reach).max(middle + least),
            values: history.len(),
        }
    }

    /// How far outside a value is, in widths of its side of the fence: at most 1 is within.
    pub fn distance(&self, value: f64) -> f64 {
        let (apart, width) = match value >= self.middle {
            true => (value - self.middle, self.high - self.middle),
            false => (self.middle - value, self.middle - self.low),
        };
        // Written like this, what is no number is outside.
        if apart <= 0.0 { 0.0 } else { apart / width }
    }

    /// Whether a value is no news.
    pub fn contains(&self, value: f64) -> bool {
        self.distance(value) <= 1.0
    }

    /// Half of its width, relative to the middle: what it cannot see.
    pub fn width(&self) -> f64 {
        (self.high - self.middle).max(self.middle - self.low) / self.middle.abs()
    }
}

/// How large a change is, by its distance in widths of the fence (rustc-perf's factors).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Magnitude {
    /// Less than 1.5.
    VerySmall,
    /// Less than 3.
    Small,
    /// Less than 10.
    Medium,
    /// Less than 25.
    Large,
    /// 25 and more.
    VeryLarge,
}

impl Magnitude {
    /// Each with the distance that it ends below; the last ends nowhere.
    pub fn table() -> [(Option<f64>, Self); 5] {
        [
            (Some(1.5), Self::VerySmall),
            (Some(3.0), Self::Small),
            (Some(10.0), Self::Medium),
            (Some(25.0), Self::Large),
            (None, Self::VeryLarge),
        ]
    }

    /// Of a distance ([`Fence::distance`]).
    pub fn of(distance: f64) -> Self {
        let fits = |(below, magnitude): (Option<f64>, Self)| {
            below.is_none_or(|below| distance < below).then_some(magnitude)
        };
        Self::table().into_iter().find_map(fits).unwrap_or(Self::VeryLarge)
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::VerySmall => "very small",
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
            Self::VeryLarge => "very large",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn least(known: f64) -> Least {
        Least { known, unknown: 0.1 }
    }

    #[test]
    fn quartiles_are_interpolated() {
        assert_eq!(quartiles(&[4.0, 1.0, 3.0, 2.0, 5.0]), [2.0, 3.0, 4.0]);
        assert_eq!(quartiles(&[1.0, 2.0]), [1.25, 1.5, 1.75]);
        assert_eq!(quartiles(&[7.0]), [7.0; 3]);
    }

    #[test]
    fn one_odd_value_does_not_move_the_fence() {
        let calm = Fence::of(&[1.0, 1.01, 0.99, 1.0, 1.02, 0.98], 0.0, least(0.02));
        let odd = Fence::of(&[1.0, 1.01, 0.99, 1.0, 1.02, 9.0], 0.0, least(0.02));
        assert!(calm.contains(1.04) && !calm.contains(1.15) && !calm.contains(0.85), "{calm:?}");
        assert!(odd.contains(1.04) && !odd.contains(1.15), "{odd:?}");
        assert!(!calm.contains(f64::NAN));
    }

    #[test]
    fn what_never_varies_has_a_least_width() {
        let fence = Fence::of(&[2.0; 9], 0.0, least(0.05));
        assert!(fence.contains(2.09) && !fence.contains(2.11) && !fence.contains(1.89));
        assert!((fence.width() - 0.05).abs() < 1e-12);
        let exact = Fence::of(&[2.0; 9], 0.0, least(0.0));
        assert!(exact.contains(2.0) && !exact.contains(2.0001));
        assert_eq!(exact.distance(2.5), f64::INFINITY);
    }

    #[test]
    fn little_history_is_wide() {
        let fence = Fence::of(&[1.0, 1.3], 0.0, least(0.02));
        assert!(fence.contains(1.0) && fence.contains(1.3) && !fence.contains(1.5), "{fence:?}");
        let noisy = Fence::of(&[1.0], 0.1, least(0.02));
        assert!(noisy.contains(1.39) && !noisy.contains(1.41));
    }

    #[test]
    fn words_follow_the_distance() {
        let fence = Fence::of(&[1.0; 5], 0.0, least(0.1));
        let words = [1.12, 1.2, 1.5, 3.0, 9.0].map(|v| Magnitude::of(fence.distance(v)).words());
        assert_eq!(words, ["very small", "small", "medium", "large", "very large"]);
    }
}
