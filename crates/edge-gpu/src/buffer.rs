//! Device memory: buffers, and slices of them, which are what a dispatch binds.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use edge_kernels::Category;

use crate::error::Error;
use crate::host::HostMemory;
use crate::ledger::Charge;
use crate::pipeline::BindGroups;

/// Device memory, counted in 32-bit words and charged to a category until the last handle (or
/// slice) of it is dropped. Cheap to clone.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

pub(crate) enum Storage {
    Gpu {
        buffer: wgpu::Buffer,
        groups: Weak<BindGroups>,
    },
    Host(HostMemory),
    /// Of a dry device.
    None,
}

struct Inner {
    id: u64,
    device: u64,
    label: String,
    words: u64,
    alignment_words: u64,
    category: Category,
    storage: Storage,
    _charge: Charge,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A cached bind group would keep the memory alive.
        if let Storage::Gpu { groups, .. } = &self.storage
            && let Some(groups) = groups.upgrade()
        {
            groups.purge(self.id);
        }
    }
}

/// Number of the next buffer or device: never reused, so that caches can be keyed by it.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Buffer {
    pub(crate) fn new(
        device: u64,
        label: &str,
        words: u64,
        alignment_words: u64,
        category: Category,
        storage: Storage,
        charge: Charge,
    ) -> Self {
        Self(Arc::new(Inner {
            id: next_id(),
            device,
            label: label.to_string(),
            words,
            alignment_words,
            category,
            storage,
            _charge: charge,
        }))
    }

    /// Size in 32-bit words.
    pub fn words(&self) -> u64 {
        self.0.words
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        4 * self.0.words
    }

    /// The label that it was made with.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// The category that it is charged to.
    pub fn category(&self) -> Category {
        self.0.category
    }

    /// All of it.
    pub fn whole(&self) -> Slice {
        Slice { buffer: self.clone(), offset_words: 0, words: self.0.words }
    }

    /// `words` words from `offset_words` on.
    ///
    /// # Panics
    /// When the range is empty or not inside the buffer, or when the offset is no multiple of
    /// [`crate::DeviceInfo::alignment_words`]: both are mistakes of the caller's arithmetic.
    pub fn slice(&self, offset_words: u64, words: u64) -> Slice {
        let inside = offset_words.checked_add(words).is_some_and(|end| end <= self.0.words);
        assert!(
            words > 0 && inside,
            "slice {offset_words}+{words} of buffer '{}' of {} words",
            self.0.label,
            self.0.words
        );
        assert!(
            offset_words.is_multiple_of(self.0.alignment_words),
            "slice of buffer '{}' at word {offset_words}, no multiple of {}",
            self.0.label,
            self.0.alignment_words
        );
        Slice { buffer: self.clone(), offset_words, words }
    }

    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    pub(crate) fn device(&self) -> u64 {
        self.0.device
    }

    pub(crate) fn gpu(&self) -> Option<&wgpu::Buffer> {
        match &self.0.storage {
            Storage::Gpu { buffer, .. } => Some(buffer),
            Storage::Host(_) | Storage::None => None,
        }
    }

    pub(crate) fn host(&self) -> Option<&HostMemory> {
        match &self.0.storage {
            Storage::Gpu { .. } | Storage::None => None,
            Storage::Host(memory) => Some(memory),
        }
    }

    pub(crate) fn foreign(&self, user: &str) -> Error {
        Error::ForeignBuffer { user: user.to_string(), label: self.0.label.clone() }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer('{}', {} words)", self.0.label, self.0.words)
    }
}

/// A range of a [`Buffer`]; keeps the buffer alive.
#[derive(Clone, Debug)]
pub struct Slice {
    buffer: Buffer,
    offset_words: u64,
    words: u64,
}

impl Slice {
    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// First word, from the start of the buffer.
    pub fn offset_words(&self) -> u64 {
        self.offset_words
    }

    /// Size in 32-bit words.
    pub fn words(&self) -> u64 {
        self.words
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        4 * self.words
    }
}
