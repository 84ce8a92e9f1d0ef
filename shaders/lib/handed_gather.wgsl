//! Eight elements of a row of activations, pasted into a loop: four lanes of the subgroup, from
//! 2 first on, hold four each, of which 2:4 weights keep two. All weights of the subgroup keep the
//! same.
let kept = block[0].positions >> (4u * lane.x);
let two = vec2(held[i][kept & 3u], held[i][(kept >> 2u) & 3u]);
low[i] = vec4(
    subgroupBroadcast(two, 2u * first),
    subgroupBroadcast(two, 2u * first + 1u),
);
high[i] = vec4(
    subgroupBroadcast(two, 2u * first + 2u),
    subgroupBroadcast(two, 2u * first + 3u),
);
