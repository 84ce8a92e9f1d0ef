//! One element of a weight matrix `[params.rows, params.cols]` in Q3: values
//! `[blocks of 32 columns][rows][2 words]`, then high bits `[blocks][rows]`, at binding 3, f16
//! scales `[groups][rows]` at binding 4.

const GROUP: u32 = 32u;  //#spec columns that share a scale: 32 or 64

@group(0) @binding(3) var<storage, read> values: array<u32>;
@group(0) @binding(4) var<storage, read> scales: array<u32>;

fn load_w(row: u32, col: u32) -> f32 {
    let at = (col / 32u) * params.rows + row;
    let first = 8u * (col % 4u) + 2u * (col % 16u / 4u);
    let low = extractBits(values[2u * at + (col % 32u) / 16u], first, 2u);
    let blocks = (params.cols + 31u) / 32u;
    let word = values[2u * blocks * params.rows + at];
    let high = extractBits(word, 8u * (col % 4u) + col % 32u / 4u, 1u);
    let level = f32(low | (high << 2u)) - 4.0;
    let pair = unpack2x16float(scales[(col / GROUP) * ((params.rows + 1u) / 2u) + row / 2u]);
    return level * select(pair.x, pair.y, row % 2u == 1u);
}
