//! Ratios that the kernels ought to reach, as data: between formats, between directions, and
//! against other libraries. They are checked here and not in tests, because a time that a shared
//! machine spoils is no reason for a red build.

use edge_kernels::Format;

use crate::Subject;
use crate::peers::{PeerTimed, best};
use crate::row::ratio_and_spread;
use crate::select::Selected;
use crate::session::{Timed, production};

/// Least milliseconds of samples of a row: what is judged deserves more rounds than a table.
pub const ROW_MS: f64 = 4000.0;

/// The layer whose shapes are judged: square, so that both directions do the same work.
const LAYER: &str = "tinyllama_q_proj";

/// `[m, n, k]` of training a chunk of tokens.
const GEMM: [u32; 3] = [256, 2048, 2048];

/// `[m, n, k]` of generating a token.
const GEMV: [u32; 3] = [1, 2048, 2048];

/// Formats that the targets name; those of 2:4 patterns may not be there.
const FORMATS: [&str; 9] = ["f32", "f16", "q8", "q4", "q3", "q2", "q4s", "f16r", "q4r"];

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Production's variant of `matmul_nt` in a format.
    Forward(&'static str),
    /// Production's variant of `matmul_nn` in a format.
    Backward(&'static str),
    /// The fastest that a peer has in f32.
    Peer(&'static str),
}

/// `fast` is to be at least `ratio` times as fast as `slow`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    fast: Side,
    slow: Side,
    /// Least ratio.
    ratio: f64,
    shape: [u32; 3],
}

/// How a target came out.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// With the ratio that was measured and its spread over the rounds.
    Met(f64, f64),
    /// The same.
    Missed(f64, f64),
    /// With what is missing.
    NotThere(String),
}

/// All targets.
pub fn all() -> Vec<Target> {
    use Side::{Backward, Forward, Peer};
    let target = |fast, ratio, slow, shape| Target { fast, slow, ratio, shape };
    let mut targets = Vec::new();
    for shape in [GEMM, GEMV] {
        targets.push(target(Forward("f32"), 3.0, Peer("burn"), shape));
    }
    for dense in ["f16", "f32"] {
        targets.push(target(Forward("q4"), 1.0, Forward(dense), GEMM));
    }
    targets.push(target(Forward("q4"), 3.0, Forward("f32"), GEMV));
    for shape in [GEMM, GEMV] {
        for few in ["q4", "q3", "q2"] {
            targets.push(target(Forward(few), 1.0, Forward("q8"), shape));
        }
    }
    targets.push(target(Backward("q4"), 0.8, Forward("q4"), GEMM));
    for grouped in ["f16r", "q4r"] {
        targets.push(target(Forward(grouped), 1.6, Forward("f32"), GEMM));
    }
    for shape in [GEMM, GEMV] {
        targets.push(target(Forward("q4s"), 1.0, Forward("q4"), shape));
    }
    targets
}

/// What the targets need, each group one shape: what is compared is timed by turns.
pub fn groups() -> Vec<Vec<Selected>> {
    [GEMM, GEMV]
        .into_iter()
        .map(|shape| {
            let formats = FORMATS.iter().filter_map(|name| Format::from_name(name));
            let mut subjects: Vec<Subject> =
                formats.map(|format| Subject::forward(LAYER, shape, format)).collect();
            if shape == GEMM {
                let format =
                    Format::from_name("q4").expect("the format of the README's first line");
                subjects.push(Subject::backward(LAYER, shape, format));
            }
            // Only what production takes counts.
            subjects.into_iter().map(|subject| Selected { subject, baseline: true }).collect()
        })
        .collect()
}

impl Side {
    fn text(self) -> String {
        match self {
            Self::Forward(format) => format!("{format} forward"),
            Self::Backward(format) => format!("{format} dX"),
            Self::Peer(peer) => format!("{peer} f32"),
        }
    }

    /// Its samples, or what is missing.
    fn samples<'a>(
        self,
        shape: [u32; 3],
        timed: &'a [Timed],
        peers: Option<&'a [PeerTimed]>,
    ) -> Result<&'a [f64], String> {
        let [m, n, k] = shape;
        let name = format!("{LAYER}_{m}x{n}x{k}");
        let (op, format) = match self {
            Self::Forward(format) => ("matmul_nt", format),
            Self::Backward(format) => ("matmul_nn", format),
            Self::Peer(peer) => {
                let peers = peers.ok_or("needs --peers")?;
                let found = best(peers, peer, "f32", &name);
                let found = found.ok_or_else(|| format!("{peer} gave no time"))?;
                return Ok(&found.samples_ms);
            }
        };
        if Format::from_name(format).is_none() {
            return Err(format!("there is no format {format}"));
        }
        let found = production(timed, op, format, &name);
        Ok(&found.ok_or_else(|| format!("{op} {format} was not timed"))?.samples_ms)
    }
}

impl Target {
    /// In words.
    pub fn text(&self) -> String {
        let [m, n, k] = self.shape;
        let (fast, slow) = (self.fast.text(), self.slow.text());
        format!("{fast} >= {} x {slow}, {m}x{n}x{k}", self.ratio)
    }

    /// Judges it by the samples of a run; `peers` is `None` where no peer was asked.
    pub fn judge(&self, timed: &[Timed], peers: Option<&[PeerTimed]>) -> Verdict {
        let sides = [self.fast, self.slow].map(|side| side.samples(self.shape, timed, peers));
        let [fast, slow] = match sides {
            [Ok(fast), Ok(slow)] => [fast, slow],
            [Err(reason), _] | [_, Err(reason)] => return Verdict::NotThere(reason),
        };
        match ratio_and_spread(slow, fast) {
            None => Verdict::NotThere("no samples".into()),
            Some((ratio, spread)) if ratio >= self.ratio => Verdict::Met(ratio, spread),
            Some((ratio, spread)) => Verdict::Missed(ratio, spread),
        }
    }
}

impl Verdict {
    /// A line of the table of targets.
    pub fn line(&self, target: &str) -> String {
        let (word, detail) = match self {
            Self::Met(ratio, spread) => ("met", format!("{ratio:.2} ± {spread:.2}")),
            Self::Missed(ratio, spread) => ("MISSED", format!("{ratio:.2} ± {spread:.2}")),
            Self::NotThere(reason) => ("not there", reason.clone()),
        };
        format!("{word:<9}  {target:<48}  {detail}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Row;

    fn timed(subject: &Subject, samples_ms: &[f64]) -> Timed {
        let row = Row::new(subject, ("tile", true), "a device", None, samples_ms);
        Timed { row, samples_ms: samples_ms.to_vec() }
    }

    fn forward(format: &str, shape: [u32; 3], samples_ms: &[f64]) -> Timed {
        let format = Format::from_name(format).expect("known");
        timed(&Subject::forward(LAYER, shape, format), samples_ms)
    }

    fn target(fast: Side, ratio: f64, slow: Side) -> Target {
        Target { fast, slow, ratio, shape: GEMV }
    }

    #[test]
    fn a_ratio_meets_or_misses() {
        let timed = [forward("f32", GEMV, &[6.0, 6.0]), forward("q4", GEMV, &[2.0, 2.0])];
        let faster = |ratio| target(Side::Forward("q4"), ratio, Side::Forward("f32"));
        assert_eq!(faster(3.0).judge(&timed, None), Verdict::Met(3.0, 0.0));
        assert_eq!(faster(3.1).judge(&timed, None), Verdict::Missed(3.0, 0.0));
        let line = Verdict::Missed(3.0, 0.0).line(&faster(3.1).text());
        assert!(
            line.starts_with("MISSED     q4 forward >= 3.1 x f32 forward, 1x2048x2048"),
            "{line}"
        );
        // The same formats at another shape are not the same.
        let other = Target { shape: GEMM, ..faster(1.0) };
        let verdict = other.judge(&timed, None);
        assert_eq!(verdict, Verdict::NotThere("matmul_nt q4 was not timed".into()));
    }

    #[test]
    fn what_is_absent_is_said() {
        let timed = [forward("f32", GEMV, &[6.0])];
        let absent = target(Side::Forward("q5x"), 1.0, Side::Forward("f32"));
        let verdict = absent.judge(&timed, None);
        assert_eq!(verdict, Verdict::NotThere("there is no format q5x".into()));
        let peer = target(Side::Forward("f32"), 3.0, Side::Peer("burn"));
        assert_eq!(peer.judge(&timed, None), Verdict::NotThere("needs --peers".into()));
        let silent = peer.judge(&timed, Some(&[]));
        assert_eq!(silent, Verdict::NotThere("burn gave no time".into()));
    }

    #[test]
    fn the_best_of_a_peer_counts() {
        let timed = [forward("f32", GEMV, &[2.0])];
        let peer = |what: &str, ms: f64| PeerTimed {
            peer: "burn".into(),
            what: what.into(),
            shape: "tinyllama_q_proj_1x2048x2048".into(),
            samples_ms: vec![ms],
        };
        let peers = [peer("f32 a", 9.0), peer("f32 b", 8.0), peer("q8", 1.0)];
        let target = target(Side::Forward("f32"), 3.0, Side::Peer("burn"));
        assert_eq!(target.judge(&timed, Some(&peers)), Verdict::Met(4.0, 0.0));
    }

    #[test]
    fn everything_that_is_compared_is_timed() {
        let timed: Vec<String> =
            groups().iter().flatten().map(|selected| selected.subject.name()).collect();
        for target in all() {
            let [m, n, k] = target.shape;
            for side in [target.fast, target.slow] {
                let (op, format) = match side {
                    Side::Forward(format) => ("matmul_nt", format),
                    Side::Backward(format) => ("matmul_nn", format),
                    Side::Peer(_) => continue,
                };
                let name = format!("{op}/{format}/{LAYER}_{m}x{n}x{k}");
                let known = Format::from_name(format).is_some();
                assert_eq!(timed.contains(&name), known, "{}", target.text());
            }
        }
    }
}
