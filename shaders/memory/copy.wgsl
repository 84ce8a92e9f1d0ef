//! dst[dst_offset + i] = src[src_offset + i]
//!
//! src: [src_offset + count ..] words · dst: [dst_offset + count ..] words, the rest untouched
//! Grid: one invocation per LANES words. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 256u;

struct Params {
    count: u32,
    src_offset: u32,
    dst_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<Word>;
@group(0) @binding(2) var<storage, read_write> dst: array<Word>;

@compute @workgroup_size(WG)
fn copy(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.count / LANES {
        return;
    }
    dst[params.dst_offset / LANES + i] = src[params.src_offset / LANES + i];
}
