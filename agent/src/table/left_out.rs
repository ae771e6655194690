//! Services that nft refuses: found by trying, left out so that the others are served,
//! and tried again later. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use highwire_api::{ServiceKey, ServiceSpec};

/// Before a refused Service is tried again; each refusal doubles it …
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 60);
/// How often nft is asked at most in one search. One Service among 10,000 takes about 30.
const QUESTIONS: u32 = 80;
/// Of what nft says, in characters.
const LONGEST_WORDS: usize = 200;

#[derive(Debug)]
struct Refused {
    spec: ServiceSpec,
    until: Instant,
    pause: Duration,
}

/// The Services that are left out, or were until a moment ago.
#[derive(Debug, Default)]
pub struct LeftOut {
    refused: BTreeMap<ServiceKey, Refused>,
    words: BTreeMap<ServiceKey, String>,
}

impl LeftOut {
    /// Those that are left out, each with what nft said.
    #[must_use]
    pub fn words(&self) -> &BTreeMap<ServiceKey, String> {
        &self.words
    }

    /// Lets those in again whose time has come or that ask for something else now, as
    /// `spec` says. Says whether it let any in.
    pub fn review<'a>(
        &mut self,
        spec: impl Fn(&ServiceKey) -> Option<&'a ServiceSpec>,
        now: Instant,
    ) -> bool {
        self.refused
            .retain(|key, refused| spec(key) == Some(&refused.spec));
        let (refused, before) = (&self.refused, self.words.len());
        let is_out = |key: &ServiceKey| refused.get(key).is_some_and(|refused| now < refused.until);
        self.words.retain(|key, _| is_out(key));
        self.words.len() != before
    }

    /// Leaves a Service out.
    pub fn add(&mut self, spec: &ServiceSpec, message: &str, now: Instant) {
        let before = self.refused.get(&spec.key).map(|refused| refused.pause);
        let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        let message: String = message.chars().take(LONGEST_WORDS).collect();
        self.words.insert(
            spec.key.clone(),
            format!("nobody, but nft refuses it: {message}"),
        );
        let refused = Refused {
            spec: spec.clone(),
            until: now + pause,
            pause,
        };
        self.refused.insert(spec.key.clone(), refused);
    }
}

/// Which of these Services nft refuses, by halving: `accepts` asks whether nft takes a table
/// of these alone, and is `None` without an answer. `served` are those that it took before.
/// `None` if no Service is the cause, too many are, or an answer is missing.
pub async fn culprits(
    served: Vec<ServiceKey>,
    others: Vec<ServiceKey>,
    mut accepts: impl AsyncFnMut(&BTreeSet<ServiceKey>) -> Option<bool>,
) -> Option<BTreeSet<ServiceKey>> {
    let mut good = BTreeSet::new();
    if !accepts(&good).await? {
        return None;
    }
    let mut culprits = BTreeSet::new();
    let mut unknown = vec![others, served];
    let mut questions = QUESTIONS;
    while let Some(mut some) = unknown.pop() {
        if some.is_empty() {
            continue;
        }
        questions = questions.checked_sub(1)?;
        let mut with = good.clone();
        with.extend(some.iter().cloned());
        if accepts(&with).await? {
            good = with;
        } else if some.len() == 1 {
            culprits.extend(some);
        } else {
            let half = some.split_off(some.len() / 2);
            unknown.extend([half, some]);
        }
    }
    Some(culprits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: std::ops::Range<u32>) -> Vec<ServiceKey> {
        numbers
            .map(|number| format!("ns/web-{number}").parse().unwrap())
            .collect()
    }

    async fn found(bad: &[u32], served: u32, all: u32) -> (Option<BTreeSet<ServiceKey>>, u32) {
        let bad: Vec<ServiceKey> = bad.iter().flat_map(|n| keys(*n..n + 1)).collect();
        let mut asked = 0;
        let found = culprits(keys(0..served), keys(served..all), async |some| {
            asked += 1;
            Some(!bad.iter().any(|key| some.contains(key)))
        })
        .await;
        (found, asked)
    }

    #[tokio::test]
    async fn those_to_blame_are_found_in_few_questions() {
        for bad in [&[][..], &[7], &[9_999], &[0, 5_000, 9_998]] {
            let (found, asked) = found(bad, 9_990, 10_000).await;
            let expected = bad.iter().flat_map(|n| keys(*n..n + 1)).collect();
            assert_eq!(found, Some(expected));
            assert!(asked <= QUESTIONS + 1, "{asked}");
        }
    }

    #[tokio::test]
    async fn too_many_or_none_to_blame_leave_all_as_it_was() {
        let every: Vec<u32> = (0..200).collect();
        assert_eq!(found(&every, 0, 200).await.0, None);
        let broken = culprits(keys(0..1), Vec::new(), async |_| Some(false)).await;
        assert_eq!(broken, None, "nft refuses even an empty table");
        let slow = async |some: &BTreeSet<ServiceKey>| some.is_empty().then_some(true);
        assert_eq!(
            culprits(keys(0..4), Vec::new(), slow).await,
            None,
            "no answer"
        );
    }
}
