//! When a node does without kube-proxy. Pure.

use std::time::{Duration, Instant};

use highwire_api::node::ProxyMode;

use super::{Expected, others::Other};

/// So long after the last sign of kube-proxy its absence is no failure of it.
const GONE: Duration = Duration::from_secs(60);

/// What the search for kube-proxy has come to.
#[derive(Debug)]
pub(super) struct Search {
    expected: Expected,
    /// When there was a sign of it last.
    seen: Option<Instant>,
}

impl Search {
    pub(super) fn new(expected: Expected) -> Self {
        Self {
            expected,
            seen: None,
        }
    }

    /// What is to be done after a look that found this. It is never by one look that missed
    /// kube-proxy that the node does without it.
    pub(super) fn found(
        &mut self,
        mode: Option<ProxyMode>,
        other: Option<Other>,
        now: Instant,
    ) -> Option<ProxyMode> {
        if mode.is_some() {
            self.seen = Some(now);
            return mode;
        }
        let is_gone = self.seen.is_none_or(|seen| now >= seen + GONE);
        let without = self.expected == Expected::Auto && is_gone && other.is_some();
        without.then_some(ProxyMode::Absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_counts_only_where_kube_proxy_is_not() {
        let now = Instant::now();
        let cilium = Some(Other::Cilium);
        let mut search = Search::new(Expected::Auto);
        assert_eq!(search.found(None, None, now), None);
        assert_eq!(search.found(None, cilium, now), Some(ProxyMode::Absent));
        let iptables = Some(ProxyMode::Iptables);
        assert_eq!(search.found(iptables, None, now), iptables);
        for (after, expected) in [(2, None), (59, None), (60, Some(ProxyMode::Absent))] {
            let later = now + Duration::from_secs(after);
            assert_eq!(search.found(None, cilium, later), expected, "{after}");
        }
    }

    #[test]
    fn whoever_wants_kube_proxy_waits_for_it() {
        let mut search = Search::new(Expected::KubeProxy);
        let now = Instant::now();
        assert_eq!(search.found(None, Some(Other::Cilium), now), None);
    }
}
