//! Weights in 3 bits with an f16 scale per `GROUP` columns, in blocks of 32 columns, block-major
//! with the row fastest. Any number of columns: the last block is padded with zeros.
//!
//! Same names as `weights/f32.wgsl`. The two low bits of all values come first, laid out as
//! in `weights/q2.wgsl`; behind them one word a block with the high bits: bit i of its bytes
//! belongs to columns 4i .. 4i + 4. Values are stored plus 4.

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
    high: u32,
    scale: f32,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let at = block * w_rows() + n;
    let high = w[(w_cols() + W_STEP - 1u) / W_STEP * w_rows() + at / 2u];
    return WBlock(w[at], select(high.x, high.y, (at & 1u) == 1u), w_scale(n, block));
}

// The lowest two bits of four bytes and the lowest bit of four others, scaled.
fn w_levels(bytes: u32, high: u32, scale: f32) -> vec4<f32> {
    let joined = (bytes & 0x03030303u) | ((high & 0x01010101u) << 2u);
    let levels = (vec4(joined) >> vec4(0u, 8u, 16u, 24u)) & vec4(7u);
    return (vec4<f32>(levels) - 4.0) * scale;
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let word = select(block.words.x, block.words.y, part >= 2u) >> (4u * (part & 1u));
    let high = block.high >> (2u * part);
    let first = w_levels(word, high, block.scale);
    return mat2x4<f32>(first, w_levels(word >> 2u, high >> 1u, block.scale));
}
