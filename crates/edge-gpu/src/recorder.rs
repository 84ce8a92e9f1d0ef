//! Recording: dispatches are checked, turned into pipelines and bind groups, and submitted in
//! pieces of bounded GPU time.

use std::sync::Arc;
use std::time::Instant;

use edge_kernels::op::{Binding, Variant};
use edge_kernels::{Call, Dispatch, Op};

use crate::buffer::Slice;
use crate::chosen::Chosen;
use crate::device::{Backend, Device, Inner};
use crate::error::{Error, one_line};
use crate::gpu::{Gpu, MAX_BATCH, MAX_TIMED, Prepared};
use crate::host::check_aliasing;
use crate::pipeline::{Pipeline, satisfies, scoped};
use crate::profile::{Profile, TimedOp};

/// Takes dispatches in order. Some of them may run before [`Recorder::submit`]; after it, all of
/// them will.
pub struct Recorder {
    device: Device,
    batch: Vec<Prepared>,
    seconds: f64,
    error: Option<Error>,
}

impl Recorder {
    pub(crate) fn new(device: Device) -> Self {
        Self { device, batch: Vec::new(), seconds: 0.0, error: None }
    }

    /// Adds a dispatch, with the variant that the options name, or that was measured to be the
    /// fastest, or else the one that the device prefers. What is wrong with it is reported by
    /// [`Recorder::submit`], and ends the recording: nothing behind it runs.
    pub fn push(&mut self, dispatch: Dispatch<Slice>) {
        self.guard(|recorder| recorder.add(&dispatch, None));
    }

    /// As [`Recorder::push`], with this variant of the op. The `cpu` device has only the
    /// definition.
    pub fn push_variant(&mut self, dispatch: Dispatch<Slice>, variant: &Variant) {
        self.guard(|recorder| recorder.add(&dispatch, Some(variant)));
    }

    /// Submits what was added, without waiting for it.
    ///
    /// # Errors
    /// The first error of any dispatch added since the last call, or what the device reports.
    pub fn submit(&mut self) -> Result<(), Error> {
        self.guard(Self::flush);
        self.batch.clear();
        self.seconds = 0.0;
        self.error.take().map_or(Ok(()), Err)
    }

    /// Ends the recording with an error, unless there is one already: nothing behind it runs, and
    /// [`Recorder::submit`] reports it.
    pub fn fail(&mut self, error: Error) {
        self.guard(|_| Err(error));
    }

    /// Submits what was added so far, keeping an error for [`Recorder::submit`].
    pub fn flush_now(&mut self) {
        self.guard(Self::flush);
    }

    fn guard(&mut self, body: impl FnOnce(&mut Self) -> Result<(), Error>) {
        if self.error.is_none() {
            self.error = body(self).err();
        }
    }

    /// The variants to run where the caller named none, the best first; the others are for drivers
    /// that refuse it.
    fn choose(&self, op: &dyn Op, call: &Call) -> Result<Vec<Variant>, Error> {
        let Inner { info, options, tuning, .. } = &*self.device.inner;
        if let Some(name) = &options.variant {
            let fits = |variant: &Variant| variant.name == name && satisfies(info, &variant.needs);
            if let Some(named) = op.variants(call).into_iter().find(fits) {
                return Ok(vec![named]);
            }
        }
        let mut variants = self.device.candidates(op, call);
        if variants.is_empty() {
            let trusted = |variant: &Variant| self.device.trusts(op, call, variant);
            let distrusted = !op.variants(call).iter().all(trusted);
            let op = op.name();
            return Err(if distrusted { Error::AllWrong { op } } else { Error::NoVariant { op } });
        }
        let measured = tuning.get().and_then(|tuning| tuning.get(op, call));
        let measured =
            measured.and_then(|name| variants.iter().position(|variant| variant.name == name));
        let first = variants.remove(measured.unwrap_or(0));
        // Approximate ones run only where they were measured.
        variants.retain(|variant| !variant.approximate);
        variants.insert(0, first);
        Ok(variants)
    }

    fn add(&mut self, dispatch: &Dispatch<Slice>, variant: Option<&Variant>) -> Result<(), Error> {
        let device = self.device.clone();
        let (inner, call) = (&*device.inner, &dispatch.call);
        let bindings = dispatch.op.bindings(call);
        self.check(dispatch, &bindings)?;
        inner.fault(dispatch.op.name())?;
        let profile = inner.options.profile.then_some(&inner.profile);
        let gpu = match &inner.backend {
            Backend::Dry(dry) => {
                dry.add(dispatch);
                return Ok(());
            }
            Backend::Cpu(cpu) => return cpu.run(dispatch, &bindings, profile),
            Backend::Gpu(gpu) => gpu,
        };
        let compile = |variant: &Variant| {
            inner.refused_shader(dispatch.op.name(), variant.name)?;
            gpu.pipelines.get(&gpu.device, dispatch.op, call, &bindings, variant)
        };
        let chosen = match variant {
            Some(variant) => Chosen::new(variant.clone(), compile(variant)?),
            None => inner.chosen.get(dispatch.op, call, || {
                first_that_compiles(self.choose(dispatch.op, call)?, compile)
            })?,
        };
        if inner.info.checked {
            return self.run_checked(gpu, dispatch, &chosen, profile);
        }
        let prepared = self.prepare(gpu, dispatch, &chosen)?;
        if profile.is_some() && !gpu.has_timers() {
            return run_by_clock(gpu, prepared, &inner.profile);
        }
        let most = if profile.is_some() { MAX_TIMED } else { MAX_BATCH };
        let full = (self.seconds + prepared.seconds) * gpu.scale() > inner.options.submission_s();
        if full || self.batch.len() >= most {
            self.flush()?;
        }
        self.seconds += prepared.seconds;
        self.batch.push(prepared);
        Ok(())
    }

    /// What can be wrong with a dispatch on any device.
    fn check(&self, dispatch: &Dispatch<Slice>, bindings: &[Binding]) -> Result<(), Error> {
        let info = self.device.info();
        let op = dispatch.op.name();
        let (expected, found) = (bindings.len(), dispatch.bindings.len());
        if expected != found {
            return Err(Error::BindingCount { op, expected, found });
        }
        if expected as u64 > u64::from(info.max_storage_bindings) {
            let limit = info.max_storage_bindings;
            return Err(Error::TooManyBindings { op, count: expected, limit });
        }
        for (binding, slice) in bindings.iter().zip(&dispatch.bindings) {
            self.device.check_owner(slice, op)?;
            let (bytes, limit) = (slice.bytes(), info.max_binding_bytes);
            if bytes > limit {
                return Err(Error::BindingTooLarge { op, binding: binding.name, bytes, limit });
            }
        }
        check_aliasing(op, bindings, &dispatch.bindings)
    }

    fn prepare(
        &self,
        gpu: &Gpu,
        dispatch: &Dispatch<Slice>,
        chosen: &Chosen,
    ) -> Result<Prepared, Error> {
        let Dispatch { op, call, bindings: slices } = dispatch;
        let Chosen { variant, pipeline } = chosen;
        let (grid, limit) = (op.grid(call, variant), self.device.info().max_grid);
        if grid.iter().any(|&count| count > limit) {
            return Err(Error::GridTooLarge { op: op.name(), grid, limit });
        }
        let mut pairs = Vec::with_capacity(slices.len());
        for slice in slices {
            let buffer = slice.buffer().gpu();
            pairs.push((buffer.ok_or_else(|| slice.buffer().foreign(op.name()))?, slice));
        }
        let uniforms = gpu.uniforms.as_ref().map(|uniforms| &uniforms.buffer);
        let group = gpu.groups.get(&gpu.device, pipeline, uniforms, &pairs);
        let timed = TimedOp { op: op.name(), variant: variant.name, format: call.format };
        let seconds = gpu.estimate(op.work(call));
        Ok(Prepared { pipeline: Arc::clone(pipeline), group, call: *call, grid, timed, seconds })
    }

    /// Runs one dispatch to its end inside error scopes, so that what is wrong names its op.
    fn run_checked(
        &mut self,
        gpu: &Gpu,
        dispatch: &Dispatch<Slice>,
        chosen: &Chosen,
        profile: Option<&Profile>,
    ) -> Result<(), Error> {
        let (result, error) = scoped(&gpu.device, || {
            let prepared = self.prepare(gpu, dispatch, chosen)?;
            if profile.is_some() && !gpu.has_timers() {
                return run_by_clock(gpu, prepared, &self.device.inner.profile);
            }
            gpu.submit(&[prepared], profile)?;
            gpu.wait()
        });
        let fail = |message: String| Error::Dispatch {
            op: dispatch.op.name(),
            variant: chosen.variant.name,
            message: one_line(&message),
        };
        match (result, error) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(error)) => Err(fail(error.to_string())),
            (Err(Error::Driver { message } | Error::Lost { message }), _) => Err(fail(message)),
            (Err(error), _) => Err(error),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let inner = &*self.device.inner;
        if let Backend::Gpu(gpu) = &inner.backend {
            gpu.submit(&self.batch, inner.options.profile.then_some(&inner.profile))?;
        }
        self.batch.clear();
        self.seconds = 0.0;
        Ok(())
    }
}

/// The first of these variants that the driver compiles.
fn first_that_compiles(
    variants: Vec<Variant>,
    compile: impl Fn(&Variant) -> Result<Arc<Pipeline>, Error>,
) -> Result<Chosen, Error> {
    let mut refused = None;
    for variant in variants {
        match compile(&variant) {
            Ok(pipeline) => return Ok(Chosen::new(variant, pipeline)),
            Err(error @ Error::Shader { .. }) => {
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    // The first one's error: there is one, since there was a variant.
    Err(refused.unwrap_or(Error::Driver { message: "no variant was tried".into() }))
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if !self.batch.is_empty() || self.error.is_some() {
            tracing::warn!("a recorder was dropped before it was submitted");
        }
    }
}

/// Runs one dispatch and times it with the host clock.
fn run_by_clock(gpu: &Gpu, prepared: Prepared, profile: &Profile) -> Result<(), Error> {
    gpu.wait()?;
    let start = Instant::now();
    let timed = prepared.timed;
    gpu.submit(&[prepared], None)?;
    gpu.wait()?;
    profile.add(timed, start.elapsed());
    Ok(())
}
