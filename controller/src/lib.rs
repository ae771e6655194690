//! The program `highwire-controller`: turns what the agents report into the status of
//! Services. See `controller/README.md`.
//!
//! `facts` → `decision` → `reconciler`, which has no I/O; `event_loop` carries out what it
//! says. A library only so that its tests can have the whole of it.

pub mod app;
pub mod config;
pub mod decision;
pub mod election;
pub mod event_loop;
pub mod events;
pub mod explain;
pub mod external;
pub mod facts;
pub mod history;
pub mod leading;
pub mod liveness;
pub mod metrics;
pub mod overwrites;
pub mod queue;
pub mod reconciler;
pub mod status_page;
pub mod status_write;
pub mod watches;
pub mod writer;
