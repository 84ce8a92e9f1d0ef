//! Two runs beside each other: what became slower, what faster, what is new or gone.

use std::fmt::Write as _;

use crate::row::Row;

/// A row that both runs have.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// `op/format/shape/variant`.
    pub key: String,
    /// Median before, milliseconds.
    pub before_ms: f64,
    /// Median now, milliseconds.
    pub now_ms: f64,
    /// Whether the medians are further apart than the spreads of both samples, three times.
    pub clear: bool,
}

impl Pair {
    /// Time now over time before: above 1 it became slower.
    pub fn ratio(&self) -> f64 {
        self.now_ms / self.before_ms
    }
}

/// How two runs differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Rows of both, what became slower by most first.
    pub pairs: Vec<Pair>,
    /// Keys that only this run has.
    pub new: Vec<String>,
    /// Keys of the record that this run was to measure, and did not.
    pub gone: Vec<String>,
}

/// Compares this run with a record. `asked` says of a row of the record whether this run was
/// asked for it: a run of some rows says nothing about the others.
pub fn compare(before: &[Row], now: &[Row], asked: impl Fn(&Row) -> bool) -> Comparison {
    let mut comparison = Comparison::default();
    for row in now {
        let Some(earlier) = before.iter().find(|earlier| earlier.key() == row.key()) else {
            comparison.new.push(row.key());
            continue;
        };
        let apart = (row.median_ms - earlier.median_ms).abs();
        comparison.pairs.push(Pair {
            key: row.key(),
            before_ms: earlier.median_ms,
            now_ms: row.median_ms,
            clear: apart > 3.0 * (row.spread_ms + earlier.spread_ms),
        });
    }
    comparison.pairs.sort_by(|a, b| b.ratio().total_cmp(&a.ratio()));
    let missing = |row: &&Row| !now.iter().any(|other| other.key() == row.key());
    let gone = before.iter().filter(missing).filter(|row| asked(row));
    comparison.gone = gone.map(Row::key).collect();
    comparison
}

impl Comparison {
    /// As a table, with what is within the spreads marked `~`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let title = format!("{:>7}  {:>11}  {:>11}  row", "ratio", "before_ms", "now_ms");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{title} (time now over time before; ~ is within the spread)");
        for pair in &self.pairs {
            let mark = if pair.clear { ' ' } else { '~' };
            let Pair { key, before_ms, now_ms, .. } = pair;
            let ratio = pair.ratio();
            let _ = writeln!(text, "{mark}{ratio:>6.3}  {before_ms:>11.4}  {now_ms:>11.4}  {key}");
        }
        for (name, keys) in [("new", &self.new), ("gone", &self.gone)] {
            for key in keys {
                let _ = writeln!(text, "{name:>7}  {:>11}  {:>11}  {key}", "", "");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Subject;

    fn row(variant: &str, ms: f64) -> Row {
        let subject = Subject::own().swap_remove(0);
        Row::new(&subject, (variant, true), "a device", None, &[ms, ms + 0.01, ms - 0.01])
    }

    #[test]
    fn the_worst_is_first_and_new_and_gone_are_listed() {
        let before = [row("a", 1.0), row("b", 1.0), row("c", 1.0), row("other", 1.0)];
        let now = [row("a", 0.5), row("b", 2.0), row("d", 1.0)];
        let comparison = compare(&before, &now, |row| row.variant != "other");
        let ends = |keys: &[String], variants: &[&str]| {
            assert_eq!(keys.len(), variants.len(), "{keys:?}");
            for (key, variant) in keys.iter().zip(variants) {
                assert!(key.ends_with(&format!("/{variant}")), "{key} is not {variant}");
            }
        };
        let keys: Vec<String> = comparison.pairs.iter().map(|pair| pair.key.clone()).collect();
        ends(&keys, &["b", "a"]);
        ends(&comparison.new, &["d"]);
        ends(&comparison.gone, &["c"]);
        assert_eq!(comparison.pairs[0].ratio(), 2.0);
        assert!(comparison.pairs[0].clear);
        let text = comparison.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("  2.000       1.0000       2.0000"), "{text}");
        assert!(lines[3].starts_with("    new") && lines[4].starts_with("   gone"), "{text}");
    }

    #[test]
    fn a_difference_within_the_spread_is_marked() {
        let comparison = compare(&[row("a", 1.0)], &[row("a", 1.05)], |_| true);
        assert!(!comparison.pairs[0].clear);
        assert!(comparison.text().lines().nth(1).is_some_and(|line| line.starts_with('~')));
    }
}
