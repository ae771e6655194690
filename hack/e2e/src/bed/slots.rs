//! Which of a node's Pod numbers are taken. A Pod's number is the last part of its
//! addresses and of its namespace's name.

use anyhow::{Result, bail};

use crate::lab::netns::Netns;
use crate::lab::state::State;

/// Pods a node has room for; numbers 2 to 251 of its CIDR.
const SLOTS: u64 = 250;

/// Creates the namespace of the next free slot: addresses are reused late, and
/// creating the namespace is what makes a slot taken.
pub(crate) fn take(state: &State, node: &str) -> Result<u8> {
    for _ in 0..SLOTS {
        let slot = u8::try_from(2 + state.next(&format!("slot-{node}"))? % SLOTS)?;
        let namespace = netns(state, node, slot);
        if namespace.exists() {
            continue;
        }
        match namespace.create() {
            Ok(()) => return Ok(slot),
            // Somebody was faster.
            Err(_) if namespace.exists() => {}
            Err(error) => return Err(error),
        }
    }
    bail!("no room for another Pod on {node}")
}

/// The namespace of a Pod.
pub(crate) fn netns(state: &State, node: &str, slot: u8) -> Netns {
    Netns::of(state, format!("{node}-p{slot}"))
}
