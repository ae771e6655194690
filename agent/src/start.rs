//! The first runs of nft. On a slow machine they can take longer than any later one,
//! because the kernel loads its modules for them.

use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use crate::table::{DataPath, Elements, Nft, nft::NftError};

/// Between a run that did not end in time and the next one.
const PAUSE: Duration = Duration::from_secs(1);

/// What nft answered at start.
#[derive(Debug)]
pub struct Started {
    /// Its version.
    pub version: String,
    /// What an earlier agent left in the kernel.
    pub left: Elements,
}

/// Asks nft once, also whether it takes the tables of these paths.
///
/// # Errors
/// If it is missing, too old, not permitted, too slow, or this kernel refuses our rules.
pub async fn ask(nft: &Nft, paths: &[DataPath]) -> Result<Started, NftError> {
    let version = nft.probe(paths).await?;
    let left = nft.elements().await?.unwrap_or_default();
    Ok(Started { version, left })
}

/// The first `answer`, or if nft was too late for that, the answer to asking again. Each
/// time it is late is logged and reported to `slow`. Modules that were loaded stay, so the
/// next run gets further.
///
/// # Errors
/// Any but that it took too long.
pub async fn until_answered<T>(
    mut answer: Result<T, NftError>,
    mut ask: impl AsyncFnMut() -> Result<T, NftError>,
    mut slow: impl FnMut(&NftError),
) -> Result<T, NftError> {
    loop {
        match answer {
            Err(error) if error.is_late() => {
                warn!("{error}; trying again");
                slow(&error);
            }
            answered => return answered,
        }
        sleep(PAUSE).await;
        answer = ask().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late<T>() -> Result<T, NftError> {
        Err(NftError::TimedOut {
            step: "--check",
            limit: Duration::from_secs(20),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_nft_that_is_slow_at_first_is_asked_again() {
        let mut answers = vec![Ok("1.0.6"), late(), late()];
        let mut seen = Vec::new();
        let answered = until_answered(
            late(),
            async || answers.pop().expect("no more than needed"),
            |error| seen.push(error.to_string()),
        )
        .await;
        assert_eq!(answered.unwrap(), "1.0.6");
        assert_eq!(seen.len(), 3);
        assert!(
            seen[0].contains("nft --check did not end within 20 s"),
            "{seen:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_pass_by_itself_is_not_tried_again() {
        let refused = || {
            Err(NftError::NotPermitted {
                step: "--check",
                message: "Operation not permitted".into(),
            })
        };
        let at_first = until_answered::<()>(refused(), async || panic!("again"), |_| {}).await;
        let later = until_answered::<()>(late(), async || refused(), |_| {}).await;
        for answered in [at_first, later] {
            assert!(matches!(answered, Err(NftError::NotPermitted { .. })));
        }
    }
}
