//! Whether an agent is alive, judged by when *this process* saw its Lease renewed.
//!
//! Clocks of two machines are never compared, except once: a Lease seen for the
//! first time may be long expired, which only its own time stamps can tell.
//!
//! No news is not always bad news. While the API server is away nobody can renew,
//! and if our watch hangs we don't hear of renewals. So a Lease only goes stale
//! while others are seen to be renewed: [`Pulse`]. The controllers' own Lease is
//! renewed every two seconds, so even in a cluster with one agent there is a pulse.
//!
//! And an API server may throttle the agents alone (they share one flow of its
//! priority and fairness), while kubelets and controllers renew. So Leases that lapse
//! together prove nothing: [`lapse_together`].

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// The longest silence between renewals that still counts as hearing. Longer than
/// the renewal interval of agents (4 s) and of the leading controller (2 s).
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// The time, as pure code gets to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// For everything that is measured.
    pub(crate) instant: Instant,
    /// For comparison with time stamps that others wrote.
    pub(crate) wall: Timestamp,
}

impl Now {
    /// The time of this machine.
    pub(crate) fn read() -> Self {
        Self {
            instant: Instant::now(),
            wall: Timestamp::now(),
        }
    }
}

/// What a Lease says about the one who renews it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Renewed within its duration. Goes to `Stale` when that has passed.
    Fresh,
    /// Expired by its own time stamps when first seen, or nothing was heard for a
    /// while, or it lapsed together with others: alive or dead, we can't tell. Whoever
    /// is advertised stays, nobody is added. Goes to `Fresh` by a renewal. Judged again
    /// when another duration has passed.
    Unproven,
    /// Not renewed for its duration, a moment ago: its node is advertised no more,
    /// unless a list would become empty. Goes to `Fresh` by a renewal, to `Stale` when
    /// the hold has passed.
    Lost,
    /// Not renewed for its duration and the hold. Goes to `Fresh` by a renewal.
    Stale,
}

/// One agent's Lease as this process followed it.
#[derive(Clone, Debug)]
pub(crate) struct Vitality {
    renewed: Option<Timestamp>,
    duration: Duration,
    /// When the last renewal was seen.
    heard: Instant,
    /// When the next judgement is due.
    due: Instant,
    freshness: Freshness,
}

impl Vitality {
    /// A Lease seen for the first time.
    pub(crate) fn first_seen(renewed: Option<Timestamp>, duration: Duration, now: Now) -> Self {
        let expired = renewed.is_none_or(|renewed| {
            now.wall.duration_since(renewed)
                > jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
        });
        Self {
            renewed,
            duration,
            heard: now.instant,
            due: now.instant + duration,
            freshness: if expired {
                Freshness::Unproven
            } else {
                Freshness::Fresh
            },
        }
    }

    /// The Lease as it is now. Returns whether it was renewed since last seen.
    pub(crate) fn seen_again(
        &mut self,
        renewed: Option<Timestamp>,
        duration: Duration,
        now: Now,
    ) -> bool {
        if renewed.is_none() || renewed == self.renewed {
            return false;
        }
        *self = Self {
            renewed,
            duration,
            heard: now.instant,
            due: now.instant + duration,
            freshness: Freshness::Fresh,
        };
        true
    }

    /// Passes judgement if it is due: the Lease is lost, and after `hold` stale; or it is
    /// unproven, if it lapsed `together` with others. Returns whether that changed
    /// anything.
    pub(crate) fn judge(&mut self, together: bool, hold: Duration, now: Now) -> bool {
        if self.due().is_none_or(|due| due > now.instant) {
            return false;
        }
        self.freshness = match self.freshness {
            Freshness::Fresh | Freshness::Unproven if together => return self.reprieve(now),
            Freshness::Fresh | Freshness::Unproven if !hold.is_zero() => Freshness::Lost,
            _ => Freshness::Stale,
        };
        self.due = now.instant + hold;
        true
    }

    /// Gives another duration, because silence proves nothing now. Returns whether that
    /// changed the freshness.
    pub(crate) fn reprieve(&mut self, now: Now) -> bool {
        if self.freshness == Freshness::Stale {
            return false;
        }
        let lapsed = self.due <= now.instant;
        self.due = self.due.max(now.instant + self.duration);
        if lapsed && self.freshness == Freshness::Fresh {
            self.freshness = Freshness::Unproven;
            return true;
        }
        false
    }

    /// What the Lease says now.
    pub(crate) fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// When the next judgement is due; `None` if it has been passed.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.freshness != Freshness::Stale).then_some(self.due)
    }

    /// Whether it is unproven or has missed a renewal. Agents renew three times in a
    /// duration.
    fn is_silent(&self, now: Now) -> bool {
        self.freshness == Freshness::Unproven
            || now.instant.duration_since(self.heard) > self.duration * 2 / 3
    }

    /// Whether it is unproven or was good within the last duration.
    fn is_recent(&self, now: Now) -> bool {
        self.freshness == Freshness::Unproven
            || now.instant.duration_since(self.heard) <= self.duration * 2
    }
}

/// Whether so many of these Leases are silent at once that the API server is the
/// likelier cause than so many deaths: at least two, and more than a third of those
/// that were good within their last duration. So one agent of one, two or three that
/// dies is dead.
pub(crate) fn lapse_together<'a>(leases: impl Iterator<Item = &'a Vitality>, now: Now) -> bool {
    let (mut recent, mut silent) = (0, 0);
    for lease in leases.filter(|lease| lease.is_recent(now)) {
        recent += 1;
        silent += usize::from(lease.is_silent(now));
    }
    silent >= 2 && 3 * silent > recent
}

/// Whether renewals are heard at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse {
    last: Option<Instant>,
}

impl Pulse {
    /// All Leases have been read for the first time.
    pub(crate) fn begin(&mut self, now: Now) {
        self.last.get_or_insert(now.instant);
    }

    /// Some Lease was renewed. Returns whether there was silence before.
    pub(crate) fn beat(&mut self, now: Now) -> bool {
        let silent = self.is_silent(now);
        self.last = Some(now.instant);
        silent
    }

    /// Whether nothing has been heard for so long that no judgement can be passed.
    pub(crate) fn is_silent(&self, now: Now) -> bool {
        self.last
            .is_none_or(|last| now.instant.duration_since(last) > LONGEST_SILENCE)
    }
}

#[cfg(test)]
#[path = "liveness_tests.rs"]
mod tests;
