//! Sixteen elements of a row of activations, pasted into a loop: those of lanes `holder` and the
//! next one. Component q has the q-th four of them, one a lane, twice.
low[i] = vec4(
    spread_four(subgroupBroadcast(taken[i][0], holder), lane.x),
    spread_four(subgroupBroadcast(taken[i][1], holder), lane.x),
    spread_four(subgroupBroadcast(taken[i][0], holder + 1u), lane.x),
    spread_four(subgroupBroadcast(taken[i][1], holder + 1u), lane.x),
);
