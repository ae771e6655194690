//! The tests on real clusters; `hack/test cluster` runs them.
//!
//! The folder says where a test runs. `each_mode/`: what is about the path of packets or
//! about kube-proxy's mode, on a cluster of each mode. `mixed/`: all else, once, on a
//! cluster whose nodes' kube-proxies run in different modes. `without_proxy/`: what is so only
//! without a kube-proxy, on a cluster that has none (`hack/test cluster none`, which runs
//! `each_mode/` and some of `mixed/` too). `node/`: `deploy/` as shipped, on
//! nodes with kubelets and containerd (`hack/test node`). `cilium/`: beside Cilium, which
//! connects the Pods and does kube-proxy's work (`hack/test cilium`).

mod cilium;
mod each_mode;
mod mixed;
mod node;
mod without_proxy;
