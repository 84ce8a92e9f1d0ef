//! What the kernels ought to reach on a real GPU, as data: shares of what the device was measured
//! to do in the same run, and cooperative matrices beside ordinary products. On drivers that run
//! shaders on the CPU these shapes would take minutes and their roofs say little.

use edge_kernels::Format;

use crate::Subject;
use crate::roof::Roof;
use crate::row::ratio_and_spread;
use crate::select::Selected;
use crate::session::Timed;
use crate::targets::Verdict;

/// `[m, n, k]` of a product large enough for any GPU.
const SQUARE: [u32; 3] = [4096; 3];

/// Of TinyLlama's `up_proj` with 512 tokens.
const TOKENS: [u32; 3] = [512, 5632, 2048];

/// Of a row times weights that no cache holds: 75 MB in 4 bits.
const ROW: [u32; 3] = [1, 8192, 16384];

/// What is reached.
#[derive(Clone, Copy, Debug)]
enum Reach {
    /// A share of the rate of fused multiply-adds.
    Fma(f64),
    /// A share of the bandwidth of a copy.
    Copy(f64),
    /// Times as fast as production's variant in f32 on the same shape.
    TimesF32(f64),
}

/// A product, which of its variants counts, and what it is to reach.
#[derive(Clone, Copy, Debug)]
pub struct GpuTarget {
    name: &'static str,
    shape: [u32; 3],
    format: &'static str,
    /// The beginning of the variants' names of which the fastest counts; production's where empty.
    variants: &'static str,
    reach: Reach,
}

/// All targets.
pub const ALL: [GpuTarget; 4] = [
    GpuTarget {
        name: "square",
        shape: SQUARE,
        format: "f32",
        variants: "",
        reach: Reach::Fma(0.6),
    },
    GpuTarget {
        name: "tinyllama_up_proj",
        shape: TOKENS,
        format: "q4",
        variants: "",
        reach: Reach::Fma(0.5),
    },
    GpuTarget { name: "row", shape: ROW, format: "q4", variants: "", reach: Reach::Copy(0.7) },
    GpuTarget {
        name: "square",
        shape: SQUARE,
        format: "f16",
        variants: "coop_f16",
        reach: Reach::TimesF32(3.0),
    },
];

/// What the targets need.
pub fn subjects() -> impl Iterator<Item = Subject> {
    ALL.into_iter().map(|target| {
        let format = Format::from_name(target.format).expect("a format of the README");
        Subject { further: true, ..Subject::forward(target.name, target.shape, format) }
    })
}

/// What the targets need, a group a shape. All variants are timed, so that what production should
/// take instead is seen.
pub fn groups() -> Vec<Vec<Selected>> {
    let mut groups: Vec<Vec<Selected>> = Vec::new();
    for subject in subjects() {
        let selected = Selected { subject, baseline: false };
        let same = |group: &&mut Vec<Selected>| {
            group.iter().any(|one| one.subject.group() == selected.subject.group())
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(selected),
            None => groups.push(vec![selected]),
        }
    }
    groups
}

impl GpuTarget {
    /// In words.
    pub fn text(&self) -> String {
        let Self { format, variants, shape: [m, n, k], .. } = self;
        let what = if variants.is_empty() { "forward" } else { variants };
        let reach = match self.reach {
            Reach::Fma(share) => format!("{share} of the fma roof"),
            Reach::Copy(share) => format!("{share} of copy"),
            Reach::TimesF32(ratio) => format!("{ratio} x f32 forward"),
        };
        format!("{format} {what} >= {reach}, {m}x{n}x{k}")
    }

    /// Judges it by the samples of a run.
    pub fn judge(&self, timed: &[Timed], roof: Roof) -> Verdict {
        let [m, n, k] = self.shape;
        let shape = format!("{}_{m}x{n}x{k}", self.name);
        let of = |format: &str, variants: &str| {
            let found = timed.iter().filter(|Timed { row, .. }| {
                row.shape == shape && row.format == format && row.op == "matmul_nt"
            });
            let found = found.filter(|Timed { row, .. }| match variants {
                "" => row.production,
                begin => row.variant.starts_with(begin),
            });
            found.min_by(|a, b| a.row.median_ms.total_cmp(&b.row.median_ms))
        };
        let Some(best) = of(self.format, self.variants) else {
            return Verdict::NotThere("no such variant was timed".into());
        };
        let row = &best.row;
        let spread = row.spread_ms / row.median_ms;
        let (least, reached, spread) = match self.reach {
            Reach::Fma(least) => {
                let share = row.gflop_s / roof.fma_gflop_s;
                (least, share, share * spread)
            }
            Reach::Copy(least) => {
                let share = row.gb_s / roof.copy_gb_s;
                (least, share, share * spread)
            }
            Reach::TimesF32(least) => {
                let f32 = of("f32", "");
                let pair = f32.and_then(|f32| ratio_and_spread(&f32.samples_ms, &best.samples_ms));
                let Some((ratio, spread)) = pair else {
                    return Verdict::NotThere("f32 was not timed".into());
                };
                (least, ratio, spread)
            }
        };
        if reached >= least {
            Verdict::Met(reached, spread)
        } else {
            Verdict::Missed(reached, spread)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Row;

    fn timed(format: &str, variant: (&str, bool), ms: f64) -> Timed {
        let format = Format::from_name(format).expect("known");
        let subject = Subject::forward("square", SQUARE, format);
        let row = Row::new(&subject, variant, "a device", None, &[ms]);
        Timed { row, samples_ms: vec![ms] }
    }

    #[test]
    fn shares_and_ratios_are_judged() {
        let roof = Roof { copy_gb_s: 100.0, fma_gflop_s: 2.0 * 4096f64.powi(3) / 1e9 };
        // The roof is a product a second.
        let of = |ms| [timed("f32", ("shared", true), ms), timed("f32", ("wide", false), 1.0)];
        let share = |ms| match ALL[0].judge(&of(ms), roof) {
            Verdict::Met(share, _) => (true, share),
            Verdict::Missed(share, _) => (false, share),
            Verdict::NotThere(reason) => panic!("{reason}"),
        };
        assert!(share(1250.0).0 && (share(1250.0).1 - 0.8).abs() < 1e-9);
        assert!(!share(2000.0).0 && (share(2000.0).1 - 0.5).abs() < 1e-9);
        let both = [
            timed("f32", ("shared", true), 900.0),
            timed("f16", ("coop_f16", false), 400.0),
            timed("f16", ("coop_f16_64", false), 300.0),
        ];
        assert_eq!(ALL[3].judge(&both, roof), Verdict::Met(3.0, 0.0));
        let without = [timed("f32", ("shared", true), 900.0)];
        assert!(matches!(ALL[3].judge(&without, roof), Verdict::NotThere(_)));
    }

    #[test]
    fn everything_that_is_judged_is_timed() {
        let groups = groups();
        let names: Vec<String> = groups.iter().flatten().map(|one| one.subject.name()).collect();
        for GpuTarget { name, shape: [m, n, k], format, .. } in ALL {
            let wanted = format!("matmul_nt/{format}/{name}_{m}x{n}x{k}");
            assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
        }
        assert_eq!(groups.len(), 3, "f32 and f16 of a shape by turns");
    }
}
