//! One element of a weight matrix `[params.rows, params.cols]` in Q4: values
//! `[blocks of 32 columns][rows][4 words]` at binding 3, f16 scales `[groups][rows]` at binding 4.

const GROUP: u32 = 32u;  //#spec columns that share a scale: 32 or 64

@group(0) @binding(3) var<storage, read> values: array<u32>;
@group(0) @binding(4) var<storage, read> scales: array<u32>;

fn load_w(row: u32, col: u32) -> f32 {
    let word = values[((col / 32u) * params.rows + row) * 4u + (col % 32u) / 8u];
    // Columns 0..4 of a word are the low nibbles of its bytes, 4..8 the high ones.
    let nibble = 2u * (col % 4u) + (col % 8u) / 4u;
    let level = i32(extractBits(word, 4u * nibble, 4u)) - 8;
    let pair = unpack2x16float(scales[(col / GROUP) * ((params.rows + 1u) / 2u) + row / 2u]);
    return f32(level) * select(pair.x, pair.y, row % 2u == 1u);
}
