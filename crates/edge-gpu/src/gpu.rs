//! A device behind wgpu: its queue, what is in flight, and what the driver complained about.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_kernels::op::Work;
use edge_kernels::{Call, Category};

use crate::adapter::DeviceInfo;
use crate::error::{Error, driver, one_line};
use crate::ledger::{Charge, Ledger};
use crate::pipeline::{BindGroups, PARAMS_BYTES, Pipeline, Pipelines};
use crate::profile::{Profile, TimedOp};
use crate::sync::Lock;
use crate::transfer::Readback;

/// Most dispatches of a submission.
pub(crate) const MAX_BATCH: usize = 512;
/// Most dispatches of a submission with timestamps (two queries each).
pub(crate) const MAX_TIMED: usize = 128;
/// Submissions that may be in flight: one runs, one waits, one is being recorded.
const MAX_IN_FLIGHT: usize = 2;

/// What the driver reported outside of a call that could return it.
#[derive(Default)]
pub(crate) struct Faults {
    lost: Lock<Option<String>>,
    other: Lock<Option<String>>,
}

impl Faults {
    /// The device stays lost; any other error is reported once.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some(message) = self.lost.lock().clone() {
            return Err(Error::Lost { message });
        }
        match self.other.lock().take() {
            Some(message) => Err(Error::Driver { message }),
            None => Ok(()),
        }
    }

    pub(crate) fn install(self: &Arc<Self>, device: &wgpu::Device) {
        let faults = Arc::clone(self);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            // Later errors are usually consequences of the first.
            faults.other.lock().get_or_insert_with(|| one_line(&error.to_string()));
        }));
        let faults = Arc::clone(self);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                faults.lost.lock().get_or_insert_with(|| one_line(&message));
            }
        });
    }
}

/// A dispatch that is ready to be encoded.
pub(crate) struct Prepared {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) group: wgpu::BindGroup,
    pub(crate) call: Call,
    pub(crate) grid: [u32; 3],
    pub(crate) timed: TimedOp,
    /// Estimated time, before calibration.
    pub(crate) seconds: f64,
}

struct Flight {
    index: wgpu::SubmissionIndex,
    estimate: f64,
    /// Staging memory that wgpu frees when the submission is done.
    staging: Option<Charge>,
}

pub(crate) struct Flights {
    queue: VecDeque<Flight>,
    /// Staging memory of writes that no submission has taken yet.
    pub(crate) pending: Option<Charge>,
    /// When the last submission was seen to end, if that was seen as it happened.
    ended: Option<Instant>,
    /// The last submission.
    pub(crate) last: Option<wgpu::SubmissionIndex>,
    /// Measured over estimated time.
    scale: f64,
}

impl Flights {
    /// Staging memory of all writes that may not be done.
    pub(crate) fn staged_bytes(&self) -> u64 {
        let flying = self.queue.iter().map(|flight| flight.staging.as_ref());
        flying.chain([self.pending.as_ref()]).flatten().map(Charge::bytes).sum()
    }
}

/// Where parameters go that are not immediates: a slot per dispatch of a submission. The queue
/// orders the write behind the submission before, so one set of slots is enough.
pub(crate) struct Uniforms {
    pub(crate) buffer: wgpu::Buffer,
    slot: u32,
    _charge: Charge,
}

struct Timers {
    queries: wgpu::QuerySet,
    resolve: wgpu::Buffer,
    read: wgpu::Buffer,
    nanoseconds: f64,
    _charge: Charge,
}

pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) faults: Arc<Faults>,
    pub(crate) pipelines: Pipelines,
    pub(crate) groups: Arc<BindGroups>,
    pub(crate) uniforms: Option<Uniforms>,
    pub(crate) flights: Lock<Flights>,
    pub(crate) readback: Lock<Readback>,
    pub(crate) ledger: Arc<Ledger>,
    /// Locked from encoding until the times are read: there is one set of queries.
    timers: Option<Lock<Timers>>,
    /// FLOP/s and bytes/s to start calibration from.
    rates: (f64, f64),
    /// Longest that a submission may take.
    pub(crate) patience: Duration,
}

/// Longest that a submission may take on a GPU, whose drivers' own watchdogs come far earlier.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same on software drivers, which compile a shader when it first runs.
const SOFTWARE_PATIENCE: Duration = Duration::from_secs(1800);

impl Gpu {
    pub(crate) fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        info: &DeviceInfo,
        ledger: &Arc<Ledger>,
        profile: bool,
    ) -> Self {
        let faults = Arc::new(Faults::default());
        faults.install(&device);
        let uniforms = (!info.immediates).then(|| Uniforms::new(&device, ledger));
        let timers =
            (profile && info.timestamps).then(|| Lock::new(Timers::new(&device, &queue, ledger)));
        let readback = Lock::new(Readback::new(&device, ledger));
        let rates = if info.kind.is_cpu() { (2e9, 4e9) } else { (2e11, 4e11) };
        Self {
            device,
            queue,
            faults,
            pipelines: Pipelines::new(info.immediates, info.checked),
            groups: Arc::default(),
            uniforms,
            flights: Lock::new(Flights {
                queue: VecDeque::new(),
                pending: None,
                ended: None,
                last: None,
                scale: 1.0,
            }),
            readback,
            ledger: Arc::clone(ledger),
            timers,
            rates,
            patience: if info.kind.is_cpu() { SOFTWARE_PATIENCE } else { PATIENCE },
        }
    }

    /// The device is gone, as behind a driver's reset.
    pub(crate) fn lose(&self, message: &str) {
        self.faults.lost.lock().get_or_insert_with(|| message.to_owned());
        self.device.destroy();
    }

    /// Gives up a device that does not finish.
    pub(crate) fn give_up(&self) -> Error {
        let seconds = self.patience.as_secs();
        let message = format!("its work did not end within {seconds} s");
        self.faults.lost.lock().get_or_insert(message);
        // Dropping it would wait for the work.
        std::mem::forget((self.device.clone(), self.queue.clone()));
        Error::Hang { seconds }
    }

    /// Estimated time of a dispatch before calibration.
    pub(crate) fn estimate(&self, work: Work) -> f64 {
        let (flops, bytes) = self.rates;
        // A dispatch costs about this much to encode and start, whatever it does.
        (work.flops as f64 / flops).max(work.bytes as f64 / bytes) + 20e-6
    }

    /// Measured over estimated time, so far.
    pub(crate) fn scale(&self) -> f64 {
        self.flights.lock().scale
    }

    /// Whether times come from timestamps.
    pub(crate) fn has_timers(&self) -> bool {
        self.timers.is_some()
    }

    /// Encodes and submits; waits only for room among the submissions in flight, except that
    /// with timers it waits for the times.
    pub(crate) fn submit(
        &self,
        batch: &[Prepared],
        profile: Option<&Profile>,
    ) -> Result<(), Error> {
        self.faults.check()?;
        let timers = self.timers.as_ref().filter(|_| profile.is_some()).map(Lock::lock);
        let mut flights = self.flights.lock();
        while flights.queue.len() >= MAX_IN_FLIGHT {
            self.wait_oldest(&mut flights)?;
        }
        self.write_uniforms(batch, &mut flights);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        match timers.as_deref() {
            None => self.encode(&mut encoder, batch, 0, None),
            Some(timers) => {
                for index in 0..batch.len() {
                    let writes = wgpu::ComputePassTimestampWrites {
                        query_set: &timers.queries,
                        beginning_of_pass_write_index: Some(2 * index as u32),
                        end_of_pass_write_index: Some(2 * index as u32 + 1),
                    };
                    self.encode(&mut encoder, &batch[index..=index], index, Some(writes));
                }
                timers.resolve(&mut encoder, batch.len());
            }
        }
        let index = self.queue.submit([encoder.finish()]);
        let estimate = batch.iter().map(|prepared| prepared.seconds).sum();
        let staging = flights.pending.take();
        flights.last = Some(index.clone());
        flights.queue.push_back(Flight { index, estimate, staging });
        drop(flights);
        if let (Some(timers), Some(profile)) = (timers.as_deref(), profile) {
            self.collect(timers, batch, profile)?;
        }
        self.faults.check()
    }

    fn write_uniforms(&self, batch: &[Prepared], flights: &mut Flights) {
        let Some(uniforms) = &self.uniforms else { return };
        let slot = uniforms.slot as usize;
        let mut bytes = vec![0; slot * batch.len()];
        for (chunk, prepared) in bytes.chunks_exact_mut(slot).zip(batch) {
            let params: &[u8] = bytemuck::cast_slice(prepared.call.words());
            chunk[..params.len()].copy_from_slice(params);
        }
        self.stage(flights, bytes.len() as u64);
        self.queue.write_buffer(&uniforms.buffer, 0, &bytes);
    }

    fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        batch: &[Prepared],
        first: usize,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let description = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&description);
        for (index, prepared) in batch.iter().enumerate() {
            pass.set_pipeline(&prepared.pipeline.compute);
            match &self.uniforms {
                Some(uniforms) => {
                    let offset = uniforms.slot * (first + index) as u32;
                    pass.set_bind_group(0, &prepared.group, &[offset]);
                }
                None => {
                    pass.set_bind_group(0, &prepared.group, &[]);
                    pass.set_immediates(0, bytemuck::cast_slice(prepared.call.words()));
                }
            }
            let [x, y, z] = prepared.grid;
            pass.dispatch_workgroups(x, y, z);
        }
    }

    fn collect(&self, timers: &Timers, batch: &[Prepared], profile: &Profile) -> Result<(), Error> {
        let bytes = 16 * batch.len() as u64;
        let words = self.map_and_read(&timers.read, bytes)?;
        let ticks: Vec<u64> = words
            .chunks_exact(2)
            .map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32)
            .collect();
        for (pair, prepared) in ticks.chunks_exact(2).zip(batch) {
            let nanoseconds = pair[1].saturating_sub(pair[0]) as f64 * timers.nanoseconds;
            profile.add(prepared.timed, Duration::from_secs_f64(1e-9 * nanoseconds));
        }
        Ok(())
    }

    /// Charges staging memory that wgpu is about to allocate for a write.
    pub(crate) fn stage(&self, flights: &mut Flights, bytes: u64) {
        match &mut flights.pending {
            Some(charge) => charge.grow(bytes),
            none => *none = Some(self.ledger.charge(Category::Staging, bytes)),
        }
    }

    fn wait_oldest(&self, flights: &mut Flights) -> Result<(), Error> {
        let Some(flight) = flights.queue.pop_front() else { return Ok(()) };
        let start = Instant::now();
        self.poll(Some(flight.index))?;
        let now = Instant::now();
        // The end was seen as it happened only if there was something to wait for.
        let seen = now.duration_since(start) > Duration::from_millis(1);
        if let (true, Some(ended)) = (seen, flights.ended) {
            let measured = now.duration_since(ended).as_secs_f64() / flight.estimate.max(1e-9);
            // Half of the way: one stall, such as a shader's first run, must not decide.
            flights.scale = (0.5 * flights.scale + 0.5 * measured).clamp(1e-3, 1e3);
        }
        flights.ended = seen.then_some(now);
        Ok(())
    }

    /// Waits for everything that was submitted or written.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let mut flights = self.flights.lock();
        self.drain(&mut flights)?;
        drop(flights);
        self.faults.check()
    }

    /// As [`Gpu::wait`], for a holder of the lock.
    pub(crate) fn drain(&self, flights: &mut Flights) -> Result<(), Error> {
        if flights.pending.is_some() {
            // A write is carried out by the next submission.
            self.queue.submit([]);
        }
        self.poll(None)?;
        self.settled(flights);
        Ok(())
    }

    /// Notes that nothing is in flight any more.
    pub(crate) fn settled(&self, flights: &mut Flights) {
        flights.queue.clear();
        flights.pending = None;
        flights.ended = None;
    }

    pub(crate) fn poll(&self, index: Option<wgpu::SubmissionIndex>) -> Result<(), Error> {
        let timeout = Some(self.patience);
        match self.device.poll(wgpu::PollType::Wait { submission_index: index, timeout }) {
            Ok(_) => Ok(()),
            Err(wgpu::PollError::Timeout) => Err(self.give_up()),
            Err(error) => {
                self.faults.check()?;
                Err(driver(&error))
            }
        }
    }
}

impl Uniforms {
    fn new(device: &wgpu::Device, ledger: &Arc<Ledger>) -> Self {
        let alignment = device.limits().min_uniform_buffer_offset_alignment;
        let slot = PARAMS_BYTES.next_multiple_of(alignment.max(1));
        let size = u64::from(slot) * MAX_BATCH as u64;
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self { buffer, slot, _charge: ledger.charge(Category::Staging, size) }
    }
}

impl Timers {
    fn new(device: &wgpu::Device, queue: &wgpu::Queue, ledger: &Arc<Ledger>) -> Self {
        let count = 2 * MAX_TIMED as u32;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 8 * u64::from(count),
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count,
            }),
            resolve: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            read: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            nanoseconds: f64::from(queue.get_timestamp_period()),
            _charge: ledger.charge(Category::Staging, 16 * u64::from(count)),
        }
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder, dispatches: usize) {
        let count = 2 * dispatches as u32;
        encoder.resolve_query_set(&self.queries, 0..count, &self.resolve, 0);
        encoder.copy_buffer_to_buffer(&self.resolve, 0, &self.read, 0, 8 * u64::from(count));
    }
}
