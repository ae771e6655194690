//! The metric of new connections. The kernel's counters begin anew with a table that is
//! replaced; this one goes on for as long as the agent runs.
//!
//! It begins at 0 with the agent: what the table of the agent before has counted was shown by
//! that one. What is counted between two readings is not lost when the agent itself replaces
//! the table, for it reads just before ([`super::kernel_table`]); only the connections that
//! open while nft works are. When another program removes the table or sets a counter back,
//! what was counted since the last reading is lost. The metric never runs backwards.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{IntCounterVec, Opts, Registry};

use super::{
    counters::{self, Reading},
    rules::COUNTERS,
};
use crate::netlink::NetlinkError;

/// The metric; clones share it.
#[derive(Clone)]
pub struct Connections {
    totals: IntCounterVec,
    /// The last reading; `None` before the first.
    last: Arc<Mutex<Option<Reading>>>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

impl Connections {
    /// The metric under that name, with the label `outcome`.
    ///
    /// # Errors
    /// If the name is not valid or taken.
    pub fn new(registry: &Registry, name: &str) -> prometheus::Result<Self> {
        let help = "New connections since the agent started, by what became of them";
        let totals = IntCounterVec::new(Opts::new(name, help), &["outcome"])?;
        registry.register(Box::new(totals.clone()))?;
        for outcome in COUNTERS {
            totals.with_label_values(&[outcome]);
        }
        Ok(Self {
            totals,
            last: Arc::default(),
        })
    }

    /// Reads the kernel's counters and adds what is new. Blocks.
    ///
    /// # Errors
    /// If the kernel does not answer; the next reading makes up for it.
    pub fn read(&self) -> Result<(), NetlinkError> {
        // Held while the kernel is asked: readings are added in the order in which they were
        // made.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = counters::read()?;
        if let Some(last) = last.as_ref() {
            for (name, packets) in new_since(last, &now) {
                self.totals.with_label_values(&[name]).inc_by(packets);
            }
        }
        *last = Some(now);
        Ok(())
    }

    /// How many there were with this outcome.
    #[must_use]
    pub fn get(&self, outcome: &str) -> u64 {
        self.totals.with_label_values(&[outcome]).get()
    }
}

/// What each counter has counted between two readings, as far as that can be seen.
fn new_since<'a>(last: &Reading, now: &'a Reading) -> impl Iterator<Item = (&'a str, u64)> {
    now.iter().map(|(name, counter)| {
        let before = last.get(name);
        let same = before.filter(|before| before.identity == counter.identity);
        // Below what it was: it was set back.
        let more = same.and_then(|before| counter.packets.checked_sub(before.packets));
        (name.as_str(), more.unwrap_or(counter.packets))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::counters::{Counter, Identity};

    fn reading(table: u64, object: u64, packets: u64) -> Reading {
        let counter = Counter {
            identity: Identity { table, object },
            packets,
        };
        [("rewrite".to_owned(), counter)].into()
    }

    fn new(last: &Reading, now: &Reading) -> Vec<u64> {
        new_since(last, now).map(|(_, packets)| packets).collect()
    }

    #[test]
    fn a_counter_that_goes_on_adds_the_difference() {
        assert_eq!(new(&reading(1, 2, 10), &reading(1, 2, 13)), [3]);
        assert_eq!(new(&reading(1, 2, 10), &reading(1, 2, 10)), [0]);
    }

    #[test]
    fn one_of_a_new_table_adds_all_it_has_even_if_that_is_more() {
        assert_eq!(new(&reading(1, 2, 10), &reading(2, 2, 4)), [4]);
        assert_eq!(new(&reading(1, 2, 10), &reading(2, 2, 40)), [40]);
        assert_eq!(new(&Reading::new(), &reading(2, 2, 40)), [40]);
    }

    #[test]
    fn so_does_one_that_was_replaced_alone_or_set_back() {
        assert_eq!(new(&reading(1, 2, 10), &reading(1, 9, 40)), [40]);
        assert_eq!(new(&reading(1, 2, 10), &reading(1, 2, 4)), [4]);
    }

    #[test]
    fn without_a_table_nothing_is_added() {
        assert!(new(&reading(1, 2, 10), &Reading::new()).is_empty());
    }

    #[test]
    fn every_outcome_is_a_series_from_the_start() {
        let registry = Registry::new();
        Connections::new(&registry, "connections_total").unwrap();
        assert_eq!(registry.gather()[0].get_metric().len(), COUNTERS.len());
    }
}
