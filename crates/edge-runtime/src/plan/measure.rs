//! Measures a device: its kernels at sizes of no model in particular, steps of small models to see
//! what dispatches take together, and how fast files come into its memory.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use edge_gpu::{Device, Error, Listed, Ticket, Trial};
use edge_kernels::ops::matmul::matmul_nt;
use edge_kernels::ops::memory::fill;
use edge_kernels::{Call, Category, Format};
use edge_scheduler::search::Turns;
use edge_scheduler::{BlockFormats, Job, Optimizer, Projection, Trained, Window};
use serde_json::json;

use super::facts::{Facts, Sample};
use super::price::{cost, sample};
use crate::config::ModelConfig;
use crate::model::Model;
use crate::readahead::forget;
use crate::tune::event::{Events, Work};
use crate::tune::trainer::{AdamW, Trainer};

/// A made-up model: width, width of the MLP, heads, key-value heads, vocabulary; rank; sequences
/// and tokens of a pass. None is the shape of a known model.
struct Shape {
    sizes: [u32; 5],
    rank: u32,
    batch: u32,
    seq_len: u32,
}

const SHAPES: [Shape; 4] = [
    Shape { sizes: [128, 352, 4, 2, 1536], rank: 12, batch: 3, seq_len: 80 },
    Shape { sizes: [320, 896, 5, 1, 5120], rank: 48, batch: 1, seq_len: 320 },
    Shape { sizes: [640, 1728, 10, 2, 6144], rank: 8, batch: 1, seq_len: 96 },
    Shape { sizes: [1536, 4096, 24, 4, 12288], rank: 8, batch: 2, seq_len: 80 },
];

/// A shape that fills a device of which the others use a part.
const LARGE: Shape = Shape { sizes: [2304, 6144, 18, 6, 16_384], rank: 24, batch: 2, seq_len: 512 };

/// A device is measured at [`LARGE`], too, where products at the other shapes reached so much,
/// flop/s: others take too long for it, and the other shapes fill them.
const LARGE_ABOVE: f64 = 1e12;

/// A shape whose kernels take no longer than starting them.
const SMALL: Shape = Shape { sizes: [64, 128, 2, 1, 256], rank: 4, batch: 1, seq_len: 16 };

/// Blocks of it below the window and in it.
const SMALL_BLOCKS: [usize; 2] = [1, 6];

/// The shapes whose steps are measured as a whole; the last is too large for that.
const STEPS: std::ops::Range<usize> = 0..3;

/// A step whose kernels take so many times what the host takes for them does not wait for it.
const HOST_WAITS: f64 = 1.5;

/// Steps of a measurement, of which the median counts.
const STEP_SAMPLES: usize = 7;

/// Sizes of the loads that are measured, words.
const LOAD_WORDS: [u64; 2] = [64 << 10, 2 << 20];

/// Pieces of 1 MiB that are read from the disk.
const COLD_PIECES: u64 = 64;

impl Shape {
    fn config(&self, blocks: usize) -> Result<ModelConfig> {
        let [hidden, inner, heads, kv_heads, vocab] = self.sizes;
        let keys = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "max_position_embeddings": 1024,
            "rope_theta": 10000.0, "hidden_act": "silu"
        });
        ModelConfig::from_value(&keys, std::path::Path::new("a made-up model"))
    }

    /// A run with a block in each format below the window that is trained and in it.
    fn job(&self, formats: &[Format], table: Format) -> Job {
        let each = || formats.iter().map(|format| BlockFormats::uniform(*format));
        let blocks: Vec<BlockFormats> = each().chain(each()).collect();
        let (below, all) = (formats.len() as u32, blocks.len() as u32);
        let eight = self.rank > 8;
        Job {
            trained: Trained::Lora { rank: self.rank, targets: Projection::ALL.to_vec() },
            optimizer: if eight { Optimizer::AdamW8bit } else { Optimizer::AdamW },
            windows: vec![Window { first: 0, end: below }, Window { first: below, end: all }],
            exit_norms: true,
            training: true,
            eval_batch: 1,
            ..Job::new(blocks, [table; 2], self.batch, self.seq_len)
        }
    }
}

const TOP: Turns = Turns { window: 1, share: 1.0, cached: false };

/// Measures what is missing for runs with weights in these formats and tables in `table`, and adds
/// it to the facts.
///
/// # Errors
/// The device fails; or the listener stops it.
pub fn measure(
    device: &Device,
    facts: &mut Facts,
    formats: &[Format],
    tables: &[Format],
    events: &mut Events<'_>,
) -> Result<()> {
    if facts.samples.is_empty() {
        facts.floor_s = floor(device)?;
    }
    kernels(device, facts, &calls(device, &SHAPES, formats, tables)?, events)?;
    if facts.samples.iter().any(|sample| sample.flops / sample.seconds > LARGE_ABOVE) {
        kernels(device, facts, &calls(device, &[LARGE], formats, tables)?, events)?;
    }
    facts.add_formats(formats, tables);
    transfers(device, facts)?;
    let steps = SMALL_BLOCKS.len() + SHAPES[STEPS].len();
    let mut work = events.work("measure steps", steps as u64);
    let small_s = host(device, facts, (formats[0], tables[0]), &mut work)?;
    together(device, facts, (formats, tables[0]), small_s, &mut work)
}

/// Measures those of some calls that were not measured before.
fn kernels(
    device: &Device,
    facts: &mut Facts,
    calls: &[Listed],
    events: &mut Events<'_>,
) -> Result<()> {
    let have: HashSet<(String, String, String)> = facts.samples.iter().map(key).collect();
    let mut work = events.work("measure kernels", calls.len() as u64);
    for call in calls {
        work.check()?;
        let cost = cost(call);
        let mut found = Sample {
            op: cost.kind.0,
            format: cost.kind.1,
            sizes: cost.sizes,
            flops: cost.flops,
            bytes: cost.bytes,
            seconds: 0.0,
        };
        if !have.contains(&key(&found)) {
            found.seconds = seconds(device, call)?;
            facts.samples.push(found);
        }
        work.step();
    }
    Ok(())
}

fn key(sample: &Sample) -> (String, String, String) {
    let numbers = format!("{:?} {} {}", sample.sizes, sample.flops, sample.bytes);
    (sample.op.clone(), sample.format.clone(), numbers)
}

/// All different dispatches of steps of some made-up models, with activations kept and not.
fn calls(
    device: &Device,
    shapes: &[Shape],
    formats: &[Format],
    tables: &[Format],
) -> Result<Vec<Listed>> {
    let dry = device.dry();
    let (mut seen, mut calls) = (HashSet::new(), Vec::new());
    for shape in shapes {
        for &table in tables {
            // Isolated windows have a trunk without adapters, whose products are others.
            for (recompute, eight) in [(false, false), (true, true)] {
                let mut job = shape.job(formats, table);
                job.recompute = recompute;
                (job.isolated, job.phases) = (eight, eight);
                job.optimizer = if eight { Optimizer::AdamW8bit } else { Optimizer::AdamW };
                let config = shape.config(job.blocks.len())?;
                let model = Model::hollow(&dry, &config, &job)?;
                let mut trainer = Trainer::new(model, AdamW::default());
                for (_, listed) in trainer.list(TOP.window, &sample(&job, 1.0), false)? {
                    for call in listed {
                        let cost = cost(&call);
                        let numbers = format!("{:?} {} {}", cost.sizes, cost.flops, cost.bytes);
                        if seen.insert((cost.kind, numbers)) {
                            calls.push(call);
                        }
                    }
                }
            }
        }
    }
    Ok(calls)
}

/// Seconds of a dispatch on its own.
fn seconds(device: &Device, &(op, call): &Listed) -> Result<f64> {
    let trial = Trial::new(device, op, call)?;
    // The first run compiles the kernel.
    trial.time_ms(None, 1)?;
    let count = trial.dispatches(None)?;
    let mut times = [trial.time_ms(None, count)?, trial.time_ms(None, count)?];
    times.sort_by(f64::total_cmp);
    Ok(1e-3 * times[0])
}

/// What starting a dispatch costs.
fn floor(device: &Device) -> Result<f64> {
    let call = Call::new(&fill::Params { count: 64, value_bits: 0 });
    let trial = Trial::new(device, &fill::Fill, call)?;
    trial.time_ms(None, 1)?;
    let mut times = [0.0; 5];
    for time in &mut times {
        *time = trial.time_ms(None, 256)?;
    }
    times.sort_by(f64::total_cmp);
    Ok(1e-3 * times[2])
}

/// The median of the times of some steps that train the top window of a made-up model.
fn step_s(device: &Device, shape: &Shape, job: &Job) -> Result<f64> {
    let config = shape.config(job.blocks.len())?;
    let mut trainer = Trainer::new(Model::hollow(device, &config, job)?, AdamW::default());
    let batch = [sample(job, 1.0)];
    trainer.step(TOP.window, &batch, 1e-6)?;
    let mut taken = Vec::new();
    for _ in 0..STEP_SAMPLES {
        let started = Instant::now();
        trainer.step(TOP.window, &batch, 1e-6)?;
        taken.push(started.elapsed().as_secs_f64());
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken[STEP_SAMPLES / 2])
}

/// The dispatches of such a step, by task.
fn listed(device: &Device, shape: &Shape, job: &Job) -> Result<Vec<Vec<Listed>>> {
    let config = shape.config(job.blocks.len())?;
    let mut trainer = Trainer::new(Model::hollow(&device.dry(), &config, job)?, AdamW::default());
    let tasks = trainer.list(TOP.window, &sample(job, 1.0), false)?;
    Ok(tasks.into_iter().map(|(_, calls)| calls).collect())
}

/// Measures what the host takes for a dispatch, by what steps of more blocks take longer where
/// kernels take next to nothing. Returns what such a step takes beside its dispatches.
fn host(
    device: &Device,
    facts: &mut Facts,
    (format, table): (Format, Format),
    work: &mut Work<'_, '_>,
) -> Result<f64> {
    let mut points = Vec::new();
    for blocks in SMALL_BLOCKS {
        work.check()?;
        let job = SMALL.job(&vec![format; blocks], table);
        let dispatches: usize = listed(device, &SMALL, &job)?.iter().map(Vec::len).sum();
        points.push((dispatches as f64, step_s(device, &SMALL, &job)?));
        work.step();
    }
    let [(fewer, short), (more, long)] = [points[0], points[1]];
    facts.host_s = ((long - short) / (more - fewer)).max(0.0);
    Ok((short - fewer * facts.host_s).max(0.0))
}

/// Measures whole steps and fits what dispatches take together: `scale` times their sum, and
/// `between_s`. Steps that wait for the host say nothing of that; where all do, `between_s` is
/// that of small steps, `small_s`.
fn together(
    device: &Device,
    facts: &mut Facts,
    (formats, table): (&[Format], Format),
    small_s: f64,
    work: &mut Work<'_, '_>,
) -> Result<()> {
    (facts.scale, facts.between_s) = (1.0, small_s);
    let speed = facts.speed();
    let mut points = Vec::new();
    for shape in &SHAPES[STEPS] {
        work.check()?;
        let job = shape.job(formats, table);
        let tasks = listed(device, shape, &job)?;
        let count: usize = tasks.iter().map(Vec::len).sum();
        let alone = |call: &Listed| speed.seconds(&cost(call));
        let device_s: f64 = tasks.iter().flatten().map(alone).sum();
        if device_s > HOST_WAITS * facts.host_s * count as f64 {
            points.push((device_s, step_s(device, shape, &job)?));
        }
        work.step();
    }
    if !points.is_empty() {
        (facts.scale, facts.between_s) = fit(&points);
    }
    Ok(())
}

/// `y = a x + b` by least squares of relative errors, with `b` at least 0.
fn fit(points: &[(f64, f64)]) -> (f64, f64) {
    let [mut ww, mut wx, mut wxx, mut wy, mut wxy] = [0.0; 5];
    for &(x, y) in points {
        let weight = 1.0 / (y * y);
        ww += weight;
        wx += weight * x;
        wxx += weight * x * x;
        wy += weight * y;
        wxy += weight * x * y;
    }
    let determinant = ww * wxx - wx * wx;
    // One point, or points of about the same length, say nothing of `b`.
    let apart = determinant > 1e-2 * ww * wxx;
    let b = if apart { ((wxx * wy - wx * wxy) / determinant).max(0.0) } else { 0.0 };
    let a = (wxy - b * wx) / wxx;
    if a > 0.0 { (a, b) } else { (wxy / wxx, 0.0) }
}

/// Measures how fast files come into slots, and what that does to dispatches meanwhile.
fn transfers(device: &Device, facts: &mut Facts) -> Result<()> {
    let mut file = tempfile::tempfile().context("no temporary file to measure transfers with")?;
    let bytes = vec![0x5a_u8; 4 * LOAD_WORDS[1] as usize];
    file.write_all(&bytes).context("no room for 8 MiB of a temporary file")?;
    drop(bytes);
    let mut load = |slot: &edge_gpu::UploadSlot, words: u64| -> Result<f64> {
        let started = Instant::now();
        slot.fill(&Ticket::default(), |target| {
            let target = &mut bytemuck::cast_slice_mut::<u32, u8>(target)[..4 * words as usize];
            let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(target));
            read.map_err(|error| Error::Weights { message: error.to_string() })
        })?;
        Ok(started.elapsed().as_secs_f64())
    };
    let mut points = Vec::new();
    for words in LOAD_WORDS {
        let slot = device.upload_slot("measured slot", words, Category::Weights)?;
        load(&slot, words)?;
        let mut taken = Vec::new();
        for _ in 0..9 {
            taken.push(load(&slot, words)?);
        }
        taken.sort_by(f64::total_cmp);
        points.push((4.0 * words as f64, taken[4]));
        if slot.commit()?.is_some() && words == LOAD_WORDS[1] {
            facts.transfer_bytes_per_s = Some(staged(device, &slot)?);
        }
    }
    let per_byte = (points[1].1 - points[0].1) / (points[1].0 - points[0].0);
    facts.copy_bytes_per_s = 1.0 / per_byte.max(1e-12);
    facts.load_s = (points[0].1 - per_byte * points[0].0).max(0.0);
    facts.interference = interference(device, &mut load, points[1].1)?;
    facts.cold_bytes_per_s = cold();
    Ok(())
}

/// Bytes a second of a file that is not in the system's cache; `None` where that cannot be
/// measured, which is no reason to fail.
fn cold() -> Option<f64> {
    let dir = dirs::cache_dir()?;
    std::fs::create_dir_all(&dir).ok()?;
    let mut file = tempfile::tempfile_in(dir).ok()?;
    let mut piece = vec![0x5a_u8; 1 << 20];
    for _ in 0..COLD_PIECES {
        file.write_all(&piece).ok()?;
    }
    file.sync_all().ok()?;
    let bytes = COLD_PIECES * piece.len() as u64;
    if !forget(&file, bytes) {
        return None;
    }
    let started = Instant::now();
    file.seek(SeekFrom::Start(0)).ok()?;
    for _ in 0..COLD_PIECES {
        file.read_exact(&mut piece).ok()?;
    }
    Some(bytes as f64 / started.elapsed().as_secs_f64())
}

/// Bytes a second from staging memory into a slot.
fn staged(device: &Device, slot: &edge_gpu::UploadSlot) -> Result<f64> {
    device.wait()?;
    let started = Instant::now();
    for _ in 0..8 {
        slot.commit()?;
    }
    device.wait()?;
    Ok(8.0 * slot.buffer().bytes() as f64 / started.elapsed().as_secs_f64())
}

/// What a second of copying on its own adds to products that run meanwhile, whose weights are as
/// large as a block's: where the driver computes on the host's cores, more than a second.
fn interference(
    device: &Device,
    load: &mut (impl FnMut(&edge_gpu::UploadSlot, u64) -> Result<f64> + Send),
    copy_s: f64,
) -> Result<f64> {
    let call = Call::with_format(&matmul_nt::Params::dense(64, 1536, 1536), Format::Bf16);
    let trial = Trial::new(device, &matmul_nt::MatmulNt, call)?;
    trial.time_ms(None, 1)?;
    let count = 8 * trial.dispatches(None)?;
    let run = || -> Result<f64> { Ok(1e-3 * f64::from(count) * trial.time_ms(None, count)?) };
    let slot = device.upload_slot("measured slot", LOAD_WORDS[1], Category::Weights)?;
    let mut found = Vec::new();
    for _ in 0..3 {
        let alone = run()?;
        let stop = AtomicBool::new(false);
        let (beside, copies) = std::thread::scope(|scope| {
            let copier = scope.spawn(|| -> Result<u32> {
                let mut copies = 0;
                while !stop.load(Ordering::Relaxed) {
                    load(&slot, LOAD_WORDS[1])?;
                    copies += 1;
                }
                Ok(copies)
            });
            let beside = run();
            stop.store(true, Ordering::Relaxed);
            let copies = copier.join().unwrap_or(Ok(0));
            (beside, copies)
        });
        found.push((beside? - alone) / (f64::from(copies?.max(1)) * copy_s));
    }
    found.sort_by(f64::total_cmp);
    Ok(found[1].clamp(0.0, 4.0))
}

/// The formats of a run's blocks and tables.
pub fn formats_of(job: &Job) -> [Vec<Format>; 2] {
    let distinct = |formats: &mut dyn Iterator<Item = Format>| {
        let mut found = Vec::new();
        for format in formats {
            if !found.contains(&format) {
                found.push(format);
            }
        }
        found
    };
    let tables = [job.embedding, job.head];
    [distinct(&mut job.blocks.iter().flat_map(|block| block.0)), distinct(&mut tables.into_iter())]
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn a_line_is_found_again() {
        let points = [0.1, 0.4, 2.0].map(|x| (x, 1.2 * x + 0.01));
        let (a, b) = fit(&points);
        assert!((a - 1.2).abs() < 1e-9 && (b - 0.01).abs() < 1e-9, "{a} {b}");
        let (a, b) = fit(&[0.1, 0.4].map(|x| (x, 1.1 * x - 0.01)));
        assert!(b == 0.0 && a > 0.9 && a < 1.1, "{a} {b}");
        // Too few to say what a step has beside its dispatches, and slopes that are none.
        for x in [0.1, 0.1 + 0.2, 1e-3 / 3.0] {
            let (a, b) = fit(&[(x, 2.0 * x)]);
            assert!((a - 2.0).abs() < 1e-9 && b == 0.0, "{a} {b}");
        }
        let (a, b) = fit(&[(4.0e-3, 9.0e-3), (4.2e-3, 8.9e-3)]);
        assert!((a - 2.18).abs() < 0.02 && b == 0.0, "{a} {b}");
        let (a, b) = fit(&[(1e-3, 9.0e-3), (4e-3, 8.0e-3)]);
        assert!(a > 0.0 && b == 0.0, "{a} {b}");
    }
}
