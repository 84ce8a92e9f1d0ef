//! One row's elements, pasted into a loop: lane `s` of the subgroup has loaded (`held`) row `s`.
//! Needs subgroups of exactly as many lanes as the workgroup has.
let row = subgroupBroadcast(held, s);
