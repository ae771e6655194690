//! The program that libFuzzer drives; see hack/fuzz/run.
#![no_main]

use std::{env, sync::LazyLock};

use highwire_fuzz::{Target, targets};

static TARGET: LazyLock<Option<&Target>> = LazyLock::new(|| {
    let name = env::var("HIGHWIRE_FUZZ_TARGET").ok()?;
    targets::ALL.iter().find(|target| target.name == name)
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(target) = *TARGET else {
        panic!("HIGHWIRE_FUZZ_TARGET names no target; start this by hack/fuzz/run");
    };
    (target.run)(input);
});
