//! Products of a block of weights, pasted into `lib/nt_tile.wgsl`.

// Rolled: four copies of the products would cost compile time and save nothing.
for (var part = 0u; part < PARTS; part++) {
    //#include "lib/part_products.wgsl"
}
