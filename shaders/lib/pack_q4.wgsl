//! Levels of a block of `weights/levels_4.wgsl`, plus 8: columns 8w + i in the low nibbles of the
//! bytes of word w, columns 8w + 4 + i in the high ones.
//!
//! Same names as `lib/pack_q8.wgsl`.

const DIVISOR: u32 = 7u;
const DOUBLED: u32 = 0u;
const SCALE_OF_ZEROS: u32 = 0x0400u;

fn store_block(n: u32, block: u32, blocks: u32, step: f32) {
    let at = 4u * (block * params.rows + n);
    for (var w = 0u; w < 4u; w++) {
        var word = 0u;
        for (var i = 0u; i < 8u; i++) {
            let level = rounded(weight(n, 32u * block + 8u * w + i), step, 7u);
            word |= u32(level + 8) << (8u * (i % 4u) + 4u * (i / 4u));
        }
        values[at + w] = word;
    }
}
