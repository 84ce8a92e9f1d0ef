//! `fuzz [TARGET...] [--seconds N] [--seed S] [--out DIR] [--seeds]`: runs mutated inputs on any
//! toolchain, without coverage. Each target has a process of its own, so that an input that ends it
//! is seen and kept. With `--seeds` the valid file of each target is written to `DIR/TARGET/valid`
//! instead, and the targets are listed. `cargo xtask fuzz` calls this.
#![allow(clippy::print_stdout, reason = "a command line tool talks on stdout")]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edge_fuzz::mutate::mutate;
use edge_fuzz::{Prepared, TIME, Target, kept, targets};
use edge_kernels::util::SeededRng;
use rand::SeedableRng;

/// Processes of a target that may die before it is given up.
const DEATHS: u64 = 10;

/// Known inputs at most: new ones that are accepted join them.
const POOL: usize = 500;

struct Args {
    targets: Vec<&'static Target>,
    seconds: u64,
    seed: u64,
    out: PathBuf,
    worker: bool,
    seeds: bool,
}

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let out = PathBuf::from("target/fuzz/findings");
        let targets = Vec::new();
        let mut args = Self { targets, seconds: 10, seed: 0, out, worker: false, seeds: false };
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} has no value"));
            match word.as_str() {
                "--seconds" => args.seconds = value()?.parse().context("--seconds is no number")?,
                "--seed" => args.seed = value()?.parse().context("--seed is no number")?,
                "--out" => args.out = value()?.into(),
                "--worker" => args.worker = true,
                "--seeds" => args.seeds = true,
                flag if flag.starts_with('-') => bail!("there is no {flag}"),
                name => args.targets.push(Target::named(name)?),
            }
        }
        if args.targets.is_empty() {
            args.targets = targets::TARGETS.iter().collect();
        }
        Ok(args)
    }
}

fn main() -> ExitCode {
    let done = Args::parse(std::env::args().skip(1)).and_then(|args| match args.worker {
        true => work(&args),
        false if args.seeds => seeds(&args),
        false => watch(&args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes what coverage-guided runs begin with.
fn seeds(args: &Args) -> Result<()> {
    for target in &args.targets {
        let out = args.out.join(target.name);
        std::fs::create_dir_all(&out)
            .with_context(|| format!("{} cannot be made", out.display()))?;
        std::fs::write(out.join("valid"), &Prepared::new(target)?.valid)?;
        println!("{}", target.name);
    }
    Ok(())
}

/// Starts the workers, one after the other, and keeps the inputs that end them.
fn watch(args: &Args) -> Result<()> {
    let mut findings = 0;
    for target in &args.targets {
        let out = args.out.join(target.name);
        std::fs::create_dir_all(&out)
            .with_context(|| format!("{} cannot be made", out.display()))?;
        let started = Instant::now();
        for death in 0..DEATHS {
            let left = args.seconds.saturating_sub(started.elapsed().as_secs());
            let status = Command::new(std::env::current_exe()?)
                .args(["--worker", target.name, "--seconds", &left.to_string(), "--seed"])
                .arg((args.seed + 1000 * death).to_string())
                .arg("--out")
                .arg(&args.out)
                .stdin(Stdio::null())
                .status()?;
            if status.success() {
                break;
            }
            let current = out.join(CURRENT);
            ensure!(current.exists(), "the worker of {} does not start", target.name);
            let input = std::fs::read(&current)?;
            keep(&out, "death", &input)?;
            println!("{}: an input ends the process ({status})", target.name);
        }
        let _ = std::fs::remove_file(out.join(CURRENT));
        findings += std::fs::read_dir(&out)?.count();
    }
    let shown = args.out.display();
    ensure!(findings == 0, "{findings} findings are in {shown}: mend what they break");
    Ok(())
}

/// The input that is being run.
const CURRENT: &str = "current";

fn keep(out: &Path, kind: &str, input: &[u8]) -> Result<PathBuf> {
    let mut hash = DefaultHasher::new();
    input.hash(&mut hash);
    let path = out.join(format!("{kind}-{:016x}", hash.finish()));
    std::fs::write(&path, input)?;
    Ok(path)
}

/// Where the last panic was.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// When the input that is being run began, milliseconds of the process and 1; 0 between inputs.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Runs mutations of one target's inputs for a time.
fn work(args: &Args) -> Result<()> {
    let [target] = args.targets[..] else { bail!("a worker has one target") };
    let out = args.out.join(target.name);
    let prepared = Prepared::new(target)?;
    let mut pool = vec![prepared.valid.clone()];
    for kind in ["corpus", "regressions"] {
        pool.extend(kept(kind, target.name)?.into_iter().map(|(_, input)| input));
    }
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, ToString::to_string);
        *PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = place;
    }));
    let started = Instant::now();
    std::thread::spawn(move || guard(started));
    let mut rng = SeededRng::seed_from_u64(args.seed);
    let (mut runs, mut accepted, mut seen) = (0u64, 0u64, HashSet::new());
    let mut slowest = Duration::ZERO;
    while started.elapsed().as_secs() < args.seconds {
        let input = mutate(&pool, &mut rng);
        std::fs::write(out.join(CURRENT), &input)?;
        let begun = Instant::now();
        BEGUN.store(started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| prepared.run(&input)));
        BEGUN.store(0, Ordering::Relaxed);
        slowest = slowest.max(begun.elapsed());
        runs += 1;
        match result {
            Ok(Ok(())) => {
                accepted += 1;
                if pool.len() < POOL && accepted.is_multiple_of(20) {
                    pool.push(input);
                }
            }
            Ok(Err(_)) => {}
            Err(_) => {
                let place = PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                if seen.insert(place.clone()) {
                    let path = keep(&out, "panic", &input)?;
                    println!("{}: panics at {place}: {}", target.name, path.display());
                }
            }
        }
    }
    let per_second = runs as f64 / started.elapsed().as_secs_f64().max(1e-3);
    println!(
        "{}: {runs} runs ({per_second:.0} a second), {accepted} accepted, slowest {slowest:.1?}, \
         {} panics",
        target.name,
        seen.len()
    );
    let _ = std::fs::remove_file(out.join(CURRENT));
    Ok(())
}

/// Ends the process where an input takes too long.
fn guard(started: Instant) {
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let begun = BEGUN.load(Ordering::Relaxed);
        let now = started.elapsed().as_millis() as u64;
        if begun > 0 && now.saturating_sub(begun) > TIME.as_millis() as u64 {
            eprintln!("an input takes more than {TIME:?}");
            std::process::abort();
        }
    }
}
