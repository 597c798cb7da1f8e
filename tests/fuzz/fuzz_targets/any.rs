//! The reader that this binary is named after, behind libFuzzer.

#![no_main]

#[path = "../../examples/fuzz/seeds.rs"]
#[allow(dead_code, reason = "libFuzzer begins with the corpus")]
mod seeds;
#[path = "../../examples/fuzz/targets.rs"]
#[allow(dead_code, reason = "one of them is run")]
mod targets;

use std::sync::LazyLock;

use targets::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let found = targets::TARGETS.iter().find(|target| target.name == env!("CARGO_BIN_NAME"));
    found.expect("each binary is named after a target")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (TARGET.run)(bytes);
});
