//! Which agents are alive, by when *this process* saw their Leases renewed.
//!
//! Clocks of two machines are never compared, except once: only the time stamps of a Lease
//! that is seen for the first time can say that it expired long ago.
//!
//! Silence is not always death. While the API server is away nobody can renew, and if our
//! watch hangs we don't hear of renewals. So Leases only expire while other renewals are
//! seen; the leading controller's own Lease is renewed every two seconds, so there are some
//! in a cluster with one agent too.
//!
//! And an API server may throttle the agents alone (they share one flow of its priority
//! and fairness), while kubelets and controllers renew. So Leases that lapse together prove
//! nothing ([`lapse_together`]).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use highwire_api::{
    ResourceVersion,
    names::{agent_lease, node_of_agent_lease},
};
use jiff::{SignedDuration, Timestamp};

use crate::facts::lease::LeaseFacts;

/// The longest time without any renewal in which Leases may expire. Longer than the renewal
/// interval of agents (4 s) and of the leading controller (2 s).
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// The time, as an input of what is decided.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For everything that is measured.
    pub instant: Instant,
    /// For comparison with time stamps that others wrote.
    pub wall: Timestamp,
}

impl Now {
    /// The time of this machine.
    #[must_use]
    pub fn read() -> Self {
        Self {
            instant: Instant::now(),
            wall: Timestamp::now(),
        }
    }
}

/// Whether an agent is alive, by its Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Its Lease was renewed within its duration.
    Alive,
    /// It is not known: the Lease had expired by its own time stamps when it was first
    /// seen, or no renewals were seen for a while, or many lapsed together. Becomes
    /// `Alive` by a renewal, and is judged again after another duration.
    Unknown,
    /// Its Lease was not renewed for its duration. Becomes `Alive` by a renewal.
    Silent,
}

/// A Lease as this process followed it.
#[derive(Clone, Debug)]
struct Followed {
    lease: LeaseFacts,
    /// When it was last seen to be renewed.
    heard: Instant,
    /// When it expires, unless it is renewed.
    due: Instant,
    liveness: Liveness,
}

impl Followed {
    /// The Lease as it is now, after what was known of it.
    fn after(known: Option<Self>, lease: LeaseFacts, now: Now) -> Self {
        let is_new = known.is_none();
        if let Some(known) = known
            && [None, known.lease.renewed].contains(&lease.renewed)
        {
            return Self { lease, ..known };
        }
        let longest = SignedDuration::try_from(lease.duration).unwrap_or(SignedDuration::MAX);
        let age = lease.renewed.map(|at| now.wall.duration_since(at));
        let has_expired = is_new && age.is_none_or(|age| age > longest);
        Self {
            heard: now.instant,
            due: now.instant + lease.duration,
            liveness: if has_expired {
                Liveness::Unknown
            } else {
                Liveness::Alive
            },
            lease,
        }
    }

    /// Whether it has missed a renewal; agents renew three times in a duration.
    fn is_late(&self, now: Now) -> bool {
        self.liveness == Liveness::Unknown
            || now.instant.duration_since(self.heard) > self.lease.duration * 2 / 3
    }

    fn was_alive_recently(&self, now: Now) -> bool {
        self.liveness == Liveness::Unknown
            || now.instant.duration_since(self.heard) <= self.lease.duration * 2
    }
}

/// Whether so many of these Leases are late at once that the API server is the likelier
/// cause than so many deaths: at least two, and more than a third of those that were good
/// within their last duration. So one agent of one, two or three that dies is dead.
fn lapse_together<'a>(leases: impl Iterator<Item = &'a Followed>, now: Now) -> bool {
    let (mut recent, mut late) = (0, 0);
    for lease in leases.filter(|lease| lease.was_alive_recently(now)) {
        recent += 1;
        late += usize::from(lease.is_late(now));
    }
    late >= 2 && 3 * late > recent
}

/// The Leases of all agents and of the controllers, by name.
#[derive(Debug, Default)]
pub struct AgentLeases {
    leases: BTreeMap<String, Followed>,
    /// When any Lease was last seen to be renewed.
    last_renewal: Option<Instant>,
    /// No Lease expires before this.
    next: Option<Instant>,
}

impl AgentLeases {
    fn of_node(&self, node: &str) -> Option<&Followed> {
        self.leases.get(&agent_lease(node))
    }

    /// Whether the agent on a node is alive; `None` if it has no Lease.
    #[must_use]
    pub fn liveness(&self, node: &str) -> Option<Liveness> {
        self.of_node(node).map(|followed| followed.liveness)
    }

    /// The version that the agent on a node has observed, by its Lease. `report` is the
    /// version of its report as known here: before the one that goes with the Lease, what
    /// the node refuses is not known, so the Lease does not count.
    #[must_use]
    pub fn observed(&self, node: &str, report: Option<ResourceVersion>) -> Option<ResourceVersion> {
        let lease = &self.of_node(node)?.lease;
        lease.observed.filter(|_| report >= lease.report)
    }

    /// When [`Self::expire`] is worth a call.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Takes in a Lease as it is now, or that it is gone. Returns the nodes whose agents'
    /// liveness that changed.
    pub fn apply(&mut self, name: &str, lease: Option<LeaseFacts>, now: Now) -> Vec<String> {
        let known = self.leases.remove(name);
        let before = known.as_ref().map(|known| known.liveness);
        let mut changed = Vec::new();
        if let Some(lease) = lease {
            // The first list shows that Leases are seen at all.
            self.last_renewal.get_or_insert(now.instant);
            let followed = Followed::after(known, lease, now);
            // A renewal only postpones, so the bound stays good.
            self.next = self.next.into_iter().chain([followed.due]).min();
            let is_heard = followed.liveness == Liveness::Alive && followed.heard == now.instant;
            self.leases.insert(name.to_owned(), followed);
            if is_heard {
                changed = self.heard(now);
            }
        }
        let followed = self.leases.get(name);
        if before != followed.map(|followed| followed.liveness) {
            changed.extend(node_of_agent_lease(name).map(str::to_owned));
        }
        changed
    }

    /// Lets the Leases expire whose time has come. Returns the nodes whose agents' liveness
    /// that changed. `is_vouched_for` says of a node whether Kubernetes itself says that the
    /// machine runs.
    pub fn expire(&mut self, is_vouched_for: impl Fn(&str) -> bool, now: Now) -> Vec<String> {
        if self.next.is_none_or(|due| due > now.instant) {
            return Vec::new();
        }
        if self.is_deaf(now) {
            // The next renewal gives everyone another duration.
            self.next = None;
            return Vec::new();
        }
        let is_vouched_for = |lease: &str| node_of_agent_lease(lease).is_some_and(&is_vouched_for);
        let vouched_for = self.leases.iter().filter(|(name, _)| is_vouched_for(name));
        let together = lapse_together(vouched_for.map(|(_, lease)| lease), now);
        self.judge(|name, followed| {
            if followed.liveness == Liveness::Silent || followed.due > now.instant {
                return;
            }
            followed.liveness = Liveness::Silent;
            if together && is_vouched_for(name) {
                followed.liveness = Liveness::Unknown;
                followed.due = now.instant + followed.lease.duration;
            }
        })
    }

    /// A renewal was seen.
    fn heard(&mut self, now: Now) -> Vec<String> {
        let was_deaf = self.is_deaf(now);
        self.last_renewal = Some(now.instant);
        if !was_deaf {
            return Vec::new();
        }
        self.judge(|_, followed| {
            if followed.liveness == Liveness::Alive && followed.due <= now.instant {
                followed.liveness = Liveness::Unknown;
            }
            followed.due = followed.due.max(now.instant + followed.lease.duration);
        })
    }

    fn is_deaf(&self, now: Now) -> bool {
        self.last_renewal
            .is_none_or(|last| now.instant.duration_since(last) > LONGEST_SILENCE)
    }

    fn judge(&mut self, judge: impl Fn(&str, &mut Followed)) -> Vec<String> {
        let mut changed = Vec::new();
        for (name, lease) in &mut self.leases {
            let before = lease.liveness;
            judge(name, lease);
            if lease.liveness != before {
                changed.extend(node_of_agent_lease(name).map(str::to_owned));
            }
        }
        let leases = self.leases.values();
        let waiting = leases.filter(|lease| lease.liveness != Liveness::Silent);
        self.next = waiting.map(|lease| lease.due).min();
        changed
    }
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
