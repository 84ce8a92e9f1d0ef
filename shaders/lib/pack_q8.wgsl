//! Levels of a block of `weights/levels_8.wgsl`, plus 128: column 4w + i in byte i of word w.
//!
//! The includer gives `weight`, `rounded`, and `values`; the scale is the largest magnitude times
//! 2^DOUBLED / DIVISOR. `lib/pack_q4.wgsl`, `pack_q3` and `pack_q2` define the same names.

const DIVISOR: u32 = 127u;
const DOUBLED: u32 = 0u;
const SCALE_OF_ZEROS: u32 = 0x0400u;

fn store_block(n: u32, block: u32, blocks: u32, step: f32) {
    let at = 8u * (block * params.rows + n);
    for (var w = 0u; w < 8u; w++) {
        var word = 0u;
        for (var i = 0u; i < 4u; i++) {
            let level = rounded(weight(n, 32u * block + 4u * w + i), step, 127u);
            word |= (u32(level + 128) & 255u) << (8u * i);
        }
        values[at + w] = word;
    }
}
