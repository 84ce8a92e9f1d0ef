//! An op's shaders against its reference.
//!
//! The data of each binding lies between two guard zones inside one larger buffer. The zones hold
//! NaN of a known pattern: what writes outside its data is found by comparing them, what reads
//! outside it usually by what NaN does to a result. The zone behind the data is part of the
//! binding, since drivers drop stores behind the end of a binding and read zeros there, which
//! would hide the mistake. Outputs start as NaN, so that what is not written is found too.

use std::collections::HashSet;

use edge_gpu::{Buffer, Device, Slice};
use edge_kernels::check::compare_roughly;
use edge_kernels::op::{Access, Binding, Case, CaseBuffer, HostBuffer, Variant};
use edge_kernels::util::SeededRng;
use edge_kernels::{Category, Dispatch, Op};
use rand::SeedableRng;

use crate::compare;

/// Least words of a guard zone.
const GUARD_WORDS: u64 = 64;

/// Runs of each variant, which must give the same bits.
const RUNS: usize = 3;

/// What a run over cases found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Variants of cases that ran.
    pub ran: usize,
    /// What was wrong, each with op, case, variant and seed.
    pub failures: Vec<String>,
}

/// How much of the product of cases and variants is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every variant of every case.
    All,
    /// Each variant of an op by name, and each weight format, at least once: for a way of running
    /// that does not depend on sizes. Most of the time goes into compiling shaders.
    EachOnce,
}

/// Runs the cases of an op that `select` takes, with each variant that the device supports.
pub fn check_op(
    device: &Device,
    op: &'static dyn Op,
    select: impl Fn(&Case) -> bool,
    extent: Extent,
    outcome: &mut Outcome,
) {
    let (mut names, mut formats) = (HashSet::new(), HashSet::new());
    for case in op.cases().iter().filter(|case| select(case)) {
        // From the names alone, so that a failure is repeated by running the test again.
        let seed = seed(&[op.name(), &case.name]);
        let mut subject = match Subject::new(device, op, case, seed) {
            Ok(subject) => subject,
            Err(error) => {
                let place = format!("{} case {} seed {seed}", op.name(), case.name);
                outcome.failures.push(format!("{place}: {error}"));
                continue;
            }
        };
        for variant in op.variants(&case.call) {
            if !device.supports(&variant.needs) {
                continue;
            }
            // Both sets take it, so both are asked.
            let fresh = names.insert(variant.name) | formats.insert(case.call.format.name());
            if extent == Extent::EachOnce && !fresh {
                continue;
            }
            outcome.ran += 1;
            for problem in subject.check(&variant) {
                outcome.failures.push(format!(
                    "{} case {} variant {} seed {seed}: {problem}",
                    op.name(),
                    case.name,
                    variant.name
                ));
            }
        }
    }
}

/// FNV-1a.
fn seed(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The word at `index` of a guard zone: NaN, and different from its neighbours.
fn guard_word(index: usize) -> u32 {
    0x7fc0_0000 | (index as u32 & 0xffff) | 0x1_0000
}

/// A case with its buffers on a device, and what the reference makes of them.
struct Subject<'a> {
    device: &'a Device,
    op: &'static dyn Op,
    case: &'a Case,
    bindings: Vec<Binding>,
    inputs: Vec<CaseBuffer>,
    want: Vec<Vec<u32>>,
    guard: usize,
    buffers: Vec<Buffer>,
}

impl<'a> Subject<'a> {
    fn new(
        device: &'a Device,
        op: &'static dyn Op,
        case: &'a Case,
        seed: u64,
    ) -> Result<Self, String> {
        let bindings = op.bindings(&case.call);
        let inputs = op.buffers(&case.call, &mut SeededRng::seed_from_u64(seed));
        if inputs.len() != bindings.len() {
            return Err(format!("{} buffers, {} bindings", inputs.len(), bindings.len()));
        }
        let mut want: Vec<Vec<u32>> = inputs.iter().map(CaseBuffer::words).collect();
        let mut host: Vec<HostBuffer<'_>> = want
            .iter_mut()
            .zip(&bindings)
            .map(|(words, binding)| match binding.access {
                Access::Read => HostBuffer::Read(words),
                Access::ReadWrite => HostBuffer::ReadWrite(words),
            })
            .collect();
        op.reference(&case.call, &mut host);
        drop(host);
        let guard = GUARD_WORDS.next_multiple_of(device.info().alignment_words);
        let buffers: Result<Vec<Buffer>, edge_gpu::Error> = bindings
            .iter()
            .zip(&want)
            .map(|(binding, words)| {
                let total = words.len() as u64 + 2 * guard;
                device.buffer(binding.name, total, Category::Activations)
            })
            .collect();
        let buffers = buffers.map_err(|error| error.to_string())?;
        Ok(Self { device, op, case, bindings, inputs, want, guard: guard as usize, buffers })
    }

    fn slices(&self) -> Vec<Slice> {
        let guard = self.guard as u64;
        self.buffers.iter().map(|buffer| buffer.slice(guard, buffer.words() - guard)).collect()
    }

    /// Writes inputs and guard zones, runs, and reads everything back.
    fn run(&self, variant: &Variant) -> Result<Vec<Vec<u32>>, edge_gpu::Error> {
        for (buffer, input) in self.buffers.iter().zip(&self.inputs) {
            let zone = (0..self.guard).map(guard_word);
            let words: Vec<u32> = zone.clone().chain(input.words()).chain(zone).collect();
            self.device.write(&buffer.whole(), &words)?;
        }
        let mut recorder = self.device.recorder();
        let dispatch = Dispatch::new(self.op, self.case.call, self.slices());
        recorder.push_variant(dispatch, variant);
        recorder.submit()?;
        self.buffers.iter().map(|buffer| self.device.read(&buffer.whole())).collect()
    }

    fn check(&mut self, variant: &Variant) -> Vec<String> {
        let mut problems = Vec::new();
        let mut first: Option<Vec<Vec<u32>>> = None;
        for run in 0..RUNS {
            let got = match self.run(variant) {
                Ok(got) => got,
                Err(error) => {
                    problems.push(error.to_string());
                    break;
                }
            };
            match &first {
                None => {
                    self.check_run(variant, &got, &mut problems);
                    first = Some(got);
                }
                Some(first) => self.check_repeat(run, first, &got, &mut problems),
            }
        }
        problems
    }

    fn check_run(&self, variant: &Variant, got: &[Vec<u32>], problems: &mut Vec<String>) {
        for (index, binding) in self.bindings.iter().enumerate() {
            let (name, guard) = (binding.name, self.guard);
            let (before, rest) = got[index].split_at(guard);
            let (words, after) = rest.split_at(rest.len() - guard);
            for (zone, place) in [(before, "before"), (after, "after")] {
                let changed = (0..guard).filter(|&i| zone[i] != guard_word(i));
                let changed: Vec<usize> = changed.collect();
                if let Some(at) = changed.first() {
                    problems.push(format!(
                        "`{name}`: {} words of the guard zone {place} it changed, the first at \
                         {at}",
                        changed.len()
                    ));
                }
            }
            let want = &self.want[index];
            let result = match (binding.access, &self.inputs[index]) {
                (Access::Read, _) if words == want => Ok(()),
                (Access::Read, _) => Err("a read-only binding changed".into()),
                (_, CaseBuffer::U32(_)) => compare_words(words, want),
                _ if variant.approximate => compare_roughly(name, want, words),
                _ => compare(
                    bytemuck::cast_slice(words),
                    bytemuck::cast_slice(want),
                    self.op.tolerance(&self.case.call),
                ),
            };
            if let Err(message) = result {
                problems.push(format!("`{name}`: {message}"));
            }
        }
    }

    fn check_repeat(
        &self,
        run: usize,
        first: &[Vec<u32>],
        got: &[Vec<u32>],
        problems: &mut Vec<String>,
    ) {
        for (index, binding) in self.bindings.iter().enumerate() {
            if let Err(message) = compare_words(&got[index], &first[index]) {
                problems.push(format!("`{}`, run {} and run 1: {message}", binding.name, run + 1));
            }
        }
    }
}

fn compare_words(got: &[u32], want: &[u32]) -> Result<(), String> {
    let differences: Vec<usize> = (0..want.len()).filter(|&i| got[i] != want[i]).collect();
    match differences.first() {
        None => Ok(()),
        Some(&at) => Err(format!(
            "{} of {} words differ: [{at}] got {:#x} want {:#x}",
            differences.len(),
            want.len(),
            got[at],
            want[at]
        )),
    }
}
