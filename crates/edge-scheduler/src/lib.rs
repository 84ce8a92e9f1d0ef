//! edge-scheduler.
