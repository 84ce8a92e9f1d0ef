//! Cooperative matrices of 8 x 8, all in f32. What GPUs offer through Metal.
enable wgpu_cooperative_matrix;

const SIDE: u32 = 8u;

alias Staged = f32;
alias MatrixA = coop_mat8x8<f32, A>;
alias MatrixB = coop_mat8x8<f32, B>;
alias MatrixC = coop_mat8x8<f32, C>;

fn staged(values: vec4<f32>) -> vec4<Staged> {
    return values;
}

//#include "lib/coop_calls.wgsl"
