//! What a cluster with Highwire has to do in a moment of quiet, and whether it does.
//!
//! ```text
//! API server, nodes ──► read ──► World ──► arbitration, expectation, status, report   (pure)
//!                                                    │
//! client outside, admin ports ──► probe ─────────────┴──► Violations
//! ```
//!
//! The rules are written down a second time here, in the simplest form and without a line of
//! the programs' own, since that is what finds their bugs. [`Checker::settled`] is what tests
//! and `hack/soak` call.

mod arbitration;
mod check;
mod endpoints;
mod expectation;
mod kept;
mod probe;
mod read;
mod read_service;
mod report;
mod status;
#[cfg(test)]
mod tests;
mod violation;
mod world;

pub use arbitration::{Reasons, Slot, Verdict, verdicts};
pub use check::Checker;
pub use endpoints::{Client, ready_pods};
pub use expectation::{Endpoint, Expectation, expectation};
pub use violation::{Violation, Violations};
pub use world::{
    AgentState, Author, Condition, Explained, IngressEntry, Listener, Node, NodeReport, Pod, Port,
    Protocol, Service, World,
};
