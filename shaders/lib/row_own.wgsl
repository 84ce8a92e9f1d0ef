//! One row's elements, pasted into a loop: every lane has loaded (`held`) all rows itself.
let row = held;
