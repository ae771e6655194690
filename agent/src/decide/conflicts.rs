//! Which of the refused ports fit into a report.

use std::collections::BTreeSet;

use highwire_api::{
    ServiceKey,
    node::{Conflict, MOST_CONFLICTS, MOST_REFUSED_BYTES},
};

/// The conflicts that a report explains, and the Services of all others; `None` if it
/// cannot name them all.
#[must_use]
pub fn for_report(conflicts: &[Conflict]) -> (&[Conflict], Option<Vec<ServiceKey>>) {
    let (explained, others) = conflicts.split_at(conflicts.len().min(MOST_CONFLICTS));
    let known: BTreeSet<&ServiceKey> = explained.iter().map(|c| &c.service).collect();
    let all: BTreeSet<&ServiceKey> = others.iter().map(|c| &c.service).collect();
    let named: Vec<ServiceKey> = all.difference(&known).copied().cloned().collect();
    // Quotes, a slash and a comma stand around each.
    let size = |key: &ServiceKey| key.namespace.len() + key.name.len() + 4;
    let fits = named.iter().map(size).sum::<usize>() <= MOST_REFUSED_BYTES;
    (explained, fits.then_some(named))
}
