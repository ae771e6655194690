//! What tests put on a cluster and expect of it: Pods, Services, traffic.

mod account;
pub mod browser;
pub mod clients;
pub mod edge;
pub mod evidence;
pub mod expect;
pub mod external;
pub mod hints;
pub mod manifests;
pub mod outside_box;
pub mod pod;
pub mod prometheus;
pub mod readers;
pub mod reported;
pub mod scope;
pub mod service;
mod slots;
pub mod test;
pub mod traffic;
pub mod workload;
