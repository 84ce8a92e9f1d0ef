//! Sums and maxima over a workgroup, through workgroup memory.
//!
//! The includer gives `const WG` (a power of two, the workgroup size) and takes a `Lane` as an
//! entry point argument. `lib/reduce_subgroup.wgsl` defines the same names with subgroups.
//! Call from uniform control flow only: the functions contain barriers.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> reduce_scratch: array<f32, WG>;

fn workgroup_sum(x: f32, lane: Lane) -> f32 {
    reduce_scratch[lane.index] = x;
    workgroupBarrier();
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        if lane.index < stride {
            reduce_scratch[lane.index] += reduce_scratch[lane.index + stride];
        }
        workgroupBarrier();
    }
    let total = reduce_scratch[0];
    // The next call may overwrite the scratch.
    workgroupBarrier();
    return total;
}

fn workgroup_max(x: f32, lane: Lane) -> f32 {
    reduce_scratch[lane.index] = x;
    workgroupBarrier();
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        if lane.index < stride {
            reduce_scratch[lane.index] =
                max(reduce_scratch[lane.index], reduce_scratch[lane.index + stride]);
        }
        workgroupBarrier();
    }
    let total = reduce_scratch[0];
    workgroupBarrier();
    return total;
}
