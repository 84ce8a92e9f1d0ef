//! Small helpers that op files share.

use rand::{Rng, RngExt, SeedableRng};

use crate::op::CaseBuffer;

/// The random generator of cases, initial weights and data order: the same numbers everywhere.
pub type SeededRng = rand::rngs::ChaCha8Rng;

/// The generator of a seed.
pub fn seeded(seed: u64) -> SeededRng {
    SeededRng::seed_from_u64(seed)
}

/// Most workgroups in one dimension of a grid, on any adapter.
pub const MAX_GRID: u32 = 65535;

/// A grid of at least `count` workgroups, folded over two dimensions where one is too short. The
/// shader computes `workgroup.y * workgroups.x + workgroup.x` and stops at its own count.
pub fn fold_grid(count: u32) -> [u32; 3] {
    let count = count.max(1);
    let y = count.div_ceil(MAX_GRID);
    [count.div_ceil(y), y, 1]
}

/// Workgroup size for one workgroup a row of `cols` elements: a power of two in 8..=256, about
/// four elements a lane.
pub fn row_workgroup(cols: u32) -> u32 {
    (cols / 4).next_power_of_two().clamp(8, 256)
}

/// `len` floats, uniform in `low..high`.
pub fn uniform_f32(rng: &mut SeededRng, len: usize, low: f32, high: f32) -> CaseBuffer {
    CaseBuffer::F32(uniform_vec(rng, len, low, high))
}

/// `len` floats, uniform in `low..high`.
pub fn uniform_vec(rng: &mut impl Rng, len: usize, low: f32, high: f32) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(low..high)).collect()
}
