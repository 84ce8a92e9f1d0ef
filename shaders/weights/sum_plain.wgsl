//! What the dense formats have in place of scales: their sums are whole.

fn w_unscaled(block: WBlock, part: u32) -> mat2x4<f32> {
    return w_part(block, part);
}

fn w_sum(sum: f32, x_sum: f32, block: WBlock) -> f32 {
    return sum;
}

const W_FACTORS: vec4<f32> = vec4(1.0);

fn w_raw(block: WBlock, part: u32) -> mat2x4<f32> {
    return w_part(block, part);
}

fn w_raw_sum(sum: f32, x_sum: f32, block: WBlock) -> f32 {
    return sum;
}
