//! Four elements of a row of activations, pasted into a loop: of eight behind `k0`, the two of
//! each four that 2:4 weights keep. All weights of the thread keep the same.
//!
//! Loads no others, one at a time: for drivers that run shaders on the CPU, where every word that
//! is loaded takes its own instructions for each lane.
let kept = block[0].positions >> (16u * part + 8u * half);
let eight = k0 + 8u * half;
let held = vec4(
    load_x(base[h], eight + (kept & 3u), params.k),
    load_x(base[h], eight + ((kept >> 2u) & 3u), params.k),
    load_x(base[h], eight + 4u + ((kept >> 4u) & 3u), params.k),
    load_x(base[h], eight + 4u + ((kept >> 6u) & 3u), params.k),
);
