//! Accounting: every byte on a device is charged to a category.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use edge_kernels::Category;

use crate::sync::Lock;

const CATEGORIES: usize = Category::ALL.len();

/// Bytes in use, now and at most, in the order of [`Category::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes in use now.
    pub current: [u64; CATEGORIES],
    /// Most bytes that were in use at once in each category since the last reset; the peaks of
    /// two categories need not fall together.
    pub peak: [u64; CATEGORIES],
    /// Bytes in use now.
    pub current_total: u64,
    /// Most bytes that were in use at once since the last reset.
    pub peak_total: u64,
}

impl MemoryReport {
    fn raise(&mut self) {
        for (peak, current) in self.peak.iter_mut().zip(self.current) {
            *peak = (*peak).max(current);
        }
        self.peak_total = self.peak_total.max(self.current_total);
    }
}

/// The books of one device.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    report: Lock<MemoryReport>,
    sealed: AtomicBool,
}

impl Ledger {
    /// Charges `bytes` for as long as the result lives.
    pub(crate) fn charge(self: &Arc<Self>, category: Category, bytes: u64) -> Charge {
        let mut charge = Charge { ledger: Arc::clone(self), category, bytes: 0 };
        charge.grow(bytes);
        charge
    }

    pub(crate) fn report(&self) -> MemoryReport {
        *self.report.lock()
    }

    /// Peaks start again at what is in use now.
    pub(crate) fn reset_peak(&self) {
        let mut report = self.report.lock();
        report.peak = report.current;
        report.peak_total = report.current_total;
    }

    pub(crate) fn seal(&self, sealed: bool) {
        self.sealed.store(sealed, Ordering::SeqCst);
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::SeqCst)
    }
}

/// Bytes that are in use until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    ledger: Arc<Ledger>,
    category: Category,
    bytes: u64,
}

impl Charge {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Charges more.
    pub(crate) fn grow(&mut self, bytes: u64) {
        let mut report = self.ledger.report.lock();
        report.current[self.category.index()] += bytes;
        report.current_total += bytes;
        report.raise();
        self.bytes += bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut report = self.ledger.report.lock();
        report.current[self.category.index()] -= self.bytes;
        report.current_total -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_kept_and_reset() {
        let ledger = Arc::new(Ledger::default());
        let weights = ledger.charge(Category::Weights, 100);
        let scratch = ledger.charge(Category::Activations, 50);
        drop(scratch);
        let mut more = ledger.charge(Category::Weights, 7);
        more.grow(3);
        let report = ledger.report();
        assert_eq!(report.current[Category::Weights.index()], 110);
        assert_eq!(report.current_total, 110);
        assert_eq!(report.peak[Category::Activations.index()], 50);
        assert_eq!(report.peak_total, 150);
        ledger.reset_peak();
        drop(weights);
        drop(more);
        let report = ledger.report();
        assert_eq!((report.current_total, report.peak_total), (0, 110));
        assert_eq!(report.peak[Category::Activations.index()], 0);
    }
}
