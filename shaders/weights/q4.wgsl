//! Weights in 4 bits with an f16 scale per `GROUP` columns, in blocks of 32 columns, block-major
//! with the row fastest. Any number of columns: the last block is padded with zeros.
//!
//! Same names as `weights/f32.wgsl`. Word `part` of a block holds its columns 8 part .. 8 part + 4
//! in the low nibbles of its bytes and the next four in the high nibbles, each plus 8.

@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> w_scales: array<u32>;

const W_STEP: u32 = 32u;
const GROUP: u32 = 32u;  //#spec 32 or 64 columns that share a scale

struct WBlock {
    words: vec4<u32>,
    scale: f32,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let pair = w_scales[block / (GROUP / W_STEP) * ((w_rows() + 1u) / 2u) + n / 2u];
    let scales = unpack2x16float(pair);
    return WBlock(w[block * w_rows() + n], select(scales.x, scales.y, (n & 1u) == 1u));
}

// Four nibbles of bytes, scaled.
fn w_nibbles(bytes: u32, scale: f32) -> vec4<f32> {
    let nibbles = (vec4(bytes) >> vec4(0u, 8u, 16u, 24u)) & vec4(15u);
    return (vec4<f32>(nibbles) - 8.0) * scale;
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let word = block.words[part];
    return mat2x4<f32>(w_nibbles(word, block.scale), w_nibbles(word >> 4u, block.scale));
}
