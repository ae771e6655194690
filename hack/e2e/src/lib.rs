//! A real Kubernetes control plane without containers, and what tests need on it.
//!
//! Processes are the upstream ones (etcd, kube-apiserver, kube-controller-manager,
//! one kube-proxy per node, none, or Cilium) and our own agents and controllers; nodes, Pods and
//! clients are network namespaces. [`cluster::layout`] draws the network. Nothing touches
//! the host's own network, and everything made is written down under
//! `/run/highwire/<cluster>/`, so that it can always be taken away again.
//!
//! Each folder uses only those above it:
//!
//! | folder | holds |
//! |---|---|
//! | `lab/` | namespaces, wiring, processes; nothing of Kubernetes |
//! | `cluster/` | control plane, nodes, kube-proxies |
//! | `faulty_api/` | a broken network between a client and the API server |
//! | `highwire/` | our programs as their Pods would run them |
//! | `bed/` | what a test puts on a cluster and expects of it: Pods, Services, traffic |
//! | `model/` | what the whole cluster has to do in a moment of quiet, and whether it does |
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

pub mod bed;
pub mod cluster;
pub mod faulty_api;
pub mod highwire;
pub mod lab;
pub mod model;

pub use bed::clients::Clients;
pub use bed::outside_box::OutsideBox;
pub use bed::pod::Pod;
pub use bed::prometheus::Prometheus;
pub use bed::scope::Scope;
pub use bed::service::Svc;
pub use bed::traffic::{EchoReply, EchoStream, UdpFlow};
pub use bed::{expect, manifests, prometheus, reported, traffic};
pub use cluster::config::{Config, Containers, NodeKind, ProxyMode, ProxyModes, ProxySync};
pub use cluster::handle::{Cluster, Node, checkout};
pub use cluster::layout::IpFamily;
pub use cluster::private::{FileCluster, FileSlot, PrivateCluster};
pub use cluster::{layout, lifecycle, nodes};
pub use highwire::installed::{Component, Container};
pub use highwire::kubelet::Kubelet;
pub use highwire::program::{Program, Programs};
pub use highwire::workload::Install;
pub use lab::http::ConnectError;
pub use lab::machine::Machine;
pub use lab::netns::Netns;
pub use lab::unit::Unit;
pub use lab::wait::wait_for;
