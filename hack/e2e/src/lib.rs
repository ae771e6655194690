//! A real Kubernetes control plane without containers, and what tests need on it.
//!
//! Processes are the upstream ones (etcd, kube-apiserver, kube-controller-manager,
//! one kube-proxy per node) and our own agents and controllers; nodes, Pods and
//! clients are network namespaces. [`layout`] draws the network. Nothing touches
//! the host's own network, and everything made is written down under
//! `/run/highwire/<cluster>/`, so that it can always be taken away again.
//!
//! `hack/cluster` runs the clusters; a test attaches to one that is up:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use highwire_e2e::{Cluster, Scope, wait_for};
//! # async fn example() -> anyhow::Result<()> {
//! let cluster = Cluster::attach().await?;
//! let scope = Scope::new(&cluster, "example").await?;
//! scope.pod("web-1").on("n1").label("app", "web").tcp(8080).start().await?;
//! let web = scope.service("web").node_port().tcp(80, 8080).create().await?;
//! let to = cluster.node("n2")?.v4(web.node_port(80)?);
//! let reply = wait_for("an answer", Duration::from_secs(10), || async {
//!     cluster.outside().http_get(to, Duration::from_secs(1))
//! })
//! .await;
//! assert_eq!(reply.pod, "web-1");
//! # Ok(())
//! # }
//! ```

pub mod cluster;
pub mod controlplane;
pub mod highwire;
pub mod kubelet;
pub mod kubeproxy;
pub mod layout;
pub mod lifecycle;
pub mod load;
pub mod netns;
pub mod nodes;
pub mod pki;
pub mod pod;
pub mod private;
pub mod program;
pub mod relay;
pub mod requirements;
pub mod scope;
pub mod service;
mod slots;
pub mod state;
pub mod traffic;
pub mod unit;
pub mod wait;
pub mod wiring;
pub mod workload;

pub use cluster::{Cluster, Node};
pub use kubelet::Kubelet;
pub use layout::{IpFamily, ProxyMode};
pub use netns::{Netns, Output};
pub use pod::Pod;
pub use private::PrivateCluster;
pub use program::Program;
pub use requirements::tests_need_root;
pub use scope::Scope;
pub use service::Svc;
pub use traffic::{ConnectError, EchoReply, EchoStream, UdpFlow};
pub use wait::wait_for;
pub use workload::Install;
