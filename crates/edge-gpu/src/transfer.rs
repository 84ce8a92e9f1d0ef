//! Moving data between the host and a device behind wgpu, with bounded staging memory.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use edge_kernels::Category;

use crate::buffer::{Slice, Storage};
use crate::error::{Error, driver};
use crate::gpu::Gpu;
use crate::ledger::{Charge, Ledger};
use crate::pipeline::scoped;

/// Words of a write that are staged at once: wgpu allocates staging memory for every write and
/// frees it only when a later submission is done.
pub(crate) const WRITE_WORDS: usize = 256 << 10;
/// Bytes that are read back at once.
const READ_BYTES: u64 = 1 << 20;

/// Tells when a buffer is mapped.
type Mapping = Receiver<Result<(), wgpu::BufferAsyncError>>;

/// Writes the words of a new buffer.
pub(crate) type Fill<'a> = Box<dyn FnOnce(&mut [u32]) + 'a>;

/// The buffer that everything is read back through.
pub(crate) struct Readback {
    buffer: wgpu::Buffer,
    _charge: Charge,
}

impl Readback {
    pub(crate) fn new(device: &wgpu::Device, ledger: &Arc<Ledger>) -> Self {
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: READ_BYTES,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self { buffer, _charge: ledger.charge(Category::Staging, READ_BYTES) }
    }
}

impl Gpu {
    /// Storage of `bytes` zeroed bytes; with `fill`, mapped and filled in place.
    pub(crate) fn allocate(
        &self,
        label: &str,
        bytes: u64,
        fill: Option<Fill<'_>>,
    ) -> Result<Storage, Error> {
        use wgpu::BufferUsages as Usage;
        self.faults.check()?;
        let mut usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        usage.set(Usage::MAP_WRITE, fill.is_some());
        let in_use = self.ledger.report().current_total;
        let (buffer, error) = scoped(&self.device, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage,
                mapped_at_creation: fill.is_some(),
            })
        });
        match error {
            None => {}
            Some(wgpu::Error::OutOfMemory { .. }) => {
                return Err(Error::OutOfMemory { label: label.into(), bytes, in_use });
            }
            Some(error) => return Err(driver(&error)),
        }
        if let Some(fill) = fill {
            let mut view = buffer.get_mapped_range_mut(..).map_err(|error| driver(&error))?;
            let words = view.len() / 4;
            let pointer = view.slice(..).as_raw_element_ptr().cast::<u32>();
            // SAFETY: the buffer is mapped until `unmap` below and `view` is its only view;
            // wgpu zeroes mapped memory and aligns it to 8 bytes; `fill` gets no atomics, which
            // are what write-combined memory does not support.
            fill(unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), words) });
            drop(view);
            buffer.unmap();
        }
        Ok(Storage::Gpu { buffer, groups: Arc::downgrade(&self.groups) })
    }

    /// Writes `data` from word `offset` of a slice on.
    pub(crate) fn write(&self, slice: &Slice, offset: u64, data: &[u32]) -> Result<(), Error> {
        let buffer = slice.buffer().gpu().ok_or_else(|| slice.buffer().foreign("write"))?;
        self.faults.check()?;
        let mut at = 4 * (slice.offset_words() + offset);
        for chunk in data.chunks(WRITE_WORDS) {
            let bytes = size_of_val(chunk) as u64;
            let mut flights = self.flights.lock();
            // What earlier submissions staged is freed only when they are done.
            let staged = flights.staged_bytes();
            if staged + bytes > 4 * WRITE_WORDS as u64 {
                self.drain(&mut flights)?;
            }
            self.stage(&mut flights, bytes);
            self.queue.write_buffer(buffer, at, bytemuck::cast_slice(chunk));
            at += bytes;
        }
        self.faults.check()
    }

    /// Reads a slice, after everything that was submitted before.
    pub(crate) fn read(&self, slice: &Slice) -> Result<Vec<u32>, Error> {
        let buffer = slice.buffer().gpu().ok_or_else(|| slice.buffer().foreign("read"))?;
        self.faults.check()?;
        let readback = self.readback.lock();
        let mut out = Vec::with_capacity(slice.words() as usize);
        let mut done = 0;
        while done < slice.bytes() {
            let bytes = READ_BYTES.min(slice.bytes() - done);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let from = 4 * slice.offset_words() + done;
            encoder.copy_buffer_to_buffer(buffer, from, &readback.buffer, 0, bytes);
            self.queue.submit([encoder.finish()]);
            out.extend_from_slice(&self.map_and_read(&readback.buffer, bytes)?);
            done += bytes;
        }
        Ok(out)
    }

    /// Waits for the queue and reads the start of a buffer that can be mapped for reading.
    pub(crate) fn map_and_read(
        &self,
        buffer: &wgpu::Buffer,
        bytes: u64,
    ) -> Result<Vec<u32>, Error> {
        let (sender, receiver) = mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, ..bytes, move |result| {
            // The receiver is gone only if the poll below failed, which is an error already.
            let _ = sender.send(result);
        });
        let started = Instant::now();
        loop {
            let mut flights = self.flights.lock();
            self.poll(None)?;
            self.settled(&mut flights);
            drop(flights);
            self.faults.check()?;
            if self.called_back(&receiver)? {
                break;
            }
            if started.elapsed() > self.patience {
                return Err(self.give_up());
            }
        }
        let view = buffer.get_mapped_range(..bytes).map_err(|error| driver(&error))?;
        let words = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        buffer.unmap();
        Ok(words)
    }

    /// Whether a buffer is mapped, or an error of that. A moment is waited for: the poll of another
    /// thread may be the one that calls back, and that may still be about to.
    pub(crate) fn called_back(&self, mapping: &Mapping) -> Result<bool, Error> {
        match mapping.recv_timeout(Duration::from_micros(200)) {
            Ok(result) => result.map(|()| true).map_err(|error| driver(&error)),
            Err(RecvTimeoutError::Timeout) => self.faults.check().map(|()| false),
            Err(RecvTimeoutError::Disconnected) => {
                self.faults.check()?;
                Err(Error::Driver { message: "mapping a buffer did not finish".into() })
            }
        }
    }
}
