//! Whether kube-proxy follows what changes: what it says of itself at `/livez`
//! (Kubernetes pkg/proxy/healthcheck/proxy_health.go, as in 1.33 to 1.36).

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use highwire_runtime::printable::printable;
use jiff::Timestamp;
use serde::Deserialize;

/// A kube-proxy that answered before is failing when it was silent for so long: an update
/// of its DaemonSet takes less.
const LONGEST_SILENCE: Duration = Duration::from_mins(1);

/// What it says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Health {
    #[serde(default, rename = "status")]
    families: BTreeMap<String, FamilyHealth>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FamilyHealth {
    last_updated: Timestamp,
    healthy: bool,
}

impl Health {
    /// Reads the answer; `None` if it is none.
    #[must_use]
    pub fn parse(answer: &str) -> Option<Self> {
        serde_json::from_str(answer).ok()
    }

    /// That it says of itself that it does not follow, which it does when a change has
    /// waited for two of its sync periods (1 min).
    #[must_use]
    pub fn failing(&self) -> Option<Failing> {
        let late = self.families.iter().find(|(_, health)| !health.healthy);
        late.map(|(family, health)| Failing::NotSyncing {
            family: printable(family),
            since: health.last_updated,
        })
    }
}

/// Why kube-proxy does not follow what changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failing {
    /// It says that it could not program a family.
    NotSyncing {
        /// As it calls it.
        family: String,
        /// When it could last.
        since: Timestamp,
    },
    /// It answered before and does not any more.
    Silent,
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSyncing { family, since } => write!(
                f,
                "kube-proxy on this node says that it has not programmed {family} since \
                 {since:.0}; its log says why"
            ),
            Self::Silent => {
                let seconds = LONGEST_SILENCE.as_secs();
                write!(
                    f,
                    "kube-proxy on this node has not answered for {seconds} s; is it running?"
                )
            }
        }
    }
}

/// Notices that kube-proxy fails.
#[derive(Debug, Default)]
pub(super) struct Watch {
    answered: Option<Instant>,
}

impl Watch {
    /// Takes in whether kube-proxy answered anything just now, and what it said of its
    /// health.
    pub(super) fn heard(
        &mut self,
        anything: bool,
        health: Option<&Health>,
        now: Instant,
    ) -> Option<Failing> {
        if anything || health.is_some() {
            self.answered = Some(now);
        }
        let silent = self
            .answered
            .is_some_and(|last| now.duration_since(last) >= LONGEST_SILENCE);
        if silent {
            return Some(Failing::Silent);
        }
        health.and_then(Health::failing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kube-proxy 1.36.3 answers.
    fn answer(healthy: bool) -> String {
        format!(
            r#"{{"lastUpdated": "2026-01-02T03:04:05.5Z", "currentTime": "2026-01-02T03:05:05Z",
            "status": {{"IPv4": {{"lastUpdated": "2026-01-02T03:04:05.5Z", "healthy": {healthy}}},
                        "IPv6": {{"lastUpdated": "2026-01-02T03:04:09Z", "healthy": true}}}}}}"#
        )
    }

    #[test]
    fn a_kube_proxy_that_says_it_is_late_fails() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let mut heard = |healthy| watch.heard(true, Health::parse(&answer(healthy)).as_ref(), now);
        assert_eq!(heard(true), None);
        let failing = heard(false).unwrap().to_string();
        assert!(
            failing.contains("not programmed IPv4 since 2026-01-02T03:04:0"),
            "{failing}"
        );
        assert_eq!(heard(true), None);
    }

    #[test]
    fn only_one_that_has_answered_is_missed() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let minute = start + LONGEST_SILENCE;
        assert_eq!(watch.heard(false, None, minute), None);
        watch.heard(true, None, start);
        let almost = minute.checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(watch.heard(false, None, almost), None);
        assert_eq!(watch.heard(false, None, minute), Some(Failing::Silent));
        assert_eq!(watch.heard(true, None, minute), None);
    }
}
