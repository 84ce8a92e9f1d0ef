//! Products of eight 2:4 weights of channel `j` with the activations that they keep, pasted into a
//! loop: every lane takes its own from the lanes that hold them (`lib/handed_pick.wgsl`).
let weights = w_raw(block[j], part);
let kept = block[j].positions >> (16u * part);
// Two bits are the position; the third is of no account, since four lanes hold what four others do.
let near_lanes = (vec4(kept) >> vec4(0u, 2u, 4u, 6u)) & vec4(7u);
let far_lanes = (vec4(kept) >> vec4(8u, 10u, 12u, 14u)) & vec4(7u);
//#unroll
for (var i = 0u; i < TM; i++) {
    let near = vec4(
        subgroupShuffle(low[i].x, near_lanes.x),
        subgroupShuffle(low[i].x, near_lanes.y),
        subgroupShuffle(low[i].y, near_lanes.z),
        subgroupShuffle(low[i].y, near_lanes.w),
    );
    let far = vec4(
        subgroupShuffle(low[i].z, far_lanes.x),
        subgroupShuffle(low[i].z, far_lanes.y),
        subgroupShuffle(low[i].w, far_lanes.z),
        subgroupShuffle(low[i].w, far_lanes.w),
    );
    sum[i * TN + j] += dot(near, weights[0]) + dot(far, weights[1]);
}
