//! Matrix products of other libraries, for `cargo xtask bench --peers`; the protocol on stdin and
//! stdout is described in `kernels-bench/src/peers.rs`.
//!
//! Each library gets its best: the weights in each layout that it may prefer, warmed up and tuned
//! before anything is timed, and as many products between two waits as make a sample long enough.
#![allow(clippy::print_stdout, reason = "stdout is the protocol")]

mod burn;
mod cpu;

use std::any::Any;
use std::io::BufRead as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::json;

/// Least time of a sample, milliseconds: that of our own where there are no timestamps.
const SAMPLE_MS: f64 = 20.0;

/// Most products in a sample.
const PRODUCTS_MAX: u32 = 256;

/// Products before the first that is timed: libraries tune in the first ones.
const WARM_UP: u32 = 3;

/// `x [m, k]` and `w [n, k]`, row-major, and what `x · wᵀ [m, n]` is.
struct Operands {
    m: usize,
    n: usize,
    k: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
}

/// A library's way to multiply.
trait Way {
    /// The library.
    fn peer(&self) -> &'static str;

    /// Element type of the weights first, then how.
    fn what(&self) -> String;

    /// Starts `x · wᵀ`.
    fn multiply(&mut self) -> Result<()>;

    /// Waits for what was started.
    fn finish(&mut self) -> Result<()>;

    /// The last product, row-major.
    fn result(&mut self) -> Result<Vec<f32>>;
}

/// A way whose answer has been computed, with the number of products in a sample.
struct Ready {
    way: Box<dyn Way>,
    products: u32,
}

impl Operands {
    fn read([m, n, k]: [usize; 3], folder: &Path) -> Result<Self> {
        let read = |name: &str, len: usize| -> Result<Vec<f32>> {
            let path = folder.join(name);
            let bytes = std::fs::read(&path)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            ensure!(bytes.len() == 4 * len, "{}: not {len} floats", path.display());
            let word = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            Ok(bytes.chunks_exact(4).map(word).collect())
        };
        let (x, w, y) = (read("x.bin", m * k)?, read("w.bin", n * k)?, read("y.bin", m * n)?);
        Ok(Self { m, n, k, x, w, y })
    }

    /// `wᵀ [k, n]`, row-major.
    fn transposed(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.w.len()];
        for (row, values) in self.w.chunks_exact(self.k).enumerate() {
            for (col, value) in values.iter().enumerate() {
                out[col * self.n + row] = *value;
            }
        }
        out
    }

    /// Root mean square of the difference from `y`, over that of `y`.
    fn error(&self, got: &[f32]) -> Result<f64> {
        ensure!(got.len() == self.y.len(), "{} values, not {}", got.len(), self.y.len());
        let square = |value: f32| f64::from(value) * f64::from(value);
        let size: f64 = self.y.iter().map(|y| square(*y)).sum();
        let difference: f64 = self.y.iter().zip(got).map(|(y, got)| square(y - got)).sum();
        let error = (difference / size).sqrt();
        ensure!(error.is_finite(), "the answer has values that are not finite");
        Ok(error)
    }
}

impl Ready {
    /// Warms a way up.
    fn new(mut way: Box<dyn Way>) -> Result<Self> {
        for _ in 0..WARM_UP {
            way.multiply()?;
            way.finish()?;
        }
        let mut ready = Self { way, products: 1 };
        let once = ready.sample()?;
        ready.products = ((SAMPLE_MS / once.max(1e-6)).ceil() as u32).clamp(1, PRODUCTS_MAX);
        Ok(ready)
    }

    /// How far a product is from the right one.
    fn error(&mut self, operands: &Operands) -> Result<f64> {
        self.way.multiply()?;
        self.way.finish()?;
        operands.error(&self.way.result()?)
    }

    /// Milliseconds of a product.
    fn sample(&mut self) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..self.products {
            self.way.multiply()?;
        }
        self.way.finish()?;
        Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(self.products))
    }
}

/// Whether a panic is expected and answered for.
static GUARDED: AtomicBool = AtomicBool::new(false);

/// Runs what may panic inside a library, which is then one way less.
fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    GUARDED.store(true, Ordering::Relaxed);
    let caught = catch_unwind(AssertUnwindSafe(body));
    GUARDED.store(false, Ordering::Relaxed);
    caught.unwrap_or_else(|payload| Err(anyhow!(message(&*payload))))
}

/// Keeps quiet about panics in [`guarded`]: burn tries kernels that an adapter cannot run, each a
/// panic in a thread of its own that it catches.
fn quiet_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !GUARDED.load(Ordering::Relaxed) {
            usual(info);
        }
    }));
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("(no message)"))
}

/// Prepares every way that is not skipped for new operands, and answers for each.
fn load(line: &str, adapter: &burn::Adapter, skipped: &[String]) -> Result<Vec<Ready>> {
    let mut words = line.splitn(4, ' ');
    let mut size = || -> Result<usize> {
        let word = words.next().context("`load M N K FOLDER` is wanted")?;
        word.parse().with_context(|| format!("`{word}` is not a size"))
    };
    let sizes = [size()?, size()?, size()?];
    let folder = words.next().context("`load M N K FOLDER` is wanted")?;
    let operands = Operands::read(sizes, Path::new(folder))?;
    let failed = |peer: &str, what: &str, failure: anyhow::Error| {
        let failed = format!("{failure:#}").replace('\n', " ");
        println!("{}", json!({ "peer": peer, "what": what, "failed": failed }));
    };
    let mut ready = Vec::new();
    let makers = cpu::makers().into_iter().chain(burn::makers(adapter, operands.m));
    for (peer, what, make) in makers {
        if skipped.contains(&format!("{peer} {what}")) {
            continue;
        }
        match guarded(|| Ready::new(make(&operands)?)) {
            Ok(one) => ready.push(one),
            Err(failure) => failed(peer, &what, failure),
        }
    }
    // Only now: what failed last may have broken what was right before.
    ready.retain_mut(|one| {
        let (peer, what) = (one.way.peer(), one.way.what());
        match guarded(|| one.error(&operands)) {
            Ok(error) => println!("{}", json!({ "peer": peer, "what": what, "error": error })),
            Err(failure) => {
                failed(peer, &what, failure);
                return false;
            }
        }
        true
    });
    Ok(ready)
}

/// Makes a way from operands.
type Make = Box<dyn Fn(&Operands) -> Result<Box<dyn Way>>>;

/// A library, what the way is called, and how it is made.
type Maker = (&'static str, String, Make);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, name] = arguments.as_slice() else {
        bail!("KIND and NAME of an adapter are wanted: `cargo xtask bench --peers` gives them");
    };
    quiet_panics();
    let adapter = burn::Adapter::open(kind, name);
    let mut ready: Vec<Ready> = Vec::new();
    let mut skipped: Vec<String> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "round" {
            for one in &mut ready {
                let ms = one.sample()?;
                let (peer, what) = (one.way.peer(), one.way.what());
                println!("{}", json!({ "peer": peer, "what": what, "ms": ms }));
            }
        } else if let Some(rest) = line.strip_prefix("load ") {
            ready.clear();
            ready = load(rest, &adapter, &skipped)?;
        } else if let Some(name) = line.strip_prefix("skip ") {
            skipped.push(name.into());
        } else {
            bail!("`{line}`: `skip NAME`, `load M N K FOLDER` and `round` are all there is");
        }
        println!("{}", json!({ "done": true }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 x 8 times the transpose of 5 x 8, with the product from plain loops.
    fn operands() -> Operands {
        let (m, n, k) = (3, 5, 64);
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        let x: Vec<f32> = (0..m * k).map(value).collect();
        let w: Vec<f32> = (0..n * k).map(|i| value(i + 7)).collect();
        let dot = |i: usize, j: usize| (0..k).map(|c| x[i * k + c] * w[j * k + c]).sum::<f32>();
        let y = (0..m * n).map(|at| dot(at / n, at % n)).collect();
        Operands { m, n, k, x, w, y }
    }

    #[test]
    fn every_way_on_the_cpu_is_right() {
        let operands = operands();
        for (peer, what, make) in cpu::makers() {
            let way = make(&operands).unwrap_or_else(|error| panic!("{peer} {what}: {error:#}"));
            assert_eq!((way.peer(), way.what()), (peer, what.clone()));
            let mut ready = Ready::new(way).expect("runs");
            let error = ready.error(&operands).expect("runs");
            let most = if what.starts_with("f32") { 1e-5 } else { 0.15 };
            assert!(error < most, "{peer} {what}: {error}");
            assert!(ready.sample().expect("runs") > 0.0);
        }
    }

    #[test]
    fn a_wrong_answer_has_an_error() {
        let operands = operands();
        let mut wrong = operands.y.clone();
        assert_eq!(operands.error(&wrong).expect("finite"), 0.0);
        wrong.reverse();
        assert!(operands.error(&wrong).expect("finite") > 0.1);
        assert!(operands.error(&wrong[1..]).is_err());
        wrong[0] = f32::NAN;
        assert!(operands.error(&wrong).is_err());
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = guarded::<()>(|| panic!("no kernel {}", 1)).expect_err("panicked");
        assert_eq!(error.to_string(), "panicked: no kernel 1");
    }
}
