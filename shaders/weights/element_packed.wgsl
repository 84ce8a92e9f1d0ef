//! One element of a packed weight matrix `[params.rows, params.cols]`, bound from binding 3.

fn w_rows() -> u32 {
    return params.rows;
}

fn w_cols() -> u32 {
    return params.cols;
}

//#include "weights/packed.wgsl"

fn load_w(row: u32, col: u32) -> f32 {
    let block = load_w_block(row, col / W_STEP);
    let part = w_part(block, col % W_STEP / 8u);
    return select(part[0], part[1], (col & 4u) == 4u)[col % 4u];
}
