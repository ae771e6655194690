//! How a test of a cluster is run.

use anyhow::{Context, Result};

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

/// Runs a test to its end.
pub fn run(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")?;
    runtime.block_on(test)
}
