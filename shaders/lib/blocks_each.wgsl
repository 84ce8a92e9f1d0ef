//! The blocks of a thread's channels, pasted into `lib/nt_tile.wgsl`: loaded one by one.
var block: array<WBlock, TN>;
//#unroll
for (var j = 0u; j < TN; j++) {
    block[j] = load_w_block(col[j], b);
}
