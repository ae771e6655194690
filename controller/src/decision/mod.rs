//! From facts to what the status of a Service should say. Everything here is pure: the same
//! facts give the same status, in every controller.
//!
//! `eligibility` says which nodes may be listed, `addresses` with what, `port_conflicts` who
//! refuses the Service, `serving` why it has no address. [`decide`](decide::decide) joins
//! them; `conditions` and `text` turn that into what is written.

pub mod addresses;
pub mod conditions;
pub mod decide;
pub mod eligibility;
pub mod port_conflicts;
pub mod rendezvous;
pub mod serving;
pub mod text;
