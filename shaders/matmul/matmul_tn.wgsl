//! dW[n,k] (+)= alpha · dY[m,n]ᵀ · X[m,k], or `splits` partial sums over m of it
//!
//! dy: [m, n] f32, rows ld_dy apart · x: [m, k] f32 · dw: [splits, n, k] f32
//! Grid: x and y, folded: one workgroup a tile of outputs whose size the body chooses, k fastest;
//! z: the part of m. Shared: up to 16 KiB, by body. Needs: nothing beyond core WebGPU.
//!
//! How is the body's: `lib/tn_tile.wgsl` says what a body is.

const DY_BINDING: u32 = 1u;
const X_BINDING: u32 = 2u;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    ld_dy: u32,
    dy_offset: u32,
    splits: u32,
    accumulate: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
//#include "lib/dy_vec4.wgsl"
//#include "lib/x_vec4.wgsl"
//#include "lib/stored_one.wgsl"
@group(0) @binding(3) var<storage, read_write> dw: array<Stored>;

// Takes four sums over m.
fn store_quad(part: u32, row: u32, col: u32, products: vec4<f32>) {
    let at = (part * params.n + row) * params.k + col;
    // Rolled: this is written out for every quad of a thread, and compile time counts.
    for (var c = 0u; c < 4u; c += STORED) {
        if col + c < params.k {
            var value = params.alpha * stored_of(products, c);
            if params.accumulate == 1u {
                value += dw[(at + c) / STORED];
            }
            dw[(at + c) / STORED] = value;
        }
    }
}

//#include "lib/tn_tile.wgsl"

@compute @workgroup_size(WX, WY)
fn matmul_tn(
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    multiply(lane.xy, workgroup.y * workgroups.x + workgroup.x, workgroup.z);
}
