//! What a lane of `lib/nt_subgroup.wgsl` hands to the others: all that it holds of a row, without
//! the factors that raw weights have, and its sum.
let own_sum = dot(held[i][0] + held[i][1], vec4(1.0));
taken[i] = mat2x4<f32>(held[i][0] / W_FACTORS, held[i][1] / W_FACTORS);
