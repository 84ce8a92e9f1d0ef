//! Weights of `weights/levels_4.wgsl` as bytes for `dot4I8Packed`.
//!
//! Same names as `lib/ints_q8.wgsl`.

const W_BIAS: f32 = 8.0;

fn w_ints(block: WBlock, part: u32) -> vec2<u32> {
    let word = w_word(block.words, part);
    return vec2(word & 0x0f0f0f0fu, (word >> 4u) & 0x0f0f0f0fu);
}
