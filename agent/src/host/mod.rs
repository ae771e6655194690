//! Facts about the host that the API server does not know.

pub mod addresses;
pub mod forwarding;
