//! Who gets a port on a node.
//!
//! Host ports are exclusive per node, address family, protocol and port.
//!
//! ```text
//! a Service ── its Claim: all of its slots, or none
//!                │ has a Rank for each
//!                ▼
//!              Slot: a protocol and port in one family of one node
//!                │ has at most one
//!                ▼
//!              Holder: a Service that is served, or something on the host
//!                │ is the reason of
//!                ▼
//!              Refusal: a slot that another claim does not get
//! ```
//!
//! The rules, in order (design §5):
//!
//! 1. The host wins: what already answers on a port keeps it ([`Claim::taken`]).
//! 2. Who is advertised with a port keeps it against newcomers ([`Rank`]).
//! 3. Else the oldest Service wins: creation time, then namespace/name.
//! 4. All or nothing: a node serves a Service with all of its ports or not at all.
//!
//! [`arbitrate`] is a pure function of its input as a set: the order of the
//! claims does not matter. It works like deferred acceptance. Every slot (a port
//! of one family) ranks the Services that want it; a Service that ranks first in
//! all of its slots is served, which refuses everyone else who wants one of
//! them, which may bring others to the top. Two Services that are first
//! everywhere share no slot, so it does not matter which is served first. If
//! nobody is first everywhere, two Services hold a slot each and want the
//! other's too; then the oldest wins, and the circle is broken.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;

use crate::{
    key::ServiceKey,
    node::ConflictReason,
    port::{Family, PortKey},
};

/// What can be given to one Service only on a node: a port in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The address family.
    pub family: Family,
    /// The protocol and port.
    pub port: PortKey,
}

/// How good the reason is for which a Service gets a slot; the best sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It is advertised with this port at an address of this node.
    Here,
    /// It is advertised with this port, at other nodes only.
    Elsewhere,
    /// It is not advertised with this port.
    Newcomer,
}

/// One Service's wish on one node: all of these slots, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who asks.
    pub service: ServiceKey,
    /// When it was created.
    pub created: Timestamp,
    /// What it asks for, and how it ranks for each. Never empty.
    pub slots: BTreeMap<Slot, Rank>,
    /// Those of its slots that something on the host has already, as far as that
    /// is not the Service's own doing.
    pub taken: BTreeMap<Slot, Holder>,
}

/// Why a slot is refused to a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// What is refused.
    pub slot: Slot,
    /// Who has it.
    pub holder: Holder,
}

/// Who has a slot that a Service wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Another Service that this node serves.
    Service(ServiceKey),
    /// A socket of the host.
    Socket {
        /// What it is bound to.
        bound: SocketAddr,
        /// The user it belongs to.
        uid: u32,
    },
    /// A socket of the host that is gone and keeps its port for a while.
    Left {
        /// What it was bound to.
        bound: SocketAddr,
        /// The user it belonged to.
        uid: u32,
    },
    /// The Service's own hostNetwork Pod, which its source ranges do not cover.
    OwnSocket {
        /// What it is bound to.
        bound: SocketAddr,
    },
    /// Nobody gets it: the agent's `--reserved-ports` names it.
    Reserved,
    /// A Pod's hostPort.
    HostPort {
        /// The Pod, as `namespace/name`.
        pod: String,
    },
    /// A NodePort, which kube-proxy serves on every node.
    NodePort(ServiceKey),
    /// A health check NodePort, which kube-proxy serves on every node.
    HealthCheckNodePort(ServiceKey),
    /// An externalIP that is an address of this node.
    ExternalIp {
        /// The Service that has it.
        service: ServiceKey,
        /// The address.
        address: IpAddr,
    },
    /// An address of this node that another load balancer has written into a Service's
    /// status.
    LoadBalancerAddress {
        /// The Service that has it.
        service: ServiceKey,
        /// The address.
        address: IpAddr,
    },
    /// The source ranges of other Services: there is no room for more of them.
    SourceRanges {
        /// How many the node takes.
        most: usize,
    },
}

impl Holder {
    /// The reason of a conflict with this holder.
    #[must_use]
    pub fn reason(&self) -> ConflictReason {
        match self {
            Self::Service(_) => ConflictReason::HeldByService,
            Self::Socket { .. } | Self::Left { .. } => ConflictReason::HostListener,
            Self::OwnSocket { .. } => ConflictReason::SourceRangesNotEnforced,
            Self::Reserved => ConflictReason::ReservedPort,
            Self::HostPort { .. } => ConflictReason::HostPort,
            Self::NodePort(_) => ConflictReason::NodePort,
            Self::HealthCheckNodePort(_) => ConflictReason::HealthCheckNodePort,
            Self::ExternalIp { .. } => ConflictReason::ExternalIp,
            Self::LoadBalancerAddress { .. } => ConflictReason::LoadBalancerAddress,
            Self::SourceRanges { .. } => ConflictReason::TooManySourceRanges,
        }
    }
}

/// As people read it: `Service default/traefik`, `socket 0.0.0.0:22 uid 0`.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "Service {service}"),
            Self::Socket { bound, uid } => write!(f, "socket {bound} uid {uid}"),
            Self::OwnSocket { bound } => write!(
                f,
                "its own hostNetwork Pod, socket {bound}, where its source ranges do not hold"
            ),
            // Without the time that is left, which would be another text every second.
            Self::Left { bound, uid } => {
                write!(
                    f,
                    "socket {bound} uid {uid}, closed a moment ago and still held"
                )
            }
            Self::Reserved => f.write_str("--reserved-ports of the agent"),
            Self::HostPort { pod } => write!(f, "Pod {pod} hostPort"),
            Self::NodePort(service) => write!(f, "Service {service} nodePort"),
            Self::HealthCheckNodePort(service) => {
                write!(f, "Service {service} healthCheckNodePort")
            }
            Self::ExternalIp { service, address } => {
                write!(f, "Service {service} externalIP {address}")
            }
            Self::LoadBalancerAddress { service, address } => {
                write!(f, "Service {service} load balancer address {address}")
            }
            Self::SourceRanges { most } => {
                write!(
                    f,
                    "nobody, but other Services use the node's {most} source ranges"
                )
            }
        }
    }
}

/// Who is served and who is refused on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The Services this node serves, with all of their slots.
    pub served: BTreeSet<ServiceKey>,
    /// The Services it does not serve, each with at least one reason.
    pub refused: BTreeMap<ServiceKey, Vec<Refusal>>,
}

/// The slots that are named more than once. A Service that wants none of them, and none that
/// something on the host has, is served whatever becomes of others: it needs no [`Claim`].
pub fn contested(slots: impl IntoIterator<Item = Slot>) -> BTreeSet<Slot> {
    let mut slots: Vec<Slot> = slots.into_iter().collect();
    slots.sort_unstable();
    let pairs = slots.windows(2).filter(|pair| pair[0] == pair[1]);
    pairs.map(|pair| pair[0]).collect()
}

/// Decides who gets which slot on one node. `claims` holds each Service once.
#[must_use]
pub fn arbitrate(claims: &[Claim]) -> Verdict {
    let mut contest = Contest::new(claims);
    while let Some(winner) = contest.next_winner() {
        contest.serve(winner);
    }
    contest.verdict()
}

/// What has been decided about a claim so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Undecided,
    Served,
    Refused,
}

struct Contest<'a> {
    /// Oldest first; a rival is an index into this.
    claims: Vec<&'a Claim>,
    outcome: Vec<Outcome>,
    /// In how many slots each claim is first among the undecided.
    first_in: Vec<usize>,
    /// The undecided rivals of each slot, worst first.
    rivals: BTreeMap<Slot, Vec<usize>>,
    owner: BTreeMap<Slot, usize>,
    /// Claims that became first in all of their slots.
    ready: Vec<usize>,
    /// Everything older than this index is decided.
    oldest: usize,
}

impl<'a> Contest<'a> {
    fn new(claims: &'a [Claim]) -> Self {
        let mut claims: Vec<&Claim> = claims.iter().collect();
        claims.sort_by(|a, b| by_age(a, b));
        // A claim that the host refuses anyway takes nothing from others.
        let outcome = claims.iter().map(|claim| {
            if claim.taken.is_empty() {
                Outcome::Undecided
            } else {
                Outcome::Refused
            }
        });
        let outcome: Vec<Outcome> = outcome.collect();
        let mut rivals: BTreeMap<Slot, Vec<usize>> = BTreeMap::new();
        for (index, claim) in claims.iter().enumerate() {
            if outcome[index] == Outcome::Refused {
                continue;
            }
            for slot in claim.slots.keys() {
                rivals.entry(*slot).or_default().push(index);
            }
        }
        for (slot, rivals) in &mut rivals {
            // Index order is age order, so the rank alone needs looking up.
            rivals.sort_by_key(|index| (claims[*index].slots[slot], *index));
            rivals.reverse();
        }
        let mut contest = Self {
            outcome,
            first_in: vec![0; claims.len()],
            owner: BTreeMap::new(),
            ready: Vec::new(),
            oldest: 0,
            claims,
            rivals,
        };
        let slots: Vec<Slot> = contest.rivals.keys().copied().collect();
        for slot in slots {
            contest.promote_first(slot);
        }
        contest
    }

    /// Counts the slot for whoever is first in it now.
    fn promote_first(&mut self, slot: Slot) {
        let Some(&first) = self.rivals.get(&slot).and_then(|rivals| rivals.last()) else {
            return;
        };
        self.first_in[first] += 1;
        if self.first_in[first] == self.claims[first].slots.len() {
            self.ready.push(first);
        }
    }

    fn next_winner(&mut self) -> Option<usize> {
        while let Some(index) = self.ready.pop() {
            // A loser of a broken circle may have become first before it was refused.
            if self.outcome[index] == Outcome::Undecided {
                return Some(index);
            }
        }
        // Nobody is first everywhere: break the circle by age.
        while *self.outcome.get(self.oldest)? != Outcome::Undecided {
            self.oldest += 1;
        }
        Some(self.oldest)
    }

    fn serve(&mut self, winner: usize) {
        self.outcome[winner] = Outcome::Served;
        let mut losers = BTreeSet::new();
        for slot in self.claims[winner].slots.keys() {
            self.owner.insert(*slot, winner);
            let rivals = self.rivals.remove(slot).unwrap_or_default();
            losers.extend(rivals.into_iter().filter(|rival| *rival != winner));
        }
        for loser in losers {
            self.refuse(loser);
        }
    }

    fn refuse(&mut self, loser: usize) {
        self.outcome[loser] = Outcome::Refused;
        let slots: Vec<Slot> = self.claims[loser].slots.keys().copied().collect();
        for slot in slots {
            let Some(rivals) = self.rivals.get_mut(&slot) else {
                continue; // given away already
            };
            let was_first = rivals.last() == Some(&loser);
            rivals.retain(|rival| *rival != loser);
            if was_first {
                self.promote_first(slot);
            }
        }
    }

    fn verdict(self) -> Verdict {
        let mut verdict = Verdict::default();
        for (index, claim) in self.claims.iter().enumerate() {
            if self.outcome[index] == Outcome::Served {
                verdict.served.insert(claim.service.clone());
                continue;
            }
            let refusals = claim
                .slots
                .keys()
                .filter_map(|slot| {
                    let holder = claim.taken.get(slot).cloned().or_else(|| {
                        let owner = self.claims[*self.owner.get(slot)?];
                        Some(Holder::Service(owner.service.clone()))
                    })?;
                    Some(Refusal {
                        slot: *slot,
                        holder,
                    })
                })
                .collect();
            verdict.refused.insert(claim.service.clone(), refusals);
        }
        verdict
    }
}

fn by_age(a: &Claim, b: &Claim) -> Ordering {
    (a.created, &a.service).cmp(&(b.created, &b.service))
}

#[cfg(test)]
#[path = "arbitration_tests.rs"]
mod tests;
