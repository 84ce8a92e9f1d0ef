//! Which keys a query attends: those up to its own position and, with a window, the last `window`
//! of them. The includer declares `params` with position0, q_len, kv_len and window.

fn first_key(position: u32) -> u32 {
    return select(0u, position + 1u - min(position + 1u, params.window), params.window > 0u);
}

fn end_key(position: u32) -> u32 {
    return min(position + 1u, params.kv_len);
}

// The queries that attend a key are those from first_query to before end_query.
fn first_query(key: u32) -> u32 {
    return max(key, params.position0) - params.position0;
}

fn end_query(key: u32) -> u32 {
    // A window longer than all positions is as good as this one, and the sum cannot wrap.
    let window = min(params.window, params.position0 + params.q_len);
    let end = max(key + window, params.position0) - params.position0;
    return select(params.q_len, min(end, params.q_len), params.window > 0u);
}
