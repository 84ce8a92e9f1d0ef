//! Eight elements of a row of activations, pasted into a loop: lanes `first` and `first + 1` of the
//! subgroup hold four of them each.
low[i] = subgroupBroadcast(held[i], first);
high[i] = subgroupBroadcast(held[i], first + 1u);
