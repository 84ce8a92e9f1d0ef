//! One or four elements an invocation: what the elementwise ops share.
//!
//! Their shaders include `lib/scalar.wgsl` and index arrays of its `Element`; sizes and offsets
//! that are multiples of four let a variant include `lib/vec4.wgsl` instead. Both are portable,
//! so a call has the one variant that suits its sizes.

use rayon::prelude::*;

use crate::op::Variant;
use crate::util::fold_grid;

/// Elements of the host that one task treats.
const TASK: usize = 1 << 14;

/// Elements of `out`, in parallel: `out[i] = value(i, out[i])`.
pub(crate) fn map_in_place<T: Send + Copy>(out: &mut [T], value: impl Fn(usize, T) -> T + Sync) {
    out.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = value(task * TASK + i, *out);
        }
    });
}

/// Whether all of these sizes and offsets are multiples of four.
pub(crate) fn by_four(sizes: &[u32]) -> bool {
    sizes.iter().all(|size| size.is_multiple_of(4))
}

/// The variant for sizes that are, or are not, all multiples of four.
pub(crate) fn variant(by_four: bool) -> Variant {
    if by_four {
        Variant::named("vec4").fragment("lib/scalar.wgsl", "lib/vec4.wgsl")
    } else {
        Variant::named("scalar")
    }
}

/// The grid for `elements` elements in workgroups of `width` invocations.
pub(crate) fn grid(elements: u64, by_four: bool, width: u32) -> [u32; 3] {
    let invocations = if by_four { elements / 4 } else { elements };
    let workgroups = invocations.div_ceil(u64::from(width));
    fold_grid(u32::try_from(workgroups).expect("fewer than 2^32 workgroups"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::MAX_GRID;

    #[test]
    fn grids_reach_every_element_of_two_to_the_31() {
        for (elements, four) in
            [(0, true), (1, false), (4, true), (1 << 31, false), (1 << 31, true)]
        {
            let [x, y, z] = grid(elements, four, 256);
            assert!(x <= MAX_GRID && y <= MAX_GRID && z == 1);
            let reached = u64::from(x) * u64::from(y) * 256 * if four { 4 } else { 1 };
            assert!(reached >= elements, "{elements}");
            // The shader's index is a u32.
            assert!(reached <= 1 << 32, "{elements}");
        }
    }

    /// Both fragments give every includer the same names and types.
    #[test]
    fn naga_accepts_every_shader() {
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        let mut seen = std::collections::HashSet::new();
        for op in crate::OPS {
            for case in op.cases() {
                for variant in op.variants(&case.call) {
                    let shader = crate::shader::assemble(*op, &variant, false)
                        .unwrap_or_else(|error| panic!("{}: {error}", op.name()));
                    if !seen.insert(shader.text.clone()) {
                        continue;
                    }
                    let name = format!("{} {} {}", op.name(), case.name, variant.name);
                    let module = naga::front::wgsl::parse_str(&shader.text)
                        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&shader.text)));
                    Validator::new(ValidationFlags::all(), Capabilities::all())
                        .validate(&module)
                        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&shader.text)));
                }
            }
        }
        assert!(seen.len() >= crate::OPS.len());
    }
}
