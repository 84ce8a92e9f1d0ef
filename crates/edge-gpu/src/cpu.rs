//! The `cpu` device: ops run as their definitions, at once, on host memory.

use std::time::Instant;

use edge_kernels::Dispatch;
use edge_kernels::op::Binding;

use crate::buffer::Slice;
use crate::error::Error;
use crate::host::{self, HostLock};
use crate::profile::{Profile, TimedOp};

/// State of the `cpu` device.
#[derive(Default)]
pub(crate) struct Cpu {
    lock: HostLock,
}

impl Cpu {
    pub(crate) fn run(
        &self,
        dispatch: &Dispatch<Slice>,
        bindings: &[Binding],
        profile: Option<&Profile>,
    ) -> Result<(), Error> {
        let Dispatch { op, call, bindings: slices } = dispatch;
        let witness = self.lock.lock();
        let start = Instant::now();
        host::with_buffers(op.name(), bindings, slices, &witness, |buffers| {
            op.reference(call, buffers);
        })?;
        if let Some(profile) = profile {
            let timed = TimedOp { op: op.name(), variant: "reference", format: call.format };
            profile.add(timed, start.elapsed());
        }
        Ok(())
    }

    pub(crate) fn read(&self, slice: &Slice) -> Result<Vec<u32>, Error> {
        let memory = slice.buffer().host().ok_or_else(|| slice.buffer().foreign("read"))?;
        Ok(host::read(memory, slice, &self.lock.lock()))
    }

    pub(crate) fn write<R>(
        &self,
        slice: &Slice,
        fill: impl FnOnce(&mut [u32]) -> R,
    ) -> Result<R, Error> {
        let memory = slice.buffer().host().ok_or_else(|| slice.buffer().foreign("write"))?;
        Ok(host::write(memory, slice, &self.lock.lock(), fill))
    }
}
