//! Levels of a block of `weights/levels_2.wgsl`, plus 2: floor(x / step) in -2..=1, for levels
//! of -1.5, -0.5, 0.5 and 1.5 steps. NaN, and all of a group of zeros, is 0: half a step, or 0.
//!
//! Same names as `lib/pack_q8.wgsl`.

const DIVISOR: u32 = 3u;
const DOUBLED: u32 = 1u;
const SCALE_OF_ZEROS: u32 = 0u;

fn floored(bits: u32, step: f32) -> u32 {
    let size = bits & 0x7fffffffu;
    let one = bitcast<u32>(step);
    let negative = bits > 0x80000000u;
    let up = select(2u, 3u, size >= one);
    let down = select(1u, 0u, size > one);
    return select(select(up, down, negative), 2u, size > INFINITE || one == 0u);
}

fn store_block(n: u32, block: u32, blocks: u32, step: f32) {
    let at = 2u * (block * params.rows + n);
    for (var w = 0u; w < 2u; w++) {
        var word = 0u;
        for (var i = 0u; i < 16u; i++) {
            let level = floored(weight(n, 32u * block + 16u * w + i), step);
            word |= level << (8u * (i % 4u) + 2u * (i / 4u));
        }
        values[at + w] = word;
    }
}
