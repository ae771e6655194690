//! Pods and Services that clients use meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::expect::LONG;
use highwire_e2e::{Cluster, Netns, Node, ProxyMode, Scope, Svc, highwire, wait_for};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};

use crate::load::{Kind, Stream, Tally};
use crate::output::document::Document;
use crate::output::table::{Table, number};

/// What the names of the Pods begin with.
const PODS: &str = "web-";
/// On each node.
const PODS_PER_NODE: usize = 2;
/// Ports of the Pods.
const TCP: u16 = 8080;
const UDP: u16 = 5353;
/// Requests of each kind for each new TCP connection.
const SHARES: [(Kind, f64); 4] = [
    (Kind::NewConnection, 1.0),
    (Kind::KeptConnection, 0.4),
    (Kind::NewFlow, 0.2),
    (Kind::KeptFlow, 0.2),
];

/// A Service of each external traffic policy, with TCP and UDP on one port, in all families that
/// the cluster has, and Pods for them on every serving node.
pub(crate) struct Bed {
    pub(crate) cluster: Cluster,
    pub(crate) scope: Scope,
    services: Vec<(&'static str, u16, Svc)>,
}

impl Bed {
    /// Makes it and waits until all is listed and answers.
    pub(crate) async fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        highwire::require(cluster)?;
        let scope = Scope::new(cluster, name).await?;
        // Whoever closes a connection keeps it for a minute, in which it collides with new
        // ones from kube-proxy's random ports.
        let no_time_wait = ("net/ipv4/tcp_max_tw_buckets", "1");
        for node in highwire::SERVING {
            for number in 1..=PODS_PER_NODE {
                let pod = scope.pod(&format!("{PODS}{node}-{number}")).on(node);
                let pod = pod.label("app", "web").tcp(TCP).udp(UDP).start().await?;
                pod.netns().sysctl(&[no_time_wait])?;
            }
        }
        let ports = ("net/ipv4/ip_local_port_range", "1024 65535");
        cluster.outside().sysctl(&[no_time_wait, ports])?;
        let mut services = Vec::new();
        for policy in ["Cluster", "Local"] {
            let port = scope.free_port()?;
            let service = scope.service(&policy.to_lowercase()).load_balancer();
            let service = service.select("app", "web").tcp(port, TCP).udp(port, UDP);
            let service =
                match cluster.config().ip_family.has_v4() && cluster.config().ip_family.has_v6() {
                    true => service.dual_stack(),
                    false => service,
                };
            let service = match policy {
                "Local" => service.external_local(),
                _ => service,
            };
            services.push((policy, port, service.create().await?));
        }
        let bed = Self {
            cluster: cluster.clone(),
            scope,
            services,
        };
        bed.listed().await?;
        Ok(bed)
    }

    /// The nodes that serve.
    pub(crate) fn nodes(&self) -> Result<Vec<Node>> {
        let nodes = highwire::SERVING.iter();
        nodes.map(|name| self.cluster.node(name)).collect()
    }

    /// Where clients are.
    pub(crate) fn client(&self) -> Netns {
        self.cluster.outside()
    }

    /// Waits until every Service lists every address, and answers there.
    pub(crate) async fn listed(&self) -> Result<()> {
        let nodes = self.nodes()?;
        let addresses: usize = nodes.iter().map(|node| node.addresses().len()).sum();
        for (policy, port, service) in &self.services {
            wait_for(
                &format!("{policy} to list every node"),
                LONG * 2,
                || async {
                    let found = service.ingress_ips().await?;
                    ensure!(found.len() == addresses, "{found:?}");
                    anyhow::Ok(())
                },
            )
            .await;
            for node in &nodes {
                for address in node.addresses() {
                    let to = (*address, *port).into();
                    wait_for(&format!("{to} to answer"), LONG, || async {
                        self.client().http_get(to, Duration::from_secs(1))?;
                        self.client().udp_ask(to, Duration::from_secs(1))
                    })
                    .await;
                }
            }
        }
        Ok(())
    }

    /// Requests of every kind to every Service at every node: `rate` new TCP connections a
    /// second, and of the others in proportion.
    pub(crate) fn streams(&self, rate: f64) -> Result<Vec<Stream>> {
        let (mut streams, nodes) = (Vec::new(), self.nodes()?);
        let pairs = (nodes.len() * self.services.len()) as f64;
        for node in &nodes {
            let mode = self.cluster.config().proxy_modes.on(node.index);
            let mode = mode.map_or("no kube-proxy", ProxyMode::as_str);
            for (policy, port, _) in &self.services {
                let to: Vec<_> = node
                    .addresses()
                    .iter()
                    .map(|ip| (*ip, *port).into())
                    .collect();
                for (kind, share) in SHARES {
                    streams.push(Stream {
                        name: format!("{mode}, {policy}, {}", kind.name()),
                        kind,
                        to: to.clone(),
                        rate: rate * share / pairs,
                        pods: PODS,
                    });
                }
            }
        }
        Ok(streams)
    }

    /// How many of the Services were written since `versions` were read.
    pub(crate) async fn written_since(&self, versions: &[String]) -> Result<usize> {
        let now = self.versions().await?;
        Ok(now
            .iter()
            .zip(versions)
            .filter(|(now, then)| now != then)
            .count())
    }

    /// The version of each Service.
    pub(crate) async fn versions(&self) -> Result<Vec<String>> {
        let api: Api<Service> = Api::namespaced(self.cluster.client(), self.scope.namespace());
        let mut versions = Vec::new();
        for service in api.list(&ListParams::default()).await? {
            let version = service.metadata.resource_version;
            versions.push(version.context("a Service has a version")?);
        }
        Ok(versions)
    }
}

/// A row for each stream, and one for all.
pub(crate) fn table(tallies: &[Tally]) -> Table {
    let mut table = Table::new(&[
        "kube-proxy, policy, requests",
        "sent",
        "lost",
        "refused",
        "reset",
        "timeout",
        "wrong",
        "after 0.95 s",
        "p50 ms",
        "p99 ms",
        "slowest ms",
    ]);
    for tally in tallies.iter().chain(&Tally::total(tallies)) {
        let lost = tally.lost;
        let counts = [
            tally.sent(),
            lost.all(),
            lost.refused,
            lost.reset,
            lost.timeout,
            lost.wrong,
            tally.slow,
        ];
        let times = tally.times();
        let time = |share: f64| times.as_ref().map_or(f64::NAN, |it| it.percentile(share));
        let figures = counts.map(|count| count as f64);
        let figures = figures.into_iter().chain([0.5, 0.99, 1.0].map(time));
        table.row([tally.name.clone()].into_iter().chain(figures.map(number)));
    }
    table
}

/// What the generator itself could not do in time, in a sentence.
pub(crate) fn own_trouble(tallies: &[Tally]) -> String {
    let Some(all) = Tally::total(tallies) else {
        return "Nothing was sent.".to_owned();
    };
    format!(
        "Of the generator's own: {} requests were sent more than 50 ms after their time ({} ms at \
         most), {} not at all because too many were under way, {} not for want of a port or a file.",
        number(all.late as f64),
        number(all.latest().round()),
        number(all.unsent as f64),
        number(all.own as f64),
    )
}

/// The first requests that were lost, if any were.
pub(crate) fn lost(document: &mut Document, all: &Tally) {
    if all.faults.is_empty() {
        return;
    }
    document.heading("The first that were lost");
    for fault in &all.faults {
        document.paragraph(fault);
    }
}
