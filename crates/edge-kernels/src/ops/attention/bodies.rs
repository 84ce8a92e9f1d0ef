//! The bodies of the attention ops that go through workgroup memory, and how they are divided.
//! `shaders/lib/attention_shared.wgsl` says how they work.

use crate::lanes;
use crate::op::{Hardware, Variant};
use crate::util::fold_grid;

use super::shape::Params;

/// Bytes of workgroup memory that every device has.
const WORKGROUP_BYTES: u32 = 16384;

/// Longest head: of longer ones held rows take all of the workgroup memory.
const MAX_HEAD_DIM: u32 = 256;

/// Workgroups below which four rows are held instead of eight, so that there are more of them.
const FEW: u32 = 64;

/// Workgroups from which 128 lanes are as good as 256: there are others to run while one waits.
const MANY: u32 = 512;

/// What an op's body holds.
pub(super) struct Shared {
    /// The fragment without workgroup memory that the op's file includes, and this body.
    pub body: [&'static str; 2],
    /// Rows that a workgroup holds where there are enough: query rows, or keys.
    pub held: u32,
    /// Kinds of products of a held and a streamed row, and so rows in workgroup memory for each
    /// held one: 2 in the backward pass, which multiplies d_out and v as well.
    pub products: u32,
    /// Floats that lanes of a slot hand each other for each held row.
    pub handed: u32,
}

/// How a call is divided.
struct Division {
    /// Rows of a workgroup.
    held: u32,
    /// Lanes of a streamed row.
    parts: u32,
    /// Rows streamed at once, a power of two.
    slots: u32,
    /// Workgroups.
    count: u32,
}

impl Shared {
    /// The division of a call with `rows` rows to hold a key-value head.
    fn division(&self, p: &Params, rows: u32) -> Division {
        let count = |held: u32| p.batch * p.kv_heads * rows.div_ceil(held);
        // Registers and workgroup memory are for two quads of eight rows a lane.
        let held = if p.head_dim > 128 || count(self.held) < FEW { 4 } else { self.held };
        let parts = (p.head_dim / 4).div_ceil(2);
        let lanes = if count(held) < MANY { 256 } else { 128 };
        let mut slots = 1 << (lanes / parts).ilog2();
        while self.bytes(held, parts, slots) > WORKGROUP_BYTES {
            slots /= 2;
        }
        Division { held, parts, slots, count: count(held) }
    }

    /// Bytes of workgroup memory, as the fragments declare it.
    fn bytes(&self, held: u32, parts: u32, slots: u32) -> u32 {
        let shares = self.products * held / 4 * (slots * (parts + 1) + 4) * 16;
        shares + self.products * held * 2 * parts * 16 + self.handed * slots * held * 4
    }

    /// The variant for a call with `rows` rows to hold a key-value head, where the head allows it.
    pub(super) fn variant(&self, p: &Params, rows: u32) -> Option<Variant> {
        if !p.head_dim.is_multiple_of(4) || p.head_dim > MAX_HEAD_DIM {
            return None;
        }
        let Division { held, parts, slots, .. } = self.division(p, rows);
        let variant = Variant { name: "shared", ..lanes::variant(true) };
        let variant = variant.fragment(self.body[0], self.body[1]).spec("HEAD_DIM", p.head_dim);
        let variant = variant.spec("HELD", held).spec("PARTS", parts).spec("SLOTS", slots);
        Some(variant.suits(Hardware::Gpu))
    }

    /// The workgroups of that variant.
    pub(super) fn grid(&self, p: &Params, rows: u32) -> [u32; 3] {
        fold_grid(self.division(p, rows).count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Call, Op};
    use crate::ops::attention::attention_backward_kv::AttentionBackwardKv;
    use crate::ops::attention::attention_backward_q::AttentionBackwardQ;
    use crate::ops::attention::attention_forward::AttentionForward;
    use crate::preference::{Vendor, by_preference};

    const ATTENTION: [&dyn Op; 3] = [&AttentionForward, &AttentionBackwardQ, &AttentionBackwardKv];

    fn first(op: &dyn Op, p: &Params, hardware: Hardware) -> &'static str {
        by_preference(op.variants(&Call::new(p)), hardware, Vendor::Other)[0].name
    }

    #[test]
    fn only_gpus_go_through_workgroup_memory() {
        let p = Params::causal(1, 256, 32, 4, 64);
        for op in ATTENTION {
            assert_eq!(first(op, &p, Hardware::Gpu), "shared");
            assert_eq!(first(op, &p, Hardware::Software), "vec4");
        }
    }

    #[test]
    fn heads_that_do_not_fit_have_the_other_body() {
        for (head_dim, name) in [(6, "scalar"), (7, "scalar"), (256, "shared"), (260, "vec4")] {
            for op in ATTENTION {
                let p = Params::causal(1, 5, 2, 1, head_dim);
                assert_eq!(first(op, &p, Hardware::Gpu), name, "{} {head_dim}", op.name());
            }
        }
    }

    /// A slot's accumulators are summed by as many slots as there are planes of `shares`, four
    /// slots at a time, at any size of a head.
    #[test]
    fn every_division_fits_a_workgroup() {
        for head_dim in (4..=MAX_HEAD_DIM).step_by(4) {
            for seq_len in [1, 37, 256, 4096] {
                let p = Params::causal(1, seq_len, 8, 2, head_dim);
                for (held, products, handed) in [(8, 1, 2), (8, 2, 1), (4, 2, 2)] {
                    let shared = Shared { body: ["", ""], held, products, handed };
                    let Division { held, parts, slots, .. } = shared.division(&p, seq_len);
                    assert!(shared.bytes(held, parts, slots) <= WORKGROUP_BYTES);
                    assert!(parts * slots <= 256, "{p:?}: {parts} parts, {slots} slots");
                    assert!(slots >= 4 && slots >= products * held / 4, "{p:?}: {slots} slots");
                }
            }
        }
    }
}
