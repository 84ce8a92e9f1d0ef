//! Weights of `weights/q8.wgsl` as bytes for `dot4I8Packed`.

// What is added to every integer.
const W_BIAS: f32 = 0.0;

// Columns 8 part .. 8 part + 8 of a block, four signed bytes a word.
fn w_ints(block: WBlock, part: u32) -> vec2<u32> {
    let words = select(block.low, block.high, part >= 2u);
    return select(words.xy, words.zw, (part & 1u) == 1u);
}
