//! Which boxes' own agents are alive, by their Leases.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use crate::facts::lease::LeaseFacts;

/// Whether an agent on the box renews its Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It does.
    Alive,
    /// It does not.
    Silent,
}

/// Since when each Lease is known as it is. Clocks of boxes are not compared with ours.
#[derive(Debug, Default)]
pub struct Edges(BTreeMap<String, (Option<Timestamp>, Instant)>);

impl Edges {
    /// Takes in a Lease, and says whether its agent is alive at `now` and for how long that
    /// holds.
    pub fn state(
        &mut self,
        external: &str,
        lease: Option<&LeaseFacts>,
        now: Instant,
    ) -> (Edge, Option<Duration>) {
        let Some(lease) = lease else {
            self.0.remove(external);
            return (Edge::Silent, None);
        };
        let known = self.0.entry(external.to_owned());
        let (renewed, since) = known.or_insert((lease.renewed, now));
        if *renewed != lease.renewed {
            (*renewed, *since) = (lease.renewed, now);
        }
        let age = now.saturating_duration_since(*since);
        match lease.duration.checked_sub(age) {
            Some(left) if !left.is_zero() => (Edge::Alive, Some(left)),
            _ => (Edge::Silent, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_renews_is_alive_whatever_its_clock_says() {
        let (mut edges, start) = (Edges::default(), Instant::now());
        let lease = |renewed: i64| LeaseFacts {
            holder: None,
            renewed: Some(Timestamp::from_second(renewed).unwrap()),
            duration: Duration::from_secs(12),
            observed: None,
            report: None,
        };
        let mut at = |seconds: u64, renewed: Option<i64>| {
            let lease = renewed.map(lease);
            let now = start + Duration::from_secs(seconds);
            edges.state("front", lease.as_ref(), now)
        };
        let alive = |seconds| (Edge::Alive, Some(Duration::from_secs(seconds)));
        assert_eq!(at(0, Some(7)), alive(12));
        assert_eq!(at(4, Some(7)), alive(8));
        assert_eq!(at(12, Some(7)), (Edge::Silent, None));
        assert_eq!(at(13, Some(3)), alive(12), "a clock may be put back");
        assert_eq!(at(14, None), (Edge::Silent, None));
        assert_eq!(at(15, Some(3)), alive(12));
    }
}
