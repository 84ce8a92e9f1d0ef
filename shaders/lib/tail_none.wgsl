//! What is added to the sums of a body `lib/nt_*.wgsl` behind its loop over k: nothing.
