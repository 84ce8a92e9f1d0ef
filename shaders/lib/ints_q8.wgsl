//! Weights of `weights/levels_8.wgsl` as bytes for `dot4I8Packed`.

// What is added to every integer.
const W_BIAS: f32 = 0.0;

// Columns 8 part .. 8 part + 8 of a block, four signed bytes a word.
fn w_ints(block: WBlock, part: u32) -> vec2<u32> {
    // They are stored plus 128.
    return w_pair(block.words, part) ^ vec2(0x80808080u);
}
