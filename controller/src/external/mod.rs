//! Services of class `highwire.dev/external`: what boxes outside the cluster do for them.
//!
//! ```text
//! Services, Nodes, EndpointSlices ──plan──> LoadBalancers ──backends──> box
//!    ^                                           │                       │
//!    └──────── addresses, conditions ── status <─┴───────────────────────┘
//! ```
//!
//! [`plan`] gives out the ports of the boxes and finds the targets ([`targets`]). What it
//! decides is written into LoadBalancers, and what those say becomes backends ([`backend`]),
//! which a [`driver`] per box sends in time ([`schedule`]). The leader does this; every
//! controller reads the LoadBalancers' status for that of the Services.

pub mod backend;
pub mod connection;
pub mod credentials;
pub mod driver;
pub mod edges;
pub mod keeper;
pub mod objects;
pub mod plan;
pub mod schedule;
pub mod snapshot;
pub mod status;
pub mod targets;
pub mod updater;
mod updater_error;
