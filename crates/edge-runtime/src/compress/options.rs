//! What `compress` is asked to do.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use edge_kernels::{Format, Sparsity};
use edge_scheduler::policy::{TWO_FOUR, Template, WIDTHS};
use edge_scheduler::profiles::DeviceProfile;

use super::calibrate::Granularity;
use super::method::Method;
use crate::cli::Usage;
use crate::data::Columns;

/// Policies that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Named {
    /// The least measured error within the target
    Luc,
    /// All blocks alike
    Uniform,
    /// The higher of two widths for projections drawn at random
    Random,
    /// One width more for blocks with errors above the mean (Edge-LLM, Eq. 1 and 2)
    Paper,
}

/// Bits of embedding and head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TableBits {
    /// Groups of 32 with a scale
    #[default]
    #[value(name = "8")]
    Eight,
    /// As the checkpoint has them, or f16
    #[value(name = "16")]
    Sixteen,
}

/// Where the policy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// By name.
    Named(Named),
    /// A JSON file.
    File(PathBuf),
}

/// A device that is not here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Elsewhere {
    /// Its data sheet.
    pub profile: &'static DeviceProfile,
    /// Whether blocks are streamed from its storage.
    pub streamed: bool,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Named::from_str(text, false) {
            Ok(named) => Ok(Self::Named(named)),
            Err(_) if text.ends_with(".json") => Ok(Self::File(text.into())),
            Err(_) => Err("give luc, uniform, random, paper or a .json file".to_owned()),
        }
    }
}

/// What the policies by name aim at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Mean bits of a stored value.
    Bits(f64),
    /// Bytes of `compressed.safetensors`, tables included.
    Bytes(u64),
    /// Time of the projections' products in a training step, forward and backward, through all
    /// blocks, as measured on the device.
    StepMs {
        /// Milliseconds.
        ms: f64,
        /// Tokens of the step.
        tokens: u32,
    },
}

impl Aim {
    /// The flag that sets it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Bits(_) => "--target-bits",
            Self::Bytes(_) => "--target-bytes",
            Self::StepMs { .. } => "--target-step-ms",
        }
    }
}

/// What the errors of layers are measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measured {
    /// How much less likely the model finds the calibration text
    Loss,
    /// How far the model's final distribution moves, whatever the text
    Divergence,
    /// How far the block's output moves: one block is run instead of all that follow
    Output,
}

/// Options of a compression.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policy.
    pub policy: Wanted,
    /// What a policy by name aims at.
    pub aim: Aim,
    /// The device whose time counts; `None`: the one that is measured on.
    pub elsewhere: Option<Elsewhere>,
    /// Mean sparsity at least; `None`: as it comes.
    pub sparsity: Option<f64>,
    /// What formats are made of, bits and sparsity apart.
    pub template: Template,
    /// How embedding and head are stored.
    pub table_bits: TableBits,
    /// How weights are pruned and rounded.
    pub method: Method,
    /// Whether `luc` chooses by block or by projection.
    pub granularity: Granularity,
    /// What `luc` measures; `None`: divergence where the whole model fits into the budget, else
    /// outputs.
    pub measured: Option<Measured>,
    /// Most evaluations of the whole model to refine `luc` with; `None`: by the model's size.
    pub refine: Option<usize>,
    /// Calibration texts.
    pub calibration: Vec<PathBuf>,
    /// Which columns of JSON data stand for which names of ours.
    pub columns: Option<Columns>,
    /// Held-out text; `None`: the last part of the calibration texts.
    pub valid: Option<PathBuf>,
    /// Whether that was asked for, rather than taken with the bundled text.
    pub valid_named: bool,
    /// Sequences of calibration.
    pub sequences: usize,
    /// Sequences of it that sensitivity is measured on.
    pub probes: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Most bytes of device and host memory together.
    pub memory_budget: Option<u64>,
    /// File that sensitivity is kept in; `None`: one in the user's cache folder.
    pub sensitivity: Option<PathBuf>,
    /// Of the policy `random`.
    pub seed: u64,
    /// Folder to write.
    pub out: PathBuf,
    /// No progress on stderr.
    pub quiet: bool,
}

/// Widths that `luc` chooses from; 16 bits join them where more than 8 are aimed at.
const CANDIDATES: [u32; 4] = [2, 3, 4, 8];

impl Options {
    /// Formats that `luc` chooses from. With a target in bits alone 2:4 can only lose; at a mean
    /// of 1/2 all layers are 2:4.
    pub fn candidates(&self) -> Vec<Format> {
        let patterns: &[bool] = match (self.sparsity, self.aim) {
            (Some(TWO_FOUR), _) => &[true],
            (Some(0.0), _) | (None, Aim::Bits(_)) => &[false],
            _ => &[false, true],
        };
        let wide = !matches!(self.aim, Aim::Bits(bits) if bits <= 8.0);
        let widths = CANDIDATES.into_iter().chain(wide.then_some(16));
        let of = |bits| patterns.iter().map(move |sparse| self.template.format(bits, *sparse));
        widths.flat_map(of).collect()
    }

    /// Refuses what clap cannot know to be wrong.
    ///
    /// # Errors
    /// The sentence names the flag.
    pub fn check(&self) -> Result<()> {
        let by_file = matches!(self.policy, Wanted::File(_));
        let flag = self.aim.flag();
        if let (false, Wanted::Named(named)) = (matches!(self.aim, Aim::Bits(_)), &self.policy)
            && *named != Named::Luc
        {
            let name = named.to_possible_value();
            let name = name.as_ref().map_or("", |name| name.get_name());
            return Err(anyhow::Error::new(Usage(format!(
                "{flag} does not go with --policy {name}: use luc, or give --target-bits"
            ))));
        }
        let dense = matches!((self.sparsity, self.aim), (Some(0.0), _) | (None, Aim::Bits(_)));
        if !by_file && dense && self.template.sparsity == Sparsity::RowGrouped {
            return Err(anyhow::Error::new(Usage(
                "--row-grouped leaves out nothing by itself: give --target-sparsity too".to_owned(),
            )));
        }
        if let Aim::Bits(bits) = self.aim {
            let (least, most) = (f64::from(WIDTHS[0]), 16.0);
            ensure!(
                by_file || (least..=most).contains(&bits),
                "--target-bits is {bits}: give a number from 2 to 16"
            );
        }
        if let Aim::StepMs { ms, tokens } = self.aim {
            ensure!(ms > 0.0, "--target-step-ms is {ms}: give a number above 0");
            ensure!(tokens >= 1, "--step-tokens is 0: give at least 1");
        }
        let share = self.sparsity.unwrap_or(0.0);
        ensure!(
            (0.0..=TWO_FOUR).contains(&share),
            "--target-sparsity is {share}: 2:4 leaves out half at most; give a number from 0 to 0.5"
        );
        for (flag, value) in [("--sequences", self.sequences), ("--probe-sequences", self.probes)] {
            ensure!(value >= 1, "{flag} is 0: give at least 1");
        }
        ensure!(self.seq_len >= 2, "--seq-len is below 2: give at least 2");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    fn options(aim: Aim, sparsity: Option<f64>) -> Options {
        Options {
            policy: Wanted::Named(Named::Luc),
            aim,
            elsewhere: None,
            sparsity,
            template: Template::default(),
            table_bits: TableBits::default(),
            method: Method::default(),
            granularity: Granularity::Block,
            measured: None,
            refine: None,
            calibration: Vec::new(),
            columns: None,
            valid: None,
            valid_named: false,
            sequences: 4,
            probes: 4,
            seq_len: 16,
            memory_budget: None,
            sensitivity: None,
            seed: 0,
            out: "out".into(),
            quiet: true,
        }
    }

    fn step(ms: f64, tokens: u32) -> Aim {
        Aim::StepMs { ms, tokens }
    }

    #[test]
    fn candidates_are_what_the_target_can_use() {
        let names = |aim, sparsity| -> String {
            let formats = options(aim, sparsity).candidates();
            formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(Aim::Bits(4.0), None), "q2 q3 q4 q8");
        assert_eq!(names(Aim::Bits(4.0), Some(0.5)), "q2s q3s q4s q8s");
        assert_eq!(names(Aim::Bits(9.0), Some(0.0)), "q2 q3 q4 q8 bf16");
        assert_eq!(names(Aim::Bits(3.0), Some(0.2)), "q2 q2s q3 q3s q4 q4s q8 q8s");
        assert_eq!(names(Aim::Bytes(9), None), "q2 q2s q3 q3s q4 q4s q8 q8s bf16 f16s");
        assert_eq!(names(step(1.0, 1), Some(0.0)), "q2 q3 q4 q8 bf16");
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_flag() {
        let check = |aim, sparsity| options(aim, sparsity).check();
        assert!(check(Aim::Bits(4.5), Some(0.5)).is_ok());
        assert!(message(check(Aim::Bits(1.0), None)).contains("--target-bits is 1"));
        assert!(message(check(Aim::Bits(f64::NAN), None)).contains("--target-bits"));
        assert!(message(check(Aim::Bits(4.0), Some(0.6))).contains("--target-sparsity is 0.6"));
        assert!(message(check(step(0.0, 1), None)).contains("--target-step-ms is 0"));
        assert!(message(check(step(1.0, 0), None)).contains("--step-tokens is 0"));
        let mut of_name = options(Aim::Bytes(100), None);
        of_name.policy = Wanted::Named(Named::Paper);
        let error = of_name.check().unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("--policy paper"), "{error}");
        let none = Options { probes: 0, ..options(Aim::Bits(4.0), None) };
        assert!(message(none.check()).contains("--probe-sequences is 0"));
    }

    #[test]
    fn a_policy_is_a_name_or_a_file() {
        assert_eq!("random".parse(), Ok(Wanted::Named(Named::Random)));
        assert_eq!("a/luc.json".parse(), Ok(Wanted::File("a/luc.json".into())));
        assert!("lucy".parse::<Wanted>().unwrap_err().contains("luc, uniform"));
    }
}
