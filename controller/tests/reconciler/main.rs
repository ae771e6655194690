//! The whole reconciler against a small API server, and the laws of agents and controller
//! together.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod addresses;
mod conflicts;
mod decisions;
mod explain;
mod external;
mod laws;
mod leaving;
mod local_policy;
mod loss;
mod lost_answers;
mod objects;
mod overwrites;
mod serving;
mod silence;
mod sim_node;
mod world;
