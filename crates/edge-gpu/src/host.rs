//! Memory of the `cpu` device: the only place where slices are made from shared words.
//!
//! Why this is sound. A [`HostMemory`] is reached through slices that any number of threads may
//! hold, so its words sit in an `UnsafeCell` and nobody holds a reference to them between calls.
//! Every reference is made by a function below, lives for the length of one closure, and is made
//! under the device's [`HostLock`], of which there is one per device; the functions take the
//! lock's guard as a witness, and the caller has checked that the buffer belongs to the device
//! of that lock. So references made by two threads never live at the same time. Within
//! one dispatch, [`check_aliasing`] has refused every set of bindings in which a buffer that is
//! written is bound twice; what remains is shared references to words that nobody writes and
//! unique references to words that nobody else sees.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::UnsafeCell;
use std::sync::MutexGuard;

use edge_kernels::op::{Access, Binding, HostBuffer};

use crate::buffer::Slice;
use crate::error::Error;
use crate::sync::Lock;

/// What a thread must hold to touch the memory of a `cpu` device.
pub(crate) type HostLock = Lock<()>;

/// Proof that the thread holds the device's [`HostLock`].
pub(crate) type Witness<'a> = MutexGuard<'a, ()>;

/// Zeroed words.
pub(crate) struct HostMemory(UnsafeCell<Box<[u32]>>);

// SAFETY: all access is under the device's lock, see the module.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `words` zeroed words; `None` where the system has no memory left. Pages are touched on
    /// first use only.
    pub(crate) fn new(words: u64) -> Option<Self> {
        let words = usize::try_from(words).ok().filter(|words| *words > 0)?;
        let layout = Layout::array::<u32>(words).ok()?;
        // SAFETY: the layout is not of size zero.
        let pointer = unsafe { alloc_zeroed(layout) }.cast::<u32>();
        if pointer.is_null() {
            return None;
        }
        // SAFETY: allocated by the global allocator with the layout of `[u32; words]`, and zero
        // is a valid u32.
        let words = unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(pointer, words)) };
        Some(Self(UnsafeCell::new(words)))
    }

    /// Words `offset..offset + len`, for reading.
    ///
    /// # Safety
    /// For the life of the result the caller holds the device's lock and makes no mutable slice
    /// that overlaps it.
    unsafe fn get(&self, offset: u64, len: u64) -> &[u32] {
        // SAFETY: the caller's promise; the bounds were checked when the slice was made.
        let words = unsafe { &*self.0.get() };
        &words[offset as usize..(offset + len) as usize]
    }

    /// Words `offset..offset + len`, for writing.
    ///
    /// # Safety
    /// For the life of the result the caller holds the device's lock and makes no other slice
    /// of this memory.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get_mut(&self, offset: u64, len: u64) -> &mut [u32] {
        // SAFETY: the caller's promise; the bounds were checked when the slice was made.
        let words = unsafe { &mut *self.0.get() };
        &mut words[offset as usize..(offset + len) as usize]
    }
}

/// Reads a slice.
pub(crate) fn read(memory: &HostMemory, slice: &Slice, _: &Witness<'_>) -> Vec<u32> {
    // SAFETY: the witness, and the reference ends with this function.
    unsafe { memory.get(slice.offset_words(), slice.words()) }.to_vec()
}

/// Lets `fill` write a slice.
pub(crate) fn write<R>(
    memory: &HostMemory,
    slice: &Slice,
    _: &Witness<'_>,
    fill: impl FnOnce(&mut [u32]) -> R,
) -> R {
    // SAFETY: the witness; `fill` cannot reach the memory by another way, because every way
    // takes the lock that this thread holds.
    fill(unsafe { memory.get_mut(slice.offset_words(), slice.words()) })
}

/// Runs `body` on the slices of a dispatch.
pub(crate) fn with_buffers(
    op: &'static str,
    bindings: &[Binding],
    slices: &[Slice],
    _: &Witness<'_>,
    body: impl FnOnce(&mut [HostBuffer<'_>]),
) -> Result<(), Error> {
    check_aliasing(op, bindings, slices)?;
    let mut buffers = Vec::with_capacity(slices.len());
    for (binding, slice) in bindings.iter().zip(slices) {
        let Some(memory) = slice.buffer().host() else {
            return Err(slice.buffer().foreign(op));
        };
        let (offset, words) = (slice.offset_words(), slice.words());
        buffers.push(match binding.access {
            // SAFETY: the witness; no binding of this buffer is written (`check_aliasing`).
            Access::Read => HostBuffer::Read(unsafe { memory.get(offset, words) }),
            // SAFETY: the witness; this is the only binding of this buffer (`check_aliasing`).
            Access::ReadWrite => HostBuffer::ReadWrite(unsafe { memory.get_mut(offset, words) }),
        });
    }
    body(&mut buffers);
    Ok(())
}

/// Refuses a dispatch that binds a written buffer twice, disjoint slices included: wgpu tracks
/// hazards by whole buffer, so that what this allows runs on every device.
pub(crate) fn check_aliasing(
    op: &'static str,
    bindings: &[Binding],
    slices: &[Slice],
) -> Result<(), Error> {
    for (index, slice) in slices.iter().enumerate() {
        if bindings[index].access != Access::ReadWrite {
            continue;
        }
        let id = slice.buffer().id();
        let twin = (0..slices.len()).find(|&i| i != index && slices[i].buffer().id() == id);
        if let Some(other) = twin {
            return Err(Error::BindingOverlap {
                op,
                written: bindings[index].name,
                other: bindings[other].name,
                label: slice.buffer().label().to_string(),
            });
        }
    }
    Ok(())
}
