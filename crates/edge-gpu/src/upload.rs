//! Device memory that the host fills again and again while the device computes.
//!
//! One queue is all that wgpu opens, so that transfers overlap compute in one way alone: the host
//! writes mapped memory while the device works on other buffers. Where the host can map storage
//! buffers, a slot is filled in place; elsewhere it has staging memory beside it, which the device
//! copies in line with its other work.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use edge_kernels::Category;

use crate::buffer::Buffer;
use crate::device::{Backend, Device};
use crate::error::{Error, driver};
use crate::gpu::Gpu;
use crate::ledger::Charge;
use crate::pipeline::scoped;

/// A point in the order of what was submitted to a device.
#[derive(Clone, Debug, Default)]
pub struct Ticket(Option<wgpu::SubmissionIndex>);

/// Device memory that is filled while the device works on other buffers. To be filled by one
/// thread and bound by another; who binds it must know that it is filled, and who fills it, that
/// everything that reads it was submitted.
pub struct UploadSlot {
    device: Device,
    buffer: Buffer,
    staging: Option<Staging>,
}

struct Staging {
    buffer: wgpu::Buffer,
    _charge: Charge,
}

impl Device {
    /// Whether upload slots need staging memory of their own size.
    pub fn stages_uploads(&self) -> bool {
        match &self.inner.backend {
            Backend::Gpu(_) => !self.inner.info.mappable,
            Backend::Cpu(_) => false,
            Backend::Dry(dry) => dry.stages_uploads,
        }
    }

    /// A slot of `words` zeros.
    ///
    /// # Errors
    /// As [`Device::buffer`].
    pub fn upload_slot(
        &self,
        label: &str,
        words: u64,
        category: Category,
    ) -> Result<UploadSlot, Error> {
        let gpu = match &self.inner.backend {
            Backend::Gpu(gpu) => gpu,
            Backend::Cpu(_) | Backend::Dry(_) => {
                let buffer = self.buffer(label, words, category)?;
                return Ok(UploadSlot { device: self.clone(), buffer, staging: None });
            }
        };
        // Filled once here, so that it is a buffer that can be mapped, where there are such.
        let buffer = self.buffer_init(label, category, words, |_| ())?;
        let staging = match self.stages_uploads() {
            true => Some(gpu.staging(label, 4 * words)?),
            false => None,
        };
        Ok(UploadSlot { device: self.clone(), buffer, staging })
    }

    /// The point behind all that was submitted so far.
    pub fn ticket(&self) -> Ticket {
        match &self.inner.backend {
            Backend::Gpu(gpu) => Ticket(gpu.flights.lock().last.clone()),
            Backend::Cpu(_) | Backend::Dry(_) => Ticket::default(),
        }
    }
}

impl UploadSlot {
    /// What dispatches bind.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Waits until the device has done what was submitted up to `after`, then lets `fill` write
    /// the slot. Blocks the calling thread alone.
    ///
    /// # Errors
    /// What the device reports, or `fill`.
    pub fn fill<E: From<Error>>(
        &self,
        after: &Ticket,
        fill: impl FnOnce(&mut [u32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.device.inner.fault("upload")?;
        match &self.device.inner.backend {
            Backend::Dry(_) => Ok(()),
            Backend::Cpu(cpu) => cpu.write(&self.buffer.whole(), fill)?,
            Backend::Gpu(gpu) => {
                let target = match &self.staging {
                    Some(staging) => &staging.buffer,
                    None => {
                        let own = self.buffer.gpu();
                        own.ok_or_else(|| E::from(self.buffer.foreign("fill")))?
                    }
                };
                gpu.fill_mapped(target, after, fill)
            }
        }
    }

    /// Submits the copy from staging memory, where the slot has some. What is submitted later
    /// reads what was filled; the staging memory may be filled again behind the ticket.
    ///
    /// # Errors
    /// What the device reports.
    pub fn commit(&self) -> Result<Option<Ticket>, Error> {
        let Some(staging) = &self.staging else { return Ok(None) };
        let (Backend::Gpu(gpu), Some(own)) = (&self.device.inner.backend, self.buffer.gpu()) else {
            return Ok(None);
        };
        gpu.copy(&staging.buffer, own, self.buffer.bytes())?;
        Ok(Some(self.device.ticket()))
    }
}

impl Gpu {
    fn staging(&self, label: &str, bytes: u64) -> Result<Staging, Error> {
        self.faults.check()?;
        let label = format!("{label}.staging");
        let in_use = self.ledger.report().current_total;
        let (buffer, error) = scoped(&self.device, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(&label),
                size: bytes,
                usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        });
        match error {
            None => {}
            Some(wgpu::Error::OutOfMemory { .. }) => {
                return Err(Error::OutOfMemory { label, bytes, in_use });
            }
            Some(error) => return Err(driver(&error)),
        }
        self.faults.check()?;
        Ok(Staging { buffer, _charge: self.ledger.charge(Category::Staging, bytes) })
    }

    fn fill_mapped<E: From<Error>>(
        &self,
        buffer: &wgpu::Buffer,
        after: &Ticket,
        fill: impl FnOnce(&mut [u32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.faults.check()?;
        let (sender, receiver) = mpsc::channel();
        buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            // The receiver is gone only after an error below.
            let _ = sender.send(result);
        });
        let started = Instant::now();
        loop {
            let timeout = Some(Duration::from_millis(20));
            let wait = wgpu::PollType::Wait { submission_index: after.0.clone(), timeout };
            match self.device.poll(wait) {
                Ok(_) | Err(wgpu::PollError::Timeout) => {}
                Err(error) => return Err(driver(&error).into()),
            }
            if self.called_back(&receiver)? {
                break;
            }
            if started.elapsed() > self.patience {
                return Err(self.give_up().into());
            }
        }
        let result = self.fill_view(buffer, fill);
        buffer.unmap();
        result
    }

    /// Lets `fill` write a mapped buffer.
    fn fill_view<E: From<Error>>(
        &self,
        buffer: &wgpu::Buffer,
        fill: impl FnOnce(&mut [u32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut view = buffer.get_mapped_range_mut(..).map_err(|error| driver(&error))?;
        let words = view.len() / 4;
        let pointer = view.slice(..).as_raw_element_ptr().cast::<u32>();
        // SAFETY: as in `Gpu::allocate`: mapped until the caller unmaps it, the only view, zeroed
        // and aligned by wgpu, and without atomics.
        fill(unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), words) })
    }

    fn copy(&self, from: &wgpu::Buffer, to: &wgpu::Buffer, bytes: u64) -> Result<(), Error> {
        self.faults.check()?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(from, 0, to, 0, bytes);
        let index = self.queue.submit([encoder.finish()]);
        self.flights.lock().last = Some(index);
        self.faults.check()
    }
}
