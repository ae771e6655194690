//! Waiting for a condition, bounded, quickly, and saying what was missing.

use std::fmt::Debug;
use std::panic::Location;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How often conditions are checked; [`scaled`] too, since a check costs a slow machine more.
pub const POLL: Duration = Duration::from_millis(40);

/// What all limits are multiplied by: `HIGHWIRE_SLOWNESS`, a whole number, for machines that
/// are slow, such as a virtual one without hardware's help.
const SLOWNESS: &str = "HIGHWIRE_SLOWNESS";

static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let Ok(text) = std::env::var(SLOWNESS) else {
        return 1;
    };
    let factor = text.parse().ok();
    let factor = factor.filter(|factor| (1..=100).contains(factor));
    factor.unwrap_or_else(|| panic!("{SLOWNESS} must be 1 to 100, and is {text:?}"))
});

/// A limit, as long as it has to be on this machine.
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    limit * *FACTOR
}

/// Whether this machine is slow.
#[must_use]
pub fn is_slow() -> bool {
    *FACTOR > 1
}

/// What a poll can return: done with a value, or not yet, for a reason.
pub trait Poll {
    /// The value when done.
    type Done;
    /// The value, or what was seen instead.
    fn settle(self) -> Result<Self::Done, String>;
}

impl<T> Poll for Option<T> {
    type Done = T;
    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Debug> Poll for Result<T, E> {
    type Done = T;
    fn settle(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

impl Poll for bool {
    type Done = ();
    fn settle(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "false".to_owned())
    }
}

/// Calls `poll` every [`POLL`] until it returns `Some`, `Ok` or `true`.
///
/// Return a `Result` where a failure should say more than that time ran out.
///
/// # Panics
/// After `limit`, [`scaled`], with `what`, the last thing seen and the caller's line.
#[track_caller]
pub fn wait_for<P: Poll, F: Future<Output = P>>(
    what: &str,
    limit: Duration,
    poll: impl FnMut() -> F,
) -> impl Future<Output = P::Done> {
    let caller = Location::caller();
    async move {
        match try_wait_for(what, limit, poll).await {
            Ok(value) => value,
            Err(error) => panic!("{caller}: {error}"),
        }
    }
}

/// Like [`wait_for`], but running out of time is an error.
pub async fn try_wait_for<P: Poll, F: Future<Output = P>>(
    what: &str,
    limit: Duration,
    mut poll: impl FnMut() -> F,
) -> anyhow::Result<P::Done> {
    let limit = scaled(limit);
    let deadline = Instant::now() + limit;
    let mut last = "nothing".to_owned();
    loop {
        // A poll that hangs must not outlive the limit; it always gets a little time.
        let left = deadline.saturating_duration_since(Instant::now()) + scaled(POLL);
        match tokio::time::timeout(left, poll()).await.map(Poll::settle) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = seen,
            Err(_) => last = format!("no answer at all; before that: {last}"),
        }
        if Instant::now() >= deadline {
            anyhow::bail!("waited {limit:?} for {what}; last seen: {last}");
        }
        tokio::time::sleep(scaled(POLL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timeout_tells_what_was_seen_last() {
        let error = try_wait_for("the moon", Duration::ZERO, || async {
            Err::<(), _>("a lamp")
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("the moon") && error.contains("a lamp"),
            "{error}"
        );
    }
}
