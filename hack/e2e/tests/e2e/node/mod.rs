//! `deploy/` as shipped, run by kubelets and containerd on two nodes: n1's kube-proxy in
//! nftables mode, n2's in iptables mode, both with upstream's `minSyncPeriod`.
//!
//! All tests share one cluster. Those that change what the others stand on are alone on it.
//! Each begins by installing Highwire, which is quick where it is installed.

mod bed;
mod containers;
mod explain;
mod host_ports;
mod power;
mod rollout;
mod tokens;
mod uninstall;
