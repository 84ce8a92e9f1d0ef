//! The blocks of a thread's neighbouring channels, pasted into `lib/nt_tile.wgsl`: loaded at once,
//! the last ones of all where it has none.
let block = load_w_rows(min(col0, params.n - TN), b);
