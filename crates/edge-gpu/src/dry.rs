//! A device that runs nothing and keeps a list of what it was asked to run: from the same code
//! that records production's dispatches, a plan learns what they will be.

use edge_kernels::{Call, Dispatch, Op};

use crate::buffer::Slice;
use crate::sync::Lock;

/// A dispatch of the list, without its buffers.
pub type Listed = (&'static dyn Op, Call);

/// State of a dry device.
#[derive(Default)]
pub(crate) struct Dry {
    pub(crate) calls: Lock<Vec<Listed>>,
    /// [`crate::Device::staging_bytes`] of the device that it stands for.
    pub(crate) staging_bytes: u64,
    /// [`crate::Device::stages_uploads`] of the device that it stands for.
    pub(crate) stages_uploads: bool,
}

impl Dry {
    pub(crate) fn add(&self, dispatch: &Dispatch<Slice>) {
        self.calls.lock().push((dispatch.op, dispatch.call));
    }

    pub(crate) fn take(&self) -> Vec<Listed> {
        std::mem::take(&mut self.calls.lock())
    }
}
