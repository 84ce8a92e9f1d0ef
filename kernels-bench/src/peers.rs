//! Other libraries on the same shapes, in the same run: the program of `kernels-bench/peers`,
//! which is a workspace of its own, is started for each shape and asked for a sample of each of
//! its ways whenever we have taken one of ours.
//!
//! It is told on its stdin, a line each, and answers on its stdout with lines of JSON up to one
//! with the key `done`:
//! * `skip PEER WHAT`: a way that `load` shall leave out. No answer.
//! * `load M N K FOLDER`: reads `x.bin`, `w.bin` and `y.bin` (f32, little-endian, row-major) from
//!   the folder, multiplies in each of its ways, compares with `y`, and answers
//!   `{"peer", "what", "error"}` for each, `error` being the root of the mean square of the
//!   difference over that of `y`; or `{"peer", "what", "failed"}`.
//! * `round`: `{"peer", "what", "ms"}` for each way that did not fail.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use edge_gpu::{DeviceInfo, DeviceKind};
use edge_kernels::check::expected;
use edge_kernels::op::CaseBuffer;
use edge_kernels::ops::matmul::matmul_nt;
use serde_json::{Value, json};

use crate::measure::{Better, Measure};
use crate::row::{median_and_spread, paired_ratio};
use crate::session::Timed;
use crate::{Subject, runner};

/// A way of a peer to multiply, with its samples of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerTimed {
    /// Name of the library.
    pub peer: String,
    /// Element type first, then how: `f32 x·Wᵀ`.
    pub what: String,
    /// Name of the shape.
    pub shape: String,
    /// Milliseconds of a product, one a round.
    pub samples_ms: Vec<f64>,
}

/// The fastest way of a peer whose element type is `dtype`.
pub fn best<'a>(
    peers: &'a [PeerTimed],
    peer: &str,
    dtype: &str,
    shape: &str,
) -> Option<&'a PeerTimed> {
    let ours = |one: &&PeerTimed| {
        let typed = one.what.split(' ').next() == Some(dtype);
        one.peer == peer && typed && one.shape == shape && !one.samples_ms.is_empty()
    };
    let median = |one: &PeerTimed| median_and_spread(&one.samples_ms).0;
    peers.iter().filter(ours).min_by(|a, b| median(a).total_cmp(&median(b)))
}

/// The program, and where operands are put for it.
pub struct Peers {
    program: PathBuf,
    /// Kind and name of the adapter.
    adapter: [String; 2],
    folder: PathBuf,
    process: Option<Process>,
    loaded: Vec<PeerTimed>,
}

/// The program, running.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(program: &Path, adapter: &[String; 2]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(adapter)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let stdin = child.stdin.take().context("the peers have no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("the peers have no stdout")?);
        Ok(Self { child, stdin, stdout })
    }

    fn ask(&mut self, line: &str) -> Result<Vec<Value>> {
        writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush()).context("peers ended")?;
        let mut answers = Vec::new();
        loop {
            let mut text = String::new();
            if self.stdout.read_line(&mut text).context("the peers cannot be read")? == 0 {
                bail!("the peers ended: {}", self.child.wait().context("and cannot be asked")?);
            }
            let answer: Value = serde_json::from_str(&text)
                .with_context(|| format!("the peers said `{}`", text.trim()))?;
            if answer.get("done").is_some() {
                return Ok(answers);
            }
            answers.push(answer);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peers {
    /// Of the program at this path, for the adapter that our device is.
    pub fn new(program: &Path, info: &DeviceInfo) -> Self {
        let kind = if info.kind == DeviceKind::Host { "none" } else { info.kind.name() };
        Self {
            program: program.into(),
            adapter: [kind.into(), info.name.clone()],
            folder: std::env::temp_dir().join(format!("edge-bench-peers-{}", std::process::id())),
            process: None,
            loaded: Vec::new(),
        }
    }

    /// Gives the peers the operands of a subject that [`can_compare`] takes, and lets them warm
    /// up, tune and be checked. What failed or is wrong is returned and not timed.
    ///
    /// # Errors
    /// The program ends, or the operands cannot be written.
    pub fn load(&mut self, subject: &Subject) -> Result<Vec<String>> {
        let before = runner::contents(subject);
        let want = expected(subject.op, &subject.call, &before);
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("{} cannot be made", self.folder.display()))?;
        let bindings = subject.op.bindings(&subject.call);
        for (index, binding) in bindings.iter().enumerate() {
            let words = match &before[index] {
                CaseBuffer::Output(_) => want[index].clone(),
                given => given.words(),
            };
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let path = self.folder.join(format!("{}.bin", binding.name));
            fs::write(&path, bytes)
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        let matmul_nt::Params { m, n, k, .. } = subject.call.params();
        let load = format!("load {m} {n} {k} {}", self.folder.display());
        let mut wrong: Vec<Wrong> = Vec::new();
        loop {
            // A library that has failed in one way may be of no use in any other, so that what
            // fails is left out of a process whose times count.
            self.process = None;
            self.loaded.clear();
            let mut process = Process::start(&self.program, &self.adapter)?;
            for one in &wrong {
                process.ask(&format!("skip {}", one.name))?;
            }
            let mut new = Vec::new();
            for answer in process.ask(&load)? {
                match judged(&answer)? {
                    Ok((peer, what)) => {
                        let (shape, samples_ms) = (subject.shape.clone(), Vec::new());
                        self.loaded.push(PeerTimed { peer, what, shape, samples_ms });
                    }
                    Err(one) => new.push(one),
                }
            }
            self.process = Some(process);
            if new.is_empty() {
                break;
            }
            wrong.extend(culprits(new));
        }
        Ok(wrong.into_iter().map(|one| format!("{}: {}", one.name, one.reason)).collect())
    }

    /// A sample of each way.
    ///
    /// # Errors
    /// The program ends or answers nonsense.
    pub fn round(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("the peers have nothing to multiply yet")?;
        for answer in process.ask("round")? {
            let (peer, what) = names(&answer)?;
            let ms = answer["ms"].as_f64().with_context(|| format!("no time in {answer}"))?;
            // Ways that were wrong are timed by nobody.
            let way = self.loaded.iter_mut().find(|one| one.peer == peer && one.what == what);
            if let Some(way) = way {
                way.samples_ms.push(ms);
            }
        }
        Ok(())
    }

    /// The samples since the last [`Peers::load`].
    pub fn take(&mut self) -> Vec<PeerTimed> {
        self.process = None;
        std::mem::take(&mut self.loaded)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // What cannot be removed is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether the peers can do the same: a forward product of contiguous matrices in f32.
pub fn can_compare(subject: &Subject) -> bool {
    if subject.op.name() != "matmul_nt" || subject.format() != "f32" {
        return false;
    }
    let p: matmul_nt::Params = subject.call.params();
    p == matmul_nt::Params::dense(p.m, p.n, p.k)
}

fn names(answer: &Value) -> Result<(String, String)> {
    let get = |key: &str| {
        let text = answer[key].as_str();
        text.map(String::from).with_context(|| format!("no `{key}` in {answer}"))
    };
    Ok((get("peer")?, get("what")?))
}

/// A way that is not timed.
#[derive(Clone, Debug, PartialEq)]
struct Wrong {
    /// `PEER WHAT`
    name: String,
    reason: String,
    /// It gave no answer at all.
    failed: bool,
}

/// What to blame: the first that failed, since what came behind it in the same process may have
/// failed or been wrong because of it; without a failure all that are wrong.
fn culprits(new: Vec<Wrong>) -> Vec<Wrong> {
    match new.iter().position(|one| one.failed) {
        Some(first) => new.into_iter().skip(first).take(1).collect(),
        None => new,
    }
}

/// The names of a way whose answer is right, or what is wrong with it.
fn judged(answer: &Value) -> Result<Result<(String, String), Wrong>> {
    let (peer, what) = names(answer)?;
    let wrong = |reason: String, failed| Wrong { name: format!("{peer} {what}"), reason, failed };
    if let Some(reason) = answer["failed"].as_str() {
        return Ok(Err(wrong(reason.into(), true)));
    }
    let error = answer["error"].as_f64().with_context(|| format!("no `error` in {answer}"))?;
    let most = match what.split(' ').next() {
        Some("f32") => 1e-4,
        // Half a step of one of 255 or 15 levels between the largest weights of a block, and the
        // same again where a library also rounds the input.
        Some("q8") => 0.02,
        Some("q4") => 0.15,
        other => bail!("the peers have a type {other:?}, for which there is no tolerance"),
    };
    if error <= most {
        return Ok(Ok((peer, what)));
    }
    let reason = format!("wrong by {error:.1e} of the answer, more than {most:e}");
    Ok(Err(wrong(reason, false)))
}

/// The table of one shape: our formats, then each way of each peer, with how many times as fast
/// production's f32 and q4 are.
pub fn table(ours: &[Timed], peers: &[PeerTimed], flops: u64) -> String {
    let mut text = format!(
        "  {:<26} {:>10} {:>9} {:>9} {:>11} {:>11}\n",
        "who", "median_ms", "spread", "gflop_s", "our f32 is", "our q4 is"
    );
    let ours = || ours.iter().filter(|one| one.row.production && one.row.op == "matmul_nt");
    let mut add = |who: String, samples: &[f64]| {
        let (ms, spread) = median_and_spread(samples);
        let ratio = |format: &str| {
            let one = ours().find(|one| one.row.format == format);
            let ratio = one.and_then(|one| paired_ratio(samples, &one.samples_ms));
            ratio.map_or("-".into(), |ratio| format!("{ratio:.2} x"))
        };
        let rate = flops as f64 / (ms * 1e6);
        let (f32, q4) = (ratio("f32"), ratio("q4"));
        let numbers = format!("{ms:>10.3} {spread:>9.3} {rate:>9.2} {f32:>11} {q4:>11}");
        text.push_str(&format!("  {who:<26} {numbers}\n"));
    };
    for one in ours() {
        add(format!("ours {} {}", one.row.format, one.row.variant), &one.samples_ms);
    }
    for one in peers.iter().filter(|one| !one.samples_ms.is_empty()) {
        add(format!("{} {}", one.peer, one.what), &one.samples_ms);
    }
    text
}

/// A peer's time as one line of JSON; the ratio is to production's f32.
pub fn json(one: &PeerTimed, ours: &[Timed], flops: u64) -> String {
    let (median_ms, spread_ms) = median_and_spread(&one.samples_ms);
    let dense = crate::session::production(ours, "matmul_nt", "f32", &one.shape);
    json!({
        "op": "matmul_nt",
        "peer": one.peer,
        "what": one.what,
        "shape": one.shape,
        "median_ms": median_ms,
        "spread_ms": spread_ms,
        "samples": one.samples_ms.len(),
        "gflop_s": flops as f64 / (median_ms * 1e6),
        "our_f32_is_times": dense.and_then(|d| paired_ratio(&one.samples_ms, &d.samples_ms)),
    })
    .to_string()
}

/// How many times as fast as each way of a peer our f32 is, for a record.
pub fn measures(peers: &[PeerTimed], ours: &[Timed], selector: &str) -> Vec<Measure> {
    let ratio = |one: &PeerTimed| {
        let dense = crate::session::production(ours, "matmul_nt", "f32", &one.shape)?;
        paired_ratio(&one.samples_ms, &dense.samples_ms)
    };
    let measure = |one: &PeerTimed| {
        Some(Measure {
            kind: "peer".into(),
            op: "matmul_nt".into(),
            format: format!("{} {}", one.peer, one.what),
            shape: one.shape.clone(),
            metric: "our_f32_is_times".into(),
            value: ratio(one)?,
            unit: String::new(),
            better: Better::Higher,
            repeat: format!(
                "cargo xtask bench --peers --device '{selector}' op=matmul_nt format=f32 shape={}",
                one.shape
            ),
            seed: Some(runner::SEED),
        })
    };
    peers.iter().filter_map(measure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_their_type() {
        let right = json!({"peer": "burn", "what": "f32 x·W", "error": 1e-6});
        assert_eq!(judged(&right).expect("valid"), Ok(("burn".into(), "f32 x·W".into())));
        let coarse = json!({"peer": "burn", "what": "q4 x·W", "error": 0.08});
        assert!(judged(&coarse).expect("valid").is_ok());
        let wrong = json!({"peer": "burn", "what": "f32 x·W", "error": 0.08});
        let wrong = judged(&wrong).expect("valid").expect_err("outside");
        assert_eq!((wrong.name.as_str(), wrong.failed), ("burn f32 x·W", false));
        assert!(wrong.reason.starts_with("wrong by 8.0e-2"), "{wrong:?}");
        let failed = json!({"peer": "burn", "what": "q4", "failed": "no kernel"});
        let failed = judged(&failed).expect("valid").expect_err("failed");
        assert_eq!((failed.name.as_str(), failed.reason.as_str()), ("burn q4", "no kernel"));
        assert!(failed.failed);
        // One failure may be why the others are wrong.
        assert_eq!(culprits(vec![wrong.clone(), failed.clone(), failed.clone()]), [failed]);
        assert_eq!(culprits(vec![wrong.clone(), wrong.clone()]).len(), 2);
        assert!(judged(&json!({"peer": "burn", "what": "f32"})).is_err());
    }

    #[test]
    fn only_dense_forward_products_are_compared() {
        let all = Subject::all();
        let compared: Vec<&Subject> = all.iter().filter(|subject| can_compare(subject)).collect();
        assert!(compared.len() > 50);
        assert!(compared.iter().all(|one| one.name().starts_with("matmul_nt/f32/")));
    }

    #[test]
    fn tables_show_ratios_to_ours() {
        let format = edge_kernels::Format::F32;
        let subject = Subject::forward("a", [1, 8, 8], format);
        let row = crate::row::Row::new(&subject, ("tile", true), "a device", None, &[2.0]);
        let ours = [Timed { row, samples_ms: vec![2.0] }];
        let peer = PeerTimed {
            peer: "burn".into(),
            what: "f32 x·W".into(),
            shape: subject.shape.clone(),
            samples_ms: vec![5.0],
        };
        let text = table(&ours, std::slice::from_ref(&peer), 10_000_000);
        let line = text.lines().find(|line| line.contains("burn")).expect("its line");
        assert!(line.contains("2.00") && line.contains("2.50 x"), "{text}");
        let json: Value = serde_json::from_str(&json(&peer, &ours, 10_000_000)).expect("an object");
        assert_eq!(json["our_f32_is_times"], 2.5);
    }
}
