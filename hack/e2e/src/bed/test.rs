//! How a test of a cluster is run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

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
    if !matches!(outcome, Ok(Ok(()))) {
        // What is printed after it is long, and may be cut. A panic has printed its own.
        if let Ok(Err(error)) = &outcome {
            println!("failed: {error:#}");
        }
        evidence::print(&run);
        if std::env::var_os(KEEP).is_some() {
            evidence::print_remedy(&run);
            run.keep();
            return outcome.unwrap_or_else(|panic| resume_unwind(panic));
        }
    }
    run.remove();
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}
