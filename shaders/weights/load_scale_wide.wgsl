//! The scales of `weights/scale.wgsl`, of several rows at once; there are a multiple of 8 rows.

@group(0) @binding(4) var<storage, read> w_scales: array<vec2<u64>>;

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_scale_four(n: u32, block: u32) -> array<WScale, 4> {
    let at = block / (GROUP / W_STEP) * (w_rows() / 2u) + n / 2u;
    let four = w_scales[at / 4u];
    let pairs = halves_1(select(four.x, four.y, (at & 2u) == 2u));
    let first = unpack2x16float(pairs.x);
    let last = unpack2x16float(pairs.y);
    return array<WScale, 4>(WScale(first.x), WScale(first.y), WScale(last.x), WScale(last.y));
}

// Rows n .. n + 8 of a block, n a multiple of 8.
fn load_w_scale_eight(n: u32, block: u32) -> array<WScale, 8> {
    let at = block / (GROUP / W_STEP) * (w_rows() / 2u) + n / 2u;
    let pairs = halves_2(w_scales[at / 4u]);
    let a = unpack2x16float(pairs.x);
    let b = unpack2x16float(pairs.y);
    let c = unpack2x16float(pairs.z);
    let d = unpack2x16float(pairs.w);
    return array<WScale, 8>(
        WScale(a.x),
        WScale(a.y),
        WScale(b.x),
        WScale(b.y),
        WScale(c.x),
        WScale(c.y),
        WScale(d.x),
        WScale(d.y),
    );
}
