//! Several methods on one model and one data set: runs, statistics, page.
//!
//! `entry` says what is compared, `run` runs it, `summary` has means and ratios, `page` draws them.

pub mod entry;
pub mod page;
pub mod run;
pub mod summary;
