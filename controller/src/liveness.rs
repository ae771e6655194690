//! Whether an agent is alive, judged by when *this process* saw its Lease renewed.
//!
//! Clocks of two machines are never compared, except once: a Lease seen for the
//! first time may be long expired, which only its own time stamps can tell.
//!
//! No news is not always bad news. While the API server is away nobody can renew,
//! and if our watch hangs we don't hear of renewals. So a Lease only goes stale
//! while others are seen to be renewed: [`Pulse`]. The controllers' own Lease is
//! renewed every two seconds, so even in a cluster with one agent there is a pulse.

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
    /// while: alive or dead, we can't tell. Whoever is advertised stays, nobody is
    /// added. Goes to `Fresh` by a renewal, to `Stale` when its duration has passed.
    Unproven,
    /// Not renewed for its duration. Goes to `Fresh` by a renewal.
    Stale,
}

/// One agent's Lease as this process followed it.
#[derive(Clone, Debug)]
pub(crate) struct Vitality {
    renewed: Option<Timestamp>,
    duration: Duration,
    expires: Instant,
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
            expires: now.instant + duration,
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
            expires: now.instant + duration,
            freshness: Freshness::Fresh,
        };
        true
    }

    /// Passes judgement if the duration has passed. Returns whether that changed anything.
    pub(crate) fn expire(&mut self, now: Now) -> bool {
        let due = self.freshness != Freshness::Stale && self.expires <= now.instant;
        if due {
            self.freshness = Freshness::Stale;
        }
        due
    }

    /// Gives another duration after a time in which nothing was heard. Returns
    /// whether that changed the freshness.
    pub(crate) fn reprieve(&mut self, now: Now) -> bool {
        if self.freshness == Freshness::Stale {
            return false;
        }
        let lapsed = self.expires <= now.instant;
        self.expires = now.instant + self.duration;
        lapsed && std::mem::replace(&mut self.freshness, Freshness::Unproven) == Freshness::Fresh
    }

    /// What the Lease says now.
    pub(crate) fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// When the next judgement is due; `None` if it has been passed.
    pub(crate) fn expires(&self) -> Option<Instant> {
        (self.freshness != Freshness::Stale).then_some(self.expires)
    }
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
