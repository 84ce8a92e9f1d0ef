//! Of the bodies of attention through workgroup memory, those of the backward pass: scores, and
//! with them the products of d_out and v.

// Held rows of q and d_out, or of k and v; one of q and k scaled.
var<workgroup> held_x: array<vec4<f32>, HELD * PADDED>;
var<workgroup> held_y: array<vec4<f32>, HELD * PADDED>;
// By slot and held row: the gradient of their score.
var<workgroup> slopes: array<f32, SLOTS * HELD>;

// Leaves a lane's share of the products of all held rows with the streamed one.
fn multiply(task: Task, row: Streamed) {
    //#unroll
    for (var g = 0u; g < GROUPS; g++) {
        var scores = vec4<f32>();
        var dp = vec4<f32>();
        //#unroll
        for (var t = 0u; t < 4u; t++) {
            let at = (g * 4u + t) * PADDED + task.part;
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                scores[t] = add_dot(held_x[at + j * PARTS], row.x[j], scores[t]);
                dp[t] = add_dot(held_y[at + j * PARTS], row.y[j], dp[t]);
            }
        }
        let at = task.slot * SLOT_STRIDE + task.part;
        shares[g * PLANE_STRIDE + at] = scores;
        shares[(GROUPS + g) * PLANE_STRIDE + at] = dp;
    }
}

// Hands the gradient of a score to the slot and returns the weight that the key has. `of_row`: the
// query row's log-sum-exp and delta.
fn weigh(slot: u32, held: u32, seen: bool, of_row: vec2<f32>) -> f32 {
    // Only a masked score can exceed the log-sum-exp; min keeps its exp finite.
    let p = select(0.0, exp(min(product(slot, held) - of_row.x, 0.0)), seen);
    slopes[slot * HELD + held] = p * (product(slot, HELD + held) - of_row.y);
    return p;
}
