//! Which keys a query attends: those of its segment up to its own position and, with a window, the
//! last `window` of them. The includer declares `params` with position0, q_len, kv_len and window,
//! and `segments`: of each query the first key of its segment, and the query behind its last one.

fn first_key(sequence: u32, query: u32) -> u32 {
    let end = params.position0 + query + 1u;
    let in_window = select(0u, end - min(end, params.window), params.window > 0u);
    return max(in_window, segments[sequence * params.q_len + query].x);
}

fn end_key(query: u32) -> u32 {
    return min(params.position0 + query + 1u, params.kv_len);
}

// The queries that attend a key are those from first_query to before end_query.
fn first_query(key: u32) -> u32 {
    return max(key, params.position0) - params.position0;
}

fn end_query(sequence: u32, key: u32) -> u32 {
    // A window longer than all positions is as good as this one, and the sum cannot wrap.
    let window = min(params.window, params.position0 + params.q_len);
    let end = max(key + window, params.position0) - params.position0;
    let in_window = select(params.q_len, end, params.window > 0u);
    // The segment of the first query that stands at the key or behind it, if the key is in that.
    let query = min(first_query(key), params.q_len - 1u);
    let segment = segments[sequence * params.q_len + query];
    return select(0u, min(in_window, segment.y), key >= segment.x);
}
