//! Products of a block of weights, pasted into `lib/nt_tile.wgsl`.

// Drivers on the CPU blend all sums with their old values once a step of a loop, also of a loop of
// one step.
//#unroll
for (var part = 0u; part < PARTS; part++) {
    //#include "lib/part_products.wgsl"
}
