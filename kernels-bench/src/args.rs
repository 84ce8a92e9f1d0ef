//! The command line of `cargo xtask bench`.

use std::path::PathBuf;

use clap::Parser;

use crate::runner::default_selector;

/// Checks and times every registered kernel, with every variant that the device can run.
///
/// Rows are selected by words of which all must match: a part of op/format/shape, or exactly
/// op=NAME, format=NAME, shape=NAME. Production's variant is marked with a star.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask bench", disable_version_flag = true)]
pub struct Args {
    /// Words of which all must match: `matmul_nt q4 tinyllama 256`.
    pub words: Vec<String>,
    /// auto, cpu, an index, or a part of an adapter's or driver's name [else EDGE_BENCH_DEVICE,
    /// else auto].
    #[arg(long, value_name = "NAME", default_value_t = default_selector(),
          hide_default_value = true)]
    pub device: String,
    /// One JSON object a row instead of the table.
    #[arg(long)]
    pub json: bool,
    /// A set that a software driver takes minutes for; the default on software devices.
    #[arg(long, conflicts_with_all = ["full", "targets"])]
    pub quick: bool,
    /// Everything, the models' layers in each timed format included. GPUs leave the sparse formats,
    /// zero points and wider groups of layers out that no word names.
    #[arg(long, conflicts_with = "targets")]
    pub full: bool,
    /// Most samples of a row.
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = count)]
    pub samples: usize,
    /// Milliseconds after which a row with 3 samples gets no more [500; 150 with --check or where
    /// the quick set is recorded].
    #[arg(long, value_name = "MS", value_parser = duration)]
    pub row_ms: Option<f64>,
    /// Also writes the rows to kernels-bench/record/DEVICE/; without words with a short tuning
    /// run by each method and the size of what is built.
    #[arg(long)]
    pub record: bool,
    /// Times production's variants of the quick set beside a calibration kernel and judges them
    /// by this machine's records; exits with 1 where one is slower. With --record: adds to the
    /// records instead.
    #[arg(long, conflicts_with_all = ["full", "targets", "peers", "against", "json"])]
    pub check: bool,
    /// How often everything is timed, on a device that is opened again each time: the values that
    /// --check judges by.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count, requires = "check")]
    pub passes: usize,
    /// Also builds the program from nothing and records how long that takes.
    #[arg(long, requires = "record")]
    pub cold_build: bool,
    /// The program edge-runtime; `cargo xtask bench --record` builds and names it.
    #[arg(long, value_name = "PROGRAM", requires = "record", hide = true)]
    pub program: Option<PathBuf>,
    /// What `--cold-build` took, seconds.
    #[arg(long, value_name = "S", value_parser = duration, hide = true)]
    pub cold_build_s: Option<f64>,
    /// Compares with a record, else with this device's newest.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub against: Option<Option<PathBuf>>,
    /// Judges the ratios that the kernels ought to reach; exits with 1 when one is missed.
    #[arg(long, conflicts_with_all = ["words", "record", "against"])]
    pub targets: bool,
    /// Also times other libraries on the forward products; builds them first.
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, require_equals = true)]
    pub peers: Option<Option<PathBuf>>,
    /// Names what would be timed, and ends.
    #[arg(long)]
    pub list: bool,
}

fn count(text: &str) -> Result<usize, String> {
    let count = text.parse::<usize>().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "a number from 1 on is wanted".into())
}

fn duration(text: &str) -> Result<f64, String> {
    let ms = text.parse::<f64>().ok().filter(|ms| ms.is_finite() && *ms >= 0.0);
    ms.ok_or_else(|| "a number of milliseconds is wanted".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("bench").chain(text.split_whitespace()))
    }

    #[test]
    fn words_and_flags_mix() {
        let args = parse("matmul_nt --json q4 --samples 5 tinyllama --against").expect("valid");
        assert_eq!(args.words, ["matmul_nt", "q4", "tinyllama"]);
        assert!(args.json && !args.quick && !args.full);
        assert_eq!((args.samples, args.row_ms), (5, None));
        assert_eq!(args.against, Some(None), "the newest");
        let args = parse("--against=a/b.csv copy --row-ms 20").expect("valid");
        assert_eq!(args.against, Some(Some("a/b.csv".into())));
        assert_eq!((args.words.len(), args.row_ms), (1, Some(20.0)));
        let args = parse("--check --record --passes 12").expect("valid");
        assert!(args.check && args.record && args.passes == 12);
        assert_eq!(parse("").expect("valid").against, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let wrong = [
            "--samples 0",
            "--row-ms -1",
            "--row-ms NaN",
            "--quick --full",
            "--jsn",
            "--targets matmul_nt",
            "--targets --record",
            "--check --targets",
            "--passes 3",
            "--cold-build",
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "`{text}` was taken");
        }
    }
}
