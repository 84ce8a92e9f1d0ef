//! Where the time of the training steps went: by op, by family, and what is left.

use std::fmt;

use edge_gpu::OpTime;
use edge_kernels::ops::find;
use serde::Serialize;

/// Time of an op, all formats and variants together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpShare {
    /// Name of the op.
    pub op: String,
    /// Its folder below `shaders/`.
    pub family: String,
    /// Calls in all steps.
    pub calls: u64,
    /// Their time, ms.
    pub total_ms: f64,
    /// Of the time of the steps, 0 to 1.
    pub share: f64,
    /// What ran: weight format and variant, the longest first.
    pub variants: Vec<String>,
}

/// Time of the ops of a family, or of what is outside all ops.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FamilyShare {
    /// The family.
    pub family: String,
    /// Time in all steps, ms.
    pub total_ms: f64,
    /// Of the time of the steps, 0 to 1.
    pub share: f64,
}

/// `profile` of `tune --json`; as text, a table for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileReport {
    /// Training steps.
    pub steps: u64,
    /// Their time by the host's clock, ms; validation is not in it.
    pub total_ms: f64,
    /// The ops, the longest first.
    pub ops: Vec<OpShare>,
    /// `matmul`, `attention`, `other`, and `outside` all ops: the host's work, compiling included.
    pub families: Vec<FamilyShare>,
}

/// Families with a row of their own; the others are `other`.
const FAMILIES: [&str; 2] = ["matmul", "attention"];

impl ProfileReport {
    /// From the times of the ops during `steps` steps that took `total_ms`.
    pub fn new(times: &[OpTime], steps: u64, total_ms: f64) -> Self {
        let share = |ms: f64| ms / total_ms.max(1e-9);
        let mut ops: Vec<OpShare> = Vec::new();
        let mut longest_first: Vec<&OpTime> = times.iter().collect();
        longest_first.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
        for time in longest_first {
            let index = ops.iter().position(|row| row.op == time.op).unwrap_or_else(|| {
                let folder = find(time.op).and_then(|op| op.shader().split_once('/'));
                let family = folder.map_or("other", |(family, _)| family).to_string();
                let op = time.op.to_string();
                let variants = Vec::new();
                ops.push(OpShare { op, family, calls: 0, total_ms: 0.0, share: 0.0, variants });
                ops.len() - 1
            });
            let row = &mut ops[index];
            row.calls += time.calls;
            row.total_ms += time.total_ms;
            row.share = share(row.total_ms);
            row.variants.push(format!("{} {}", time.format.name(), time.variant));
        }
        ops.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
        let sum = |wanted: &dyn Fn(&str) -> bool| -> f64 {
            ops.iter().filter(|row| wanted(&row.family)).map(|row| row.total_ms).sum()
        };
        let family = |family: &str, ms: f64| FamilyShare {
            family: family.to_string(),
            total_ms: ms,
            share: share(ms),
        };
        let mut families: Vec<FamilyShare> =
            FAMILIES.iter().map(|&name| family(name, sum(&|other| other == name))).collect();
        families.push(family("other", sum(&|name| !FAMILIES.contains(&name))));
        // Clocks of device and host differ a little.
        families.push(family("outside", (total_ms - sum(&|_| true)).max(0.0)));
        Self { steps, total_ms, ops, families }
    }
}

impl fmt::Display for ProfileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a_step = self.total_ms / self.steps.max(1) as f64;
        writeln!(f, "time of {} steps by op, {a_step:.1} ms a step:", self.steps)?;
        writeln!(f, "  {:24} {:>8} {:>12} {:>7}  variants", "op", "calls", "total ms", "share")?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, calls: &str, ms: f64, share: f64| {
            write!(f, "  {name:24} {calls:>8} {ms:>12.1} {:>5.1} %", 100.0 * share)
        };
        for row in &self.ops {
            line(f, &row.op, &row.calls.to_string(), row.total_ms, row.share)?;
            writeln!(f, "  {}", row.variants.join(", "))?;
        }
        writeln!(f, "  {}", "-".repeat(55))?;
        for row in &self.families {
            line(f, &row.family, "", row.total_ms, row.share)?;
            writeln!(f)?;
        }
        let all: f64 = self.families.iter().map(|row| row.share).sum();
        line(f, "all", "", self.total_ms, all)
    }
}

#[cfg(test)]
mod tests {
    use edge_kernels::Format;

    use super::*;

    fn time(op: &'static str, variant: &'static str, calls: u64, total_ms: f64) -> OpTime {
        OpTime { op, variant, format: Format::F32, calls, total_ms }
    }

    #[test]
    fn times_add_up_to_the_steps() {
        let times = [
            time("rope", "plain", 4, 10.0),
            time("matmul_nt", "plain", 3, 25.0),
            time("matmul_nt", "broadcast", 2, 30.0),
            time("adamw", "plain", 2, 5.0),
        ];
        let report = ProfileReport::new(&times, 2, 100.0);
        let ops: Vec<(&str, u64, f64)> =
            report.ops.iter().map(|row| (row.op.as_str(), row.calls, row.total_ms)).collect();
        assert_eq!(ops, [("matmul_nt", 5, 55.0), ("rope", 4, 10.0), ("adamw", 2, 5.0)]);
        assert_eq!(report.ops[0].variants, ["f32 broadcast", "f32 plain"]);
        let families: Vec<(&str, f64)> =
            report.families.iter().map(|row| (row.family.as_str(), row.total_ms)).collect();
        let want = [("matmul", 55.0), ("attention", 10.0), ("other", 5.0), ("outside", 30.0)];
        assert_eq!(families, want);
        let shares: f64 = report.families.iter().map(|row| row.share).sum();
        assert!((shares - 1.0).abs() < 1e-12);
        let text = report.to_string();
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[0].contains("2 steps") && rows[0].contains("50.0 ms a step"), "{text}");
        assert!(rows[2].trim().starts_with("matmul_nt") && rows[2].contains("55.0 %"), "{text}");
        assert!(rows.last().is_some_and(|row| row.contains("100.0 %")), "{text}");
        assert!(rows.iter().all(|row| row.len() <= 100), "{text}");
    }

    #[test]
    fn nothing_timed_is_all_outside() {
        let report = ProfileReport::new(&[], 0, 0.0);
        assert!(report.ops.is_empty() && report.families.iter().all(|row| row.total_ms == 0.0));
        assert!(report.to_string().contains("0 steps"));
    }
}
