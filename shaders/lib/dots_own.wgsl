//! Products of eight weights of channel `j` with the activations that are handed out, pasted into a
//! loop: one for each column of the weights.
let weights = w_raw(block[j], part);
//#unroll
for (var i = 0u; i < TM; i++) {
    sum[i * TN + j] += dot(low[i], weights[0]) + dot(high[i], weights[1]);
}
