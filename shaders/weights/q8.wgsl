//! Weights in 8 bits with an f16 scale per `GROUP` columns, in blocks of 32 columns, block-major
//! with the row fastest. Any number of columns: the last block is padded with zeros.
//!
//! Same names as `weights/f32.wgsl`.

@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> w_scales: array<u32>;

const W_STEP: u32 = 32u;
const GROUP: u32 = 32u;  //#spec 32 or 64 columns that share a scale

struct WBlock {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let at = 2u * (block * w_rows() + n);
    let pair = w_scales[block / (GROUP / W_STEP) * ((w_rows() + 1u) / 2u) + n / 2u];
    let scales = unpack2x16float(pair);
    return WBlock(w[at], w[at + 1u], select(scales.x, scales.y, (n & 1u) == 1u));
}

// Four signed bytes, scaled.
fn w_bytes(word: u32, scale: f32) -> vec4<f32> {
    let spread = vec4<i32>(vec4(word) << vec4(24u, 16u, 8u, 0u));
    return vec4<f32>(spread >> vec4(24u)) * scale;
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let words = select(block.low, block.high, part >= 2u);
    let pair = select(words.xy, words.zw, (part & 1u) == 1u);
    return mat2x4<f32>(w_bytes(pair.x, block.scale), w_bytes(pair.y, block.scale));
}
