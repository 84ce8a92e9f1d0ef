//! The targets under libFuzzer, which goes where inputs reach new code; `EDGE_FUZZ_TARGET` names
//! one. Built with coverage by `cargo xtask fuzz --guided`.
#![no_main]

use std::sync::OnceLock;

use edge_fuzz::{Prepared, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    let prepared = PREPARED.get_or_init(|| {
        let name = std::env::var("EDGE_FUZZ_TARGET").expect("EDGE_FUZZ_TARGET names a target");
        Prepared::new(Target::named(&name).expect("a target")).expect("a folder of valid files")
    });
    // Refusals are what is hoped for.
    let _ = prepared.run(data);
});
