//! Devices.

use std::fmt;
use std::sync::{Arc, OnceLock};

use edge_kernels::op::{Needs, Variant};
use edge_kernels::preference::by_preference;
use edge_kernels::tuning::Tuning;
use edge_kernels::{Call, Category, Op};

use crate::adapter::{self, AdapterSummary, DeviceInfo};
use crate::buffer::{Buffer, Slice, Storage, next_id};
use crate::chosen::Choices;
use crate::cpu::Cpu;
use crate::dry::{Dry, Listed};
use crate::error::{Error, one_line};
use crate::fault::{Doing, FaultPlan, Kind};
use crate::gpu::Gpu;
use crate::host::HostMemory;
use crate::ledger::{Ledger, MemoryReport};
use crate::pipeline::satisfies;
use crate::profile::{OpTime, Profile};
use crate::recorder::Recorder;
use crate::transfer::{Fill, WRITE_WORDS};

/// How to open a device. The default is what production uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Measure time by op ([`Device::take_profile`]); slower, since dispatches do not overlap.
    pub profile: bool,
    /// Shaders with bounds checks, one dispatch at a time, failures named by op. Also switched
    /// on by `EDGE_CHECKED=1` in the environment.
    pub checked: bool,
    /// Open without 16-bit floats.
    pub disable_f16: bool,
    /// Open without subgroup operations.
    pub disable_subgroups: bool,
    /// Open without 64-bit integers.
    pub disable_int64: bool,
    /// Open without matrices that subgroups multiply together.
    pub disable_cooperative: bool,
    /// Pass parameters through a uniform buffer even where immediates are available.
    pub disable_immediates: bool,
    /// Fill buffers through staging memory even where they could be mapped.
    pub disable_mapping: bool,
    /// Pretend that bindings may not be larger than this many bytes.
    pub max_binding_bytes: Option<u64>,
    /// Use the variant of this name wherever an op has it and the device can run it.
    pub variant: Option<String>,
    /// Estimated time at which a submission is closed, instead of 100 ms.
    pub submission_ms: Option<u32>,
    /// Where the device is to fail; `None`: as `EDGE_FAULT` in the environment says.
    pub faults: Option<Arc<FaultPlan>>,
}

/// Estimated GPU time at which a submission is closed: far below every watchdog (2 s on AMD
/// APUs, less on a Mac with its display on), far above the cost of submitting.
const SUBMISSION_MS: u32 = 100;

impl Options {
    pub(crate) fn is_checked(&self) -> bool {
        self.checked || std::env::var_os("EDGE_CHECKED").is_some_and(|value| value == "1")
    }

    /// Estimated time at which a submission is closed, seconds.
    pub(crate) fn submission_s(&self) -> f64 {
        1e-3 * f64::from(self.submission_ms.unwrap_or(SUBMISSION_MS))
    }
}

/// A device that runs dispatches on buffers: an adapter behind wgpu, or the `cpu` device, which
/// runs the ops' definitions on host memory. Cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Device {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) id: u64,
    pub(crate) info: DeviceInfo,
    pub(crate) options: Options,
    /// What it was opened by.
    selector: String,
    pub(crate) profile: Profile,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) backend: Backend,
    pub(crate) tuning: OnceLock<Tuning>,
    pub(crate) chosen: Choices,
}

pub(crate) enum Backend {
    Gpu(Box<Gpu>),
    Cpu(Cpu),
    Dry(Dry),
}

impl Device {
    /// What there is to open: the adapters, and last the `cpu` device.
    pub fn list() -> Vec<AdapterSummary> {
        adapter::summaries(&adapter::adapters())
    }

    /// Opens a device: `auto` (a real GPU if there is one, else `cpu`), `cpu`, an index into
    /// [`Device::list`], or a part of the name of an adapter or its driver, in any case
    /// (`lavapipe`, `swiftshader`).
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], [`Error::AmbiguousDevice`], or [`Error::Open`] if the driver
    /// refuses.
    pub fn open(selector: &str, options: &Options) -> Result<Self, Error> {
        let mut options = options.clone();
        if options.faults.is_none() {
            options.faults = FaultPlan::from_env()?;
        }
        if selector.trim().eq_ignore_ascii_case("cpu") {
            return Ok(Self::host(&options));
        }
        let adapters = adapter::adapters();
        let index = adapter::select(&adapter::summaries(&adapters), selector)?;
        match adapters.get(index) {
            Some(adapter) => Self::adapter(selector, adapter, &options),
            None => Ok(Self::host(&options)),
        }
    }

    /// Opens the same device again, once more with nothing on it, with the same choice of kernels
    /// and submissions a quarter as long: what a device that was lost or hung may stand.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn reopen(&self) -> Result<Self, Error> {
        let inner = &self.inner;
        let submission_ms = inner.options.submission_ms.unwrap_or(SUBMISSION_MS).div_ceil(4);
        let options = Options { submission_ms: Some(submission_ms), ..inner.options.clone() };
        let device = Self::open(&inner.selector, &options)?;
        // `auto` or an index may mean another one while this one is not there.
        let [now, before] = [device.info(), &inner.info];
        if (&now.name, &now.backend) != (&before.name, &before.backend) {
            return Err(Error::NoSuchDevice {
                selector: format!("{} ({})", before.name, before.backend),
                choices: Self::list().iter().map(AdapterSummary::line).collect(),
            });
        }
        if let Some(tuning) = inner.tuning.get() {
            device.set_tuning(tuning.clone());
        }
        Ok(device)
    }

    fn host(options: &Options) -> Self {
        let info = adapter::host_info(options);
        Self::new("cpu", info, options, Arc::default(), Backend::Cpu(Cpu::default()))
    }

    /// A device with the limits of this one that has no memory and runs nothing, but keeps a list
    /// of the dispatches ([`Device::take_calls`]). What is read from it is zeros.
    pub fn dry(&self) -> Self {
        let inner = &self.inner;
        let (staging_bytes, stages_uploads) = (self.staging_bytes(), self.stages_uploads());
        let dry = Dry { staging_bytes, stages_uploads, ..Dry::default() };
        let faults = None;
        let options = Options { profile: false, checked: false, faults, ..inner.options.clone() };
        let (selector, info) = (&inner.selector, inner.info.clone());
        Self::new(selector, info, &options, Arc::default(), Backend::Dry(dry))
    }

    /// The dispatches of a dry device since the last call; none on any other.
    pub fn take_calls(&self) -> Vec<Listed> {
        match &self.inner.backend {
            Backend::Dry(dry) => dry.take(),
            Backend::Gpu(_) | Backend::Cpu(_) => Vec::new(),
        }
    }

    fn adapter(selector: &str, adapter: &wgpu::Adapter, options: &Options) -> Result<Self, Error> {
        let features = adapter::features(adapter, options);
        let description = wgpu::DeviceDescriptor {
            label: Some("edge"),
            required_features: features,
            experimental_features: experimental(features),
            // Without this a device has the limits of core WebGPU, whatever the adapter allows.
            required_limits: adapter.limits(),
            // Large blocks would hold memory that the plan has given to somebody else.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&description)).map_err(|error| {
                Error::Open { name: adapter.get_info().name, message: one_line(&error.to_string()) }
            })?;
        let info = adapter::info(adapter, features, options);
        let ledger = Arc::default();
        let gpu = Gpu::new(device, queue, &info, &ledger, options.profile);
        gpu.faults.check()?;
        tracing::debug!(name = info.name, backend = info.backend, "opened device");
        Ok(Self::new(selector, info, options, ledger, Backend::Gpu(Box::new(gpu))))
    }

    fn new(
        selector: &str,
        info: DeviceInfo,
        options: &Options,
        ledger: Arc<Ledger>,
        backend: Backend,
    ) -> Self {
        let (options, selector) = (options.clone(), selector.to_owned());
        let (id, profile) = (next_id(), Profile::default());
        let (tuning, chosen) = (OnceLock::new(), Choices::default());
        let inner = Inner { id, info, options, selector, profile, ledger, backend, tuning, chosen };
        Self { inner: Arc::new(inner) }
    }

    /// From now on runs the variants that were chosen for this device. The first call counts: a
    /// run does not change its kernels half way.
    pub fn set_tuning(&self, tuning: Tuning) {
        if self.inner.tuning.set(tuning).is_ok() {
            self.inner.chosen.clear();
        }
    }

    /// Whether dispatches take other times than they would: they are profiled, or their shaders
    /// have bounds checks.
    pub fn is_observed(&self) -> bool {
        self.inner.options.profile || self.inner.info.checked
    }

    /// What the device is and what it allows.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// Whether the device can run a variant with these needs. Always on the `cpu` device, which
    /// runs the definition whatever the variant.
    pub fn supports(&self, needs: &Needs) -> bool {
        matches!(self.inner.backend, Backend::Cpu(_)) || satisfies(&self.inner.info, needs)
    }

    /// The variants of a call that the device can run, the preferred first; without approximate
    /// ones. None on the `cpu` device.
    pub fn variants(&self, op: &dyn Op, call: &Call) -> Vec<Variant> {
        let info = &self.inner.info;
        if let Backend::Cpu(_) = self.inner.backend {
            return Vec::new();
        }
        let mut variants = op.variants(call);
        variants
            .retain(|variant| satisfies(info, &variant.needs) && self.trusts(op, call, variant));
        by_preference(variants, info.kind.hardware(), info.vendor)
    }

    /// The variants of a call to choose from by measuring: [`Device::variants`], and approximate
    /// ones with cooperative matrices, which run only when they were chosen.
    pub fn candidates(&self, op: &dyn Op, call: &Call) -> Vec<Variant> {
        let mut found = self.variants(op, call);
        if !found.is_empty() {
            found.extend(op.variants(call).into_iter().filter(|variant| {
                variant.approximate
                    && variant.needs.cooperative.is_some()
                    && satisfies(&self.inner.info, &variant.needs)
                    && self.trusts(op, call, variant)
            }));
        }
        found
    }

    /// Whether what was chosen for a call by measuring is approximate.
    pub(crate) fn takes_approximate(&self, op: &dyn Op, call: &Call) -> bool {
        let chosen = self.inner.tuning.get().and_then(|tuning| tuning.get(op, call));
        chosen.is_some_and(|name| {
            let mut candidates = self.candidates(op, call).into_iter();
            candidates.any(|variant| variant.name == name && variant.approximate)
        })
    }

    /// Whether no self-test found that a variant answers wrongly on this device.
    pub(crate) fn trusts(&self, op: &dyn Op, call: &Call, variant: &Variant) -> bool {
        let tuning = self.inner.tuning.get();
        tuning.is_none_or(|tuning| tuning.trusts(op, call, variant.name))
    }

    /// A buffer of `words` zeros, charged to `category` until it is dropped.
    ///
    /// # Errors
    /// [`Error::Sealed`], [`Error::EmptyBuffer`], [`Error::BufferTooLarge`],
    /// [`Error::OutOfMemory`]; all name the label.
    pub fn buffer(&self, label: &str, words: u64, category: Category) -> Result<Buffer, Error> {
        self.make(label, words, category, None)
    }

    /// A buffer that `fill` writes (it is given zeros): in place on devices that share the
    /// host's memory, else through a copy on the host and bounded staging memory.
    ///
    /// # Errors
    /// As [`Device::buffer`].
    pub fn buffer_init(
        &self,
        label: &str,
        category: Category,
        words: u64,
        fill: impl FnOnce(&mut [u32]),
    ) -> Result<Buffer, Error> {
        if let (Backend::Gpu(_), true) = (&self.inner.backend, self.inner.info.mappable) {
            return self.make(label, words, category, Some(Box::new(fill)));
        }
        let buffer = self.make(label, words, category, None)?;
        match &self.inner.backend {
            Backend::Dry(_) => {}
            Backend::Cpu(cpu) => cpu.write(&buffer.whole(), fill)?,
            Backend::Gpu(gpu) => {
                let mut data = vec![0; words as usize];
                fill(&mut data);
                gpu.write(&buffer.whole(), 0, &data)?;
            }
        }
        Ok(buffer)
    }

    fn make(
        &self,
        label: &str,
        words: u64,
        category: Category,
        fill: Option<Fill<'_>>,
    ) -> Result<Buffer, Error> {
        let inner = &self.inner;
        let bytes = words.saturating_mul(4);
        let label_owned = || label.to_string();
        if words == 0 {
            return Err(Error::EmptyBuffer { label: label_owned() });
        }
        inner.fault("buffer").map_err(|error| match error {
            Error::OutOfMemory { in_use, .. } => {
                Error::OutOfMemory { label: label_owned(), bytes, in_use }
            }
            error => error,
        })?;
        if inner.ledger.is_sealed() {
            return Err(Error::Sealed { label: label_owned(), bytes });
        }
        let limit = inner.info.max_buffer_bytes;
        if bytes > limit {
            return Err(Error::BufferTooLarge { label: label_owned(), bytes, limit });
        }
        let storage = match &inner.backend {
            Backend::Gpu(gpu) => gpu.allocate(label, bytes, fill)?,
            Backend::Dry(_) => Storage::None,
            Backend::Cpu(_) => {
                let in_use = inner.ledger.report().current_total;
                let memory = HostMemory::new(words).ok_or_else(|| Error::OutOfMemory {
                    label: label_owned(),
                    bytes,
                    in_use,
                })?;
                Storage::Host(memory)
            }
        };
        let charge = inner.ledger.charge(category, bytes);
        let alignment = inner.info.alignment_words;
        Ok(Buffer::new(inner.id, label, words, alignment, category, storage, charge))
    }

    /// Overwrites a slice. Ordered behind everything submitted before; a [`Recorder`] that is
    /// still recording may run its dispatches before or after.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::ForeignBuffer`], or what the device reports.
    pub fn write(&self, slice: &Slice, data: &[u32]) -> Result<(), Error> {
        self.check_owner(slice, "write")?;
        self.inner.fault("write")?;
        if data.len() as u64 != slice.words() {
            return Err(Error::Length {
                label: slice.buffer().label().to_string(),
                expected: slice.words(),
                found: data.len() as u64,
            });
        }
        match &self.inner.backend {
            Backend::Dry(_) => Ok(()),
            Backend::Gpu(gpu) => gpu.write(slice, 0, data),
            Backend::Cpu(cpu) => cpu.write(slice, |words| words.copy_from_slice(data)),
        }
    }

    /// Overwrites a slice piece by piece: `fill(first, piece)` writes all of the words that
    /// start at word `first` of the slice. Needs 1 MiB of host memory however large the slice.
    ///
    /// # Errors
    /// [`Error::ForeignBuffer`], or what the device reports.
    pub fn write_with(
        &self,
        slice: &Slice,
        mut fill: impl FnMut(u64, &mut [u32]),
    ) -> Result<(), Error> {
        self.check_owner(slice, "write")?;
        self.inner.fault("write")?;
        let gpu = match &self.inner.backend {
            Backend::Dry(_) => return Ok(()),
            Backend::Cpu(cpu) => return cpu.write(slice, |words| fill(0, words)),
            Backend::Gpu(gpu) => gpu,
        };
        let mut piece = vec![0; WRITE_WORDS.min(slice.words() as usize)];
        let mut first = 0;
        while first < slice.words() {
            let words = piece.len().min((slice.words() - first) as usize);
            fill(first, &mut piece[..words]);
            gpu.write(slice, first, &piece[..words])?;
            first += words as u64;
        }
        Ok(())
    }

    /// Waits for everything submitted before and reads a slice.
    ///
    /// # Errors
    /// [`Error::ForeignBuffer`], or what the device reports.
    pub fn read(&self, slice: &Slice) -> Result<Vec<u32>, Error> {
        self.check_owner(slice, "read")?;
        self.inner.fault("read")?;
        match &self.inner.backend {
            Backend::Dry(_) => Ok(vec![0; slice.words() as usize]),
            Backend::Gpu(gpu) => gpu.read(slice),
            Backend::Cpu(cpu) => cpu.read(slice),
        }
    }

    /// As [`Device::read`], as floats.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn read_f32(&self, slice: &Slice) -> Result<Vec<f32>, Error> {
        Ok(bytemuck::cast_vec(self.read(slice)?))
    }

    pub(crate) fn check_owner(&self, slice: &Slice, user: &str) -> Result<(), Error> {
        if slice.buffer().device() == self.inner.id {
            Ok(())
        } else {
            Err(slice.buffer().foreign(user))
        }
    }

    /// Starts recording dispatches.
    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.clone())
    }

    /// Waits for everything submitted or written before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn wait(&self) -> Result<(), Error> {
        self.inner.fault("wait")?;
        match &self.inner.backend {
            Backend::Gpu(gpu) => gpu.wait(),
            Backend::Cpu(_) | Backend::Dry(_) => Ok(()),
        }
    }

    /// Bytes in use by category, now and at most.
    pub fn memory(&self) -> MemoryReport {
        self.inner.ledger.report()
    }

    /// Most bytes of staging memory that the device will hold at once: what it holds now, and a
    /// piece of an upload.
    pub fn staging_bytes(&self) -> u64 {
        match &self.inner.backend {
            Backend::Cpu(_) => 0,
            Backend::Dry(dry) => dry.staging_bytes,
            Backend::Gpu(_) => {
                let held = self.memory().current[Category::Staging.index()];
                held + 4 * WRITE_WORDS as u64
            }
        }
    }

    /// Lets peaks start again at what is in use now.
    pub fn reset_peak(&self) {
        self.inner.ledger.reset_peak();
    }

    /// From now on [`Device::buffer`] and [`Device::buffer_init`] are errors.
    pub fn seal(&self) {
        self.inner.ledger.seal(true);
    }

    /// Ends [`Device::seal`].
    pub fn unseal(&self) {
        self.inner.ledger.seal(false);
    }

    /// Times by op since the last call, the longest first; empty without [`Options::profile`].
    pub fn take_profile(&self) -> Vec<OpTime> {
        self.inner.profile.take()
    }

    /// Bind groups in the cache; 0 on the `cpu` device.
    pub fn cached_bind_groups(&self) -> usize {
        match &self.inner.backend {
            Backend::Gpu(gpu) => gpu.groups.len(),
            Backend::Cpu(_) | Backend::Dry(_) => 0,
        }
    }
}

impl Inner {
    /// Fails on purpose, where that is planned.
    pub(crate) fn fault(&self, place: &str) -> Result<(), Error> {
        let Some(faults) = &self.options.faults else { return Ok(()) };
        let Some(kind) = faults.at(self.id, place, Doing::Running) else { return Ok(()) };
        let message = format!("on purpose, at {place}");
        let gpu = match &self.backend {
            Backend::Gpu(gpu) => Some(gpu),
            Backend::Cpu(_) | Backend::Dry(_) => None,
        };
        Err(match (kind, gpu) {
            (Kind::Lost, gpu) => {
                if let Some(gpu) = gpu {
                    gpu.lose(&message);
                }
                Error::Lost { message }
            }
            (Kind::Hang, Some(gpu)) => gpu.give_up(),
            (Kind::Hang, None) => Error::Hang { seconds: 0 },
            (Kind::Memory, _) => {
                let in_use = self.ledger.report().current_total;
                Error::OutOfMemory { label: place.to_owned(), bytes: 0, in_use }
            }
            (Kind::Driver | Kind::Shader | Kind::Wrong, _) => Error::Driver { message },
        })
    }

    /// Refuses a shader on purpose, where that is planned.
    pub(crate) fn refused_shader(
        &self,
        op: &'static str,
        variant: &'static str,
    ) -> Result<(), Error> {
        let faults = self.options.faults.as_ref();
        match faults.and_then(|faults| faults.at(self.id, op, Doing::Compiling)) {
            Some(Kind::Shader) => {
                Err(Error::Shader { op, variant, message: "refused on purpose".into() })
            }
            _ => Ok(()),
        }
    }

    /// Whether an op's answer is to be wrong on purpose, now that it is compared.
    pub(crate) fn wrong_answer(&self, op: &str) -> bool {
        let faults = self.options.faults.as_ref();
        faults.and_then(|faults| faults.at(self.id, op, Doing::Comparing)).is_some()
    }
}

/// Leave to use what wgpu calls experimental, where it is used.
fn experimental(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu asks for the knowledge that calls of such a feature may be unsound. The one
    // feature is used by shaders of this project alone, in uniform control flow, by whole
    // subgroups and inside their tiles, and those run only by name or when their answers on this
    // device were compared with the reference.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device('{}', {})", self.inner.info.name, self.inner.info.backend)
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Device>();
    shared::<Buffer>();
    shared::<Slice>();
};
