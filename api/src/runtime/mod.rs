//! The plumbing both programs share: watching, serving health and metrics,
//! logging and signals. Nothing here decides anything.

pub mod admin;
pub mod client;
pub mod errors;
pub mod heartbeat;
pub mod leaving;
pub mod logging;
pub mod signals;
pub mod watch;
