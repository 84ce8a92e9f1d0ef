//! What each operation is: its parameters, its WGSL, its definition on the host, the calls to
//! test it with, its cost and its tolerance. No GPU API: `edge-gpu` runs what is described here.
//!
//! * [`op`] — the vocabulary: [`op::Op`], [`op::Call`], [`op::Dispatch`].
//! * [`ops`] — the operations, and [`OPS`], the registry that everything else loops over.
//! * [`format`](mod@format) — how weights are stored.
//! * [`packing`](mod@packing) — how packed weights are laid out.
//! * [`pack`] — matrices into those formats and back.
//! * [`check`] — a device's answer against the reference's.
//! * [`preference`] — which variant a device runs, where nothing was measured.
//! * [`tuning`] — which variant a device runs, where that was measured.
//! * [`shader`] — the assembler: from files under `shaders/` to the text of one variant.

pub mod check;
pub mod format;
mod lanes;
pub mod op;
pub mod ops;
pub mod pack;
pub mod packing;
pub mod preference;
pub mod shader;
pub mod tuning;
pub mod util;

pub use format::{Category, Format, Packing, Sparsity};
pub use op::{Call, Dispatch, Op};
pub use ops::OPS;
