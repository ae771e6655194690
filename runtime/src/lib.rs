//! The plumbing that the Highwire agent and controller share: watches and what is known
//! from them, the client, health and metrics over HTTP, logging and signals. Nothing
//! here decides anything about Services.

pub mod admin;
pub mod client;
pub mod errors;
pub mod explain;
pub mod heartbeat;
pub mod http;
pub mod local;
pub mod logging;
pub mod metrics;
pub mod mirror;
pub mod printable;
mod retry;
pub mod signals;
pub mod uninstall;
pub mod watch;
