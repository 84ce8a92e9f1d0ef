//! kernels-bench.
