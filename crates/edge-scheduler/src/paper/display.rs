//! A [`Study`] as a page of text.

use std::fmt;

use super::{Compute, Feature, PAPER_RATIO, Study, StudyCase, THROUGHPUTS};
use crate::profiles::Sourced;

impl fmt::Display for Study {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        writeln!(f, "Simulated: LLaMA-7B on {}", self.profile.title)?;
        writeln!(
            f,
            "{} sequences of {} tokens a step, {} windows, {:.0} % sparsity; paper {PAPER_RATIO} x",
            options.batch,
            options.seq_len,
            options.windows,
            100.0 * options.sparsity,
        )?;
        for compute in Compute::ALL {
            let cases: Vec<_> = self.cases.iter().filter(|case| case.compute == compute).collect();
            writeln!(f)?;
            writeln!(f, "{}", sentence(compute))?;
            table(f, &cases)?;
        }
        writeln!(f)?;
        self.assumptions(f)
    }
}

fn sentence(compute: Compute) -> &'static str {
    match compute {
        Compute::Scales => "If a product takes bits / 8 of the time and pruned weights take none:",
        Compute::Fixed => "If a product takes the same time with fewer bits and pruned weights:",
    }
}

/// A row a feature; ratio so far, factor and share for each number of bits.
fn table(f: &mut fmt::Formatter<'_>, cases: &[&StudyCase]) -> fmt::Result {
    write!(f, "| {:<24} |", "switched on")?;
    for case in cases {
        write!(f, " {:>20} |", format!("{} bits: ratio", case.bits))?;
    }
    writeln!(f)?;
    writeln!(f, "|{:-<26}|{}", "", format!("{:->21}:|", "").repeat(cases.len()))?;
    for (index, feature) in Feature::ALL.into_iter().enumerate() {
        row(f, feature.name(), cases, |case| {
            let stage = &case.stages[index];
            let (ratio, factor) = (stage.ratio, stage.factor);
            format!("{ratio:.2} (x {factor:.2}, {:>2.0} %)", 100.0 * case.share(stage))
        })?;
    }
    row(f, "all, vanilla scheduled", cases, |case| format!("{:.2}", case.ratio_scheduled()))?;
    row(f, "the paper", cases, |_| format!("{PAPER_RATIO:.2}"))?;
    for (index, factor) in THROUGHPUTS.into_iter().enumerate().filter(|(_, f)| *f != 1.0) {
        let name = format!("all, throughput x {factor}");
        row(f, &name, cases, |case| format!("{:.2}", case.ratios[index]))?;
    }
    row(f, "sequences at a time", cases, |case| case.group.to_string())?;
    row(f, "a step of vanilla, s", cases, |case| format!("{:.1}", case.vanilla_s))?;
    row(f, "a step of Edge-LLM, s", cases, |case| format!("{:.1}", case.step_s()))
}

fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    cases: &[&StudyCase],
    cell: impl Fn(&StudyCase) -> String,
) -> fmt::Result {
    write!(f, "| {name:<24} |")?;
    for case in cases {
        write!(f, " {:>20} |", cell(case))?;
    }
    writeln!(f)
}

impl Study {
    fn assumptions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (profile, options) = (&self.profile, &self.options);
        let lines = [
            "Vanilla is LoRA on 8-bit weights, full depth, one sequence after another, no overlap.",
            "A share is the logarithm of a factor over that of the ratio, in the rows' order.",
            "The paper has 2.92 x without bits, and its baseline's schedule is not known.",
            "Windows take turns; bits are one more in blocks 2, 29, 30 and 31; a mask has 1 bit.",
            "Eq. 3 gives reads and writes of one memory a link each. Nothing is recomputed.",
        ];
        for line in lines {
            writeln!(f, "* {line}")?;
        }
        writeln!(
            f,
            "* Activations, gradients, adapters and the head have {} bits; LoRA has rank {}.",
            options.value_bits, options.rank
        )?;
        let mut number = |name: &str, number: Sourced, scale: f64, unit: &str| {
            writeln!(f, "* {name}: {:.2} {unit} ({})", number.value / scale, number.source)
        };
        number("products of 8 bits", profile.flops_f16, 1e12, "TFLOP/s")?;
        number("SRAM", profile.sram_bytes, f64::from(1 << 20), "MiB")?;
        number("DRAM", profile.memory_bytes, f64::from(1 << 30), "GiB")?;
        number("DRAM to SRAM", profile.memory_bytes_per_s, 1e9, "GB/s")?;
        number("SSD to DRAM", profile.storage_bytes_per_s, 1e9, "GB/s")
    }
}
