//! Cooperative matrices of 16 x 16: operands in f16, sums in f32. What GPUs offer through Vulkan.
enable f16;
enable wgpu_cooperative_matrix;

const SIDE: u32 = 16u;

alias Staged = f16;
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;

// Beyond the largest f16 is that one: a sum stays finite.
fn staged(values: vec4<f32>) -> vec4<Staged> {
    return vec4<f16>(clamp(values, vec4(-65504.0), vec4(65504.0)));
}

//#include "lib/coop_quads.wgsl"
