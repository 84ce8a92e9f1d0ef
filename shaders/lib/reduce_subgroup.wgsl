//! Sums and maxima over a workgroup: subgroups first, then one value per subgroup through
//! workgroup memory. Right at any subgroup size, a size that varies between dispatches included.
//!
//! Same names and rules as `lib/reduce.wgsl`.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    // naga has no subgroupElect.
    @builtin(subgroup_invocation_id) invocation: u32,
}

// One slot per subgroup; a subgroup may be as small as one lane.
var<workgroup> reduce_scratch: array<f32, WG>;

fn workgroup_sum(x: f32, lane: Lane) -> f32 {
    let partial = subgroupAdd(x);
    if lane.invocation == 0u {
        reduce_scratch[lane.subgroup] = partial;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var s = 0u; s < lane.subgroups; s++) {
        total += reduce_scratch[s];
    }
    // The next call may overwrite the scratch.
    workgroupBarrier();
    return total;
}

fn workgroup_max(x: f32, lane: Lane) -> f32 {
    let partial = subgroupMax(x);
    if lane.invocation == 0u {
        reduce_scratch[lane.subgroup] = partial;
    }
    workgroupBarrier();
    var total = reduce_scratch[0];
    for (var s = 1u; s < lane.subgroups; s++) {
        total = max(total, reduce_scratch[s]);
    }
    workgroupBarrier();
    return total;
}
