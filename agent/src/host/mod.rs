//! Facts about the host that the API server does not know.

pub mod addresses;
pub mod forwarding;
pub mod hold_down;
pub mod listeners;
pub mod netlink;
mod nf_objects;
pub mod pods;
pub mod proxy;
pub mod sctp;
pub mod service_ports;
pub mod sockets;
pub mod table_events;
