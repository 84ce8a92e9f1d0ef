//! Weights in 2 bits with an f16 scale per `GROUP` columns, in blocks of 32 columns, block-major
//! with the row fastest. Any number of columns: columns beyond the last meet inputs that read as 0.
//!
//! Same names as `weights/f32.wgsl`. Bits 2i .. 2i + 2 of the bytes of word `w` of a block
//! are columns 16w + 4i .. 16w + 4i + 4; the four levels are -1.5, -0.5, 0.5 and 1.5.

@group(0) @binding(3) var<storage, read> w: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> w_scales: array<u32>;

const W_STEP: u32 = 32u;
const GROUP: u32 = 32u;  //#spec 32 or 64 columns that share a scale

fn w_scale(n: u32, block: u32) -> f32 {
    let pair = w_scales[block / (GROUP / W_STEP) * ((w_rows() + 1u) / 2u) + n / 2u];
    let scales = unpack2x16float(pair);
    return select(scales.x, scales.y, (n & 1u) == 1u);
}

struct WBlock {
    words: vec2<u32>,
    scale: f32,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    return WBlock(w[block * w_rows() + n], w_scale(n, block));
}

// The lowest two bits of four bytes, scaled.
fn w_levels(bytes: u32, scale: f32) -> vec4<f32> {
    let levels = (vec4(bytes) >> vec4(0u, 8u, 16u, 24u)) & vec4(3u);
    return (vec4<f32>(levels) - 1.5) * scale;
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let word = select(block.words.x, block.words.y, part >= 2u) >> (4u * (part & 1u));
    return mat2x4<f32>(w_levels(word, block.scale), w_levels(word >> 2u, block.scale));
}
