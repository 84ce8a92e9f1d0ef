//! Eight elements of a row of activations, pasted into a loop: lane `holder` of the subgroup hands
//! them out.
low[i] = subgroupBroadcast(taken[i][0], holder);
high[i] = subgroupBroadcast(taken[i][1], holder);
