//! Eight elements of a row of activations, pasted into a loop: lanes `holder` and the next one of
//! the subgroup hand out the four that they keep.
low[i] = subgroupBroadcast(taken[i][0], holder);
high[i] = subgroupBroadcast(taken[i][0], holder + 1u);
