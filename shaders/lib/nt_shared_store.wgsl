//! A stage of `lib/nt_shared.wgsl` from registers to workgroup memory, weights dequantised, pasted
//! into its loop.

//#unroll
for (var h = 0u; h < X_LOADS; h++) {
    let t = index + h * LANES;
    if t < ROWS * QUADS {
        x_tile[t % QUADS * X_STRIDE + t / QUADS] = x_next[h];
    }
}
//#unroll
for (var h = 0u; h < W_LOADS; h++) {
    let t = index + h * LANES;
    if t < CHANNELS * OCTETS {
        let c = select(t % CHANNELS, t / OCTETS, K_FAST == 1u);
        let octet = octet_of(t);
        let weights = w_part(w_next[h], (k0 / (8u * SPREAD) + octet) % PARTS);
        w_tile[2u * octet * W_STRIDE + c] = weights[0];
        w_tile[(2u * octet + 1u) * W_STRIDE + c] = weights[1];
    }
}
