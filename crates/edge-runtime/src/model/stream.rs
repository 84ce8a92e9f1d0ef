//! Weights of blocks that are not kept on the device: a loader thread reads them from the file
//! into transfer slots while the device computes.
//!
//! Whoever records a block's dispatches acquires it first (`Model::acquire`). The order of blocks
//! is said beforehand (`Model::expect_blocks`); when a block begins whose predecessor's slot is
//! needed by a later one, the loader is sent for that. Any other order works as well, without
//! overlap. The simulator (`edge_scheduler::simulate`) moves by the same rules.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use edge_gpu::{Device, Error, Recorder, Ticket, UploadSlot};
use edge_scheduler::simulate::{Span, Track};
use serde::Serialize;

use super::Model;
use crate::readahead::will_need;
use crate::weight_file::WeightFile;

/// Where some words of a slot are in a file.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// The file.
    pub(crate) file: Arc<WeightFile>,
    /// First byte there.
    pub(crate) byte: u64,
    /// First word in the slot.
    pub(crate) word: u64,
    /// Bytes; a last word that is not full is filled up with zeros.
    pub(crate) bytes: u64,
}

/// What streaming did since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StreamReport {
    /// Blocks that were loaded.
    pub loads: u64,
    /// Their bytes.
    pub load_bytes: u64,
    /// Milliseconds that the loader read and copied.
    pub load_ms: f64,
    /// Milliseconds that the device had to wait for weights: from when recording needs a block, or
    /// its slot is free if that is later, until the block is there.
    pub wait_ms: f64,
}

struct Load {
    block: u32,
    slot: usize,
    serial: u64,
    after: Ticket,
}

struct Done {
    slot: usize,
    block: u32,
    serial: u64,
    result: Result<()>,
    bytes: u64,
    start: Instant,
    end: Instant,
}

/// The slots and what is in them.
pub(super) struct Streamer {
    device: Device,
    slot_of: Vec<Option<usize>>,
    slots: Arc<Vec<UploadSlot>>,
    /// Whether blocks are loaded ahead of their turn.
    ahead: bool,
    state: Mutex<State>,
}

struct State {
    /// `None` once the streamer is being dropped.
    loads: Option<Sender<Load>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    /// What each slot holds or is about to hold.
    holds: Vec<Option<u32>>,
    /// Number of each slot's last load: what earlier ones bring is overwritten.
    serials: Vec<u64>,
    ready: Vec<bool>,
    /// Whether the device has copied it from staging memory.
    committed: Vec<bool>,
    /// The order of streamed blocks; repeated.
    uses: Vec<u32>,
    at: Option<usize>,
    last: Option<u32>,
    report: StreamReport,
    started: Instant,
    spans: Option<Vec<Span>>,
    failed: Option<Error>,
}

impl Streamer {
    /// Starts a loader thread for these slots; `pieces` says what each streamed block is made of.
    pub(super) fn new(
        device: &Device,
        slot_of: Vec<Option<usize>>,
        slots: Vec<UploadSlot>,
        pieces: Vec<Vec<Piece>>,
        ahead: bool,
    ) -> Result<Self> {
        let count = slots.len();
        let slots = Arc::new(slots);
        let (loads, orders) = mpsc::channel::<Load>();
        let (sender, done) = mpsc::channel();
        let shared = Arc::clone(&slots);
        let work = move || {
            // Ends when the streamer drops its end.
            while let Ok(load) = orders.recv() {
                let pieces = &pieces[load.block as usize];
                // While the slot is still in use, the disk may be read already.
                for piece in pieces {
                    will_need(piece.file.file(), piece.byte, piece.bytes);
                }
                let mut start = Instant::now();
                let result = shared[load.slot].fill(&load.after, |words| {
                    start = Instant::now();
                    read_pieces(pieces, words).map_err(Failure)
                });
                let bytes = pieces.iter().map(|piece| piece.bytes).sum();
                let (Load { slot, block, serial, .. }, end) = (load, Instant::now());
                let result = result.map_err(Failure::into_inner);
                let done = Done { slot, block, serial, result, bytes, start, end };
                if sender.send(done).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("loader".into())
            .spawn(work)
            .context("the system starts no further thread for loading weights: try again")?;
        let state = State {
            loads: Some(loads),
            done,
            thread: Some(thread),
            holds: vec![None; count],
            serials: vec![0; count],
            ready: vec![false; count],
            committed: vec![false; count],
            uses: Vec::new(),
            at: None,
            last: None,
            report: StreamReport::default(),
            started: Instant::now(),
            spans: None,
            failed: None,
        };
        Ok(Self { device: device.clone(), slot_of, slots, ahead, state: Mutex::new(state) })
    }

    fn slot(&self, block: u32) -> Option<usize> {
        self.slot_of.get(block as usize).copied().flatten()
    }

    fn with<T>(&self, body: impl FnOnce(&mut State) -> T) -> T {
        body(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn expect(&self, blocks: &[u32]) {
        if !self.ahead {
            return;
        }
        let mut uses = blocks.to_vec();
        uses.dedup();
        uses.retain(|&block| self.slot(block).is_some());
        self.with(|state| {
            state.uses = uses;
            (state.at, state.last) = (None, None);
            let mut filled = vec![false; self.slots.len()];
            for at in 0..state.uses.len() {
                let block = state.uses[at];
                let Some(slot) = self.slot(block).filter(|&slot| !filled[slot]) else { continue };
                filled[slot] = true;
                self.send(state, block, slot);
            }
        });
    }

    /// Sends the loader for a block, unless the slot has it or will have it. Everything that uses
    /// the slot's present block must be submitted.
    fn send(&self, state: &mut State, block: u32, slot: usize) {
        if state.holds[slot] == Some(block) {
            return;
        }
        // Loads of a slot are carried out in order: what is under way is overwritten.
        state.holds[slot] = Some(block);
        (state.ready[slot], state.committed[slot]) = (false, false);
        state.serials[slot] += 1;
        let serial = state.serials[slot];
        let load = Load { block, slot, serial, after: self.device.ticket() };
        let sent = state.loads.as_ref().is_some_and(|loads| loads.send(load).is_ok());
        if !sent {
            state.failed.get_or_insert_with(ended);
        }
    }

    /// When the use at place `next` begins, the slot of the one before goes to the block that
    /// needs it next.
    fn release(&self, state: &mut State, before: usize, next: usize) {
        let Some(slot) = self.slot(state.uses[before]) else { return };
        let count = state.uses.len();
        let mut coming = (next..next + count).map(|place| state.uses[place % count]);
        if let Some(block) = coming.find(|&block| self.slot(block) == Some(slot)) {
            self.send(state, block, slot);
        }
    }

    fn acquire(&self, recorder: &mut Recorder, block: u32) -> Result<(), Error> {
        self.with(|state| {
            let same = state.last == Some(block);
            state.last = Some(block);
            let Some(slot) = self.slot(block).filter(|_| !same) else { return Ok(()) };
            // What used the slots so far must be submitted before they are given away.
            recorder.flush_now();
            let next = state.at.map_or(0, |at| at + 1);
            let count = state.uses.len();
            let expected = count > 0 && state.uses[next % count] == block;
            if let (Some(before), true) = (state.at, expected) {
                self.release(state, before, next);
            }
            state.at = expected.then(|| next % count);
            self.send(state, block, slot);
            self.wait(state, slot)?;
            if !state.committed[slot] {
                self.slots[slot].commit()?;
                state.committed[slot] = true;
            }
            Ok(())
        })
    }

    /// Waits until a slot has what it is to hold.
    fn wait(&self, state: &mut State, slot: usize) -> Result<(), Error> {
        let started = Instant::now();
        while let Ok(done) = state.done.try_recv() {
            state.note(done);
        }
        while !state.ready[slot] && state.failed.is_none() {
            match state.done.recv() {
                Ok(done) => {
                    // Before the load began the device was still busy with what used the slot.
                    let idle = done.end.saturating_duration_since(started.max(done.start));
                    state.report.wait_ms += 1e3 * idle.as_secs_f64();
                    state.note(done);
                }
                Err(_) => state.failed = Some(ended()),
            }
        }
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

fn ended() -> Error {
    Error::Weights { message: "the loader of weights has ended".to_owned() }
}

impl State {
    fn note(&mut self, done: Done) {
        let Done { slot, block, serial, result, bytes, start, end } = done;
        if let Err(error) = result {
            // A device that is lost can be opened again, a file that cannot be read cannot.
            let weights = || Error::Weights { message: format!("{error:#}") };
            self.failed
                .get_or_insert_with(|| error.downcast_ref().cloned().unwrap_or_else(weights));
            return;
        }
        self.ready[slot] |= self.serials[slot] == serial;
        self.report.loads += 1;
        self.report.load_bytes += bytes;
        self.report.load_ms += 1e3 * (end - start).as_secs_f64();
        let at = |time: Instant| time.saturating_duration_since(self.started).as_secs_f64();
        let (start_s, end_s) = (at(start), at(end));
        if let Some(spans) = &mut self.spans {
            let name = format!("block {block}");
            spans.push(Span { track: Track::HostCopy, name, start_s, end_s });
        }
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        let thread = self.with(|state| {
            state.loads = None;
            state.thread.take()
        });
        if let Some(thread) = thread {
            // A loader that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// A device's error or one of reading.
struct Failure(anyhow::Error);

impl Failure {
    fn into_inner(self) -> anyhow::Error {
        self.0
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error.into())
    }
}

fn read_pieces(pieces: &[Piece], words: &mut [u32]) -> Result<()> {
    for Piece { file, byte, word, bytes } in pieces {
        file.read_words(*byte..byte + bytes, &mut words[*word as usize..])?;
    }
    Ok(())
}

impl Model {
    /// Says which blocks will be run next, over and over in this order, so that their weights are
    /// there in time. What was recorded before must be submitted.
    pub(crate) fn expect_blocks(&self, blocks: &[u32]) {
        if let Some(streamer) = &self.streamer {
            streamer.expect(blocks);
        }
    }

    /// Sees to it that the weights of a block are on the device when what is recorded next runs.
    pub(super) fn acquire(&self, recorder: &mut Recorder, block: u32) {
        let Some(streamer) = &self.streamer else { return };
        if let Err(error) = streamer.acquire(recorder, block) {
            recorder.fail(error);
        }
    }

    /// What streaming did since the last call; `None` where all blocks stay on the device.
    pub fn take_stream_report(&self) -> Option<StreamReport> {
        let streamer = self.streamer.as_ref()?;
        Some(streamer.with(|state| std::mem::take(&mut state.report)))
    }

    /// Seconds that recording has waited for weights since the last report.
    pub(crate) fn weights_wait_s(&self) -> f64 {
        self.streamer.as_ref().map_or(0.0, |s| s.with(|state| 1e-3 * state.report.wait_ms))
    }

    /// From now on keeps when weights were loaded, in seconds from now.
    pub(crate) fn trace_loads(&self) {
        if let Some(streamer) = &self.streamer {
            streamer.with(|state| {
                state.started = Instant::now();
                state.spans = Some(Vec::new());
            });
        }
    }

    /// Loads since [`Model::trace_loads`].
    pub(crate) fn take_load_spans(&self) -> Vec<Span> {
        let Some(streamer) = &self.streamer else { return Vec::new() };
        streamer.with(|state| {
            // What the loader has finished and nobody has asked for yet.
            while let Ok(done) = state.done.try_recv() {
                state.note(done);
            }
            state.spans.take().unwrap_or_default()
        })
    }
}
