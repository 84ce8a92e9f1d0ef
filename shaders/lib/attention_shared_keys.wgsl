//! Of the bodies of attention through workgroup memory, those that hold query rows and stream keys.

// The last rows of all heads begin first, since they see most keys.
fn query_task(lane: u32, workgroup: u32, rows: u32) -> Task {
    return task_at(workgroups_for(rows) - 1u - workgroup, lane, rows);
}

fn query_of(row: u32) -> u32 {
    return row / (params.heads / params.kv_heads);
}

// The keys that a held row attends: from x to before y.
fn keys_of(task: Task, held: u32) -> vec2<u32> {
    let query = query_of(min(task.first + held, task.last));
    return vec2(first_key(task.sequence, query), end_key(query));
}

// The keys that any of the rows attends: a later row's segment and window begin no earlier.
fn keys_of_all(task: Task) -> vec2<u32> {
    return vec2(first_key(task.sequence, query_of(task.first)), end_key(query_of(task.last)));
}

fn load_key(task: Task, key: u32) -> Streamed {
    let at = key_row(task, key) * CHUNKS;
    var row: Streamed;
    //#unroll
    for (var j = 0u; j < QUADS; j++) {
        row.x[j] = k[at + column(task.part, j)];
        row.y[j] = v[at + column(task.part, j)];
    }
    return row;
}
