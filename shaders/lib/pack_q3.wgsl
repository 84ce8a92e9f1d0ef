//! Levels of a block of `weights/levels_3.wgsl`, plus 4: the two low bits as in 2 bits, the highest
//! ones behind those of all blocks.
//!
//! Same names as `lib/pack_q8.wgsl`.

const DIVISOR: u32 = 3u;
const DOUBLED: u32 = 0u;
const SCALE_OF_ZEROS: u32 = 0x0400u;

fn store_block(n: u32, block: u32, blocks: u32, step: f32) {
    let at = block * params.rows + n;
    let plane = 2u * blocks * params.rows;
    var high = 0u;
    for (var w = 0u; w < 2u; w++) {
        var word = 0u;
        for (var i = 0u; i < 16u; i++) {
            let level = u32(rounded(weight(n, 32u * block + 16u * w + i), step, 3u) + 4);
            word |= (level & 3u) << (8u * (i % 4u) + 2u * (i / 4u));
            high |= (level >> 2u) << (8u * (i % 4u) + 4u * w + i / 4u);
        }
        values[2u * at + w] = word;
    }
    values[plane + at] = high;
    // An odd number of high words is padded to a pair.
    if at == 0u && (blocks * params.rows) % 2u == 1u {
        values[plane + blocks * params.rows] = 0u;
    }
}
