//! out[i] = value, bit by bit
//!
//! out: [count] words of any type
//! Grid: one invocation per LANES words. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 256u;

struct Params {
    count: u32,
    value_bits: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<Word>;

@compute @workgroup_size(WG)
fn fill(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.count / LANES {
        return;
    }
    out[i] = Word(params.value_bits);
}
