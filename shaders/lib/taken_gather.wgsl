//! What a lane of `lib/nt_subgroup.wgsl` hands to the others: of the eight elements of a row that
//! it holds, the four that 2:4 weights keep, without the factors that raw weights have, and their
//! sum. All weights of the subgroup keep the same.
let kept = block[0].positions >> (8u * (lane.x % HOLDERS));
let four = vec4(
    held[i][0][kept & 3u],
    held[i][0][(kept >> 2u) & 3u],
    held[i][1][(kept >> 4u) & 3u],
    held[i][1][(kept >> 6u) & 3u],
);
let own_sum = dot(four, vec4(1.0));
taken[i] = mat2x4<f32>(four / W_FACTORS, vec4<f32>());
