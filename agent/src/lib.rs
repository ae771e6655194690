//! The Highwire agent: one per opted-in node.
//!
//! What it knows ([`facts`]) leads to one pure decision ([`decide`]). The difference to
//! what is there is written: to nftables ([`table`]), to conntrack for UDP ([`udp`]) and to
//! the API server ([`report`]). [`agent_loop`] joins them and [`app`] wires everything.
//! `README.md` beside this crate draws the packet's path.

pub mod agent_loop;
pub mod app;
pub mod config;
pub mod decide;
pub mod edge;
pub mod explain;
pub mod facts;
pub mod leave;
pub mod metrics;
pub mod netlink;
pub mod nftables_key;
pub mod port_ranges;
pub mod report;
pub mod start;
pub mod table;
pub mod udp;
