//! The Highwire agent: one per opted-in node.
//!
//! It watches LoadBalancer Services and its own Node, decides what this node
//! forwards ([`decide`]), renders that into nftables transactions ([`ruleset`]),
//! applies them ([`kernel`]), deletes conntrack entries of UDP flows that go nowhere
//! any more ([`udp`]) and reports what the kernel does ([`report`],
//! [`reporter`]). `README.md` beside this crate draws a packet's way.

pub mod app;
pub mod claims;
pub mod config;
pub mod decide;
pub mod deletions;
pub mod drift;
pub mod explain;
pub mod host;
pub mod kernel;
pub mod kernel_table;
pub mod left_out;
pub mod lifecycle;
pub mod metrics;
pub mod node;
pub mod plan;
pub mod programmer;
pub mod range_bound;
pub mod report;
pub mod reporter;
pub mod reserved;
pub mod ruleset;
pub mod services;
pub mod udp;
