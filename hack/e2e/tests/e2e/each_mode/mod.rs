//! The path of packets, and what depends on kube-proxy's mode: on a cluster of each mode.

mod addresses;
mod changes;
mod fields;
mod host_rules;
mod local;
mod mtu;
mod sctp;
mod service;
mod source_ranges;
mod udp;
