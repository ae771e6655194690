//! A Kubernetes cluster in the laboratory, with nothing of Highwire in it.

pub mod audit;
pub mod cilium;
pub mod config;
pub mod controlplane;
pub mod handle;
pub mod kubelet;
pub mod kubeproxy;
pub mod layout;
pub mod lifecycle;
pub mod network;
pub mod nodes;
pub mod pki;
pub mod private;
pub mod relay;
