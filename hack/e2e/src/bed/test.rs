//! How a test of a cluster is run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use anyhow::{Context, Result};

use crate::bed::evidence;
use crate::lab::test_run;

/// Set, it leaves what failed tests used where it is (`hack/test --keep`).
pub const KEEP: &str = "HIGHWIRE_KEEP";

/// Turns an asynchronous function into a test: `#[apply(cluster_test)]`.
#[macro_export]
macro_rules! cluster_test {
    ($(#[$attribute:meta])* async fn $name:ident() -> $result:ty $body:block) => {
        $(#[$attribute])*
        #[test]
        fn $name() -> $result {
            $crate::bed::test::run(async $body)
        }
    };
}

/// Runs a test to its end. If it fails, prints what the cluster says about it; then takes
/// away, or keeps, what it used.
pub fn run(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")?;
    test_run::begin();
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test)));
    // Not waiting for what a failed test has left running.
    runtime.shutdown_background();
    let run = test_run::end();
    if let Some(reason) = failure(&outcome) {
        // A panic has printed its own, but before a long stack.
        println!("failed: {reason}");
        evidence::print(&run);
        // Who reads a record may have its beginning or its end only.
        println!("\nfailed: {reason}\n");
        if std::env::var_os(KEEP).is_some() {
            evidence::print_remedy(&run);
            run.keep();
            return outcome.unwrap_or_else(|panic| resume_unwind(panic));
        }
    }
    run.remove();
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Why the test failed, if it did.
fn failure(outcome: &thread::Result<Result<()>>) -> Option<String> {
    match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(panic) => {
            let formatted = panic.downcast_ref::<String>().map(String::as_str);
            let fixed = || panic.downcast_ref::<&str>().copied();
            let text = formatted.or_else(fixed);
            Some(text.unwrap_or("a panic without words").to_owned())
        }
    }
}
