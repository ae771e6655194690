//! What a Service's port is on a box, in the words of PaperLB's updaters.
//!
//! Read in didil/nginx-lb-updater (`server/handlers/lb.go`, `services/lb_updater.go`): POST
//! makes a backend or replaces it, DELETE removes it and is content if there is none. Any
//! status below 400 means that it was written down, and not that nginx has it. A protocol
//! other than `udp` in any case is TCP. Hosts go into nginx's configuration as
//! `server HOST:PORT`, so an IPv6 address needs its brackets. A backend without servers is one
//! that nginx refuses, with all others in that file tree, so it is deleted instead.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16};

use highwire_api::{
    Protocol, ServiceKey,
    external::{BoxPort, LoadBalancerSpec, Target, spec::RecordedBackend},
};
use serde::Serialize;

/// The name of the backend of a Service's port. Names of Services and namespaces have no
/// underscore, so two never share one.
#[must_use]
pub fn backend_name(service: &ServiceKey, port: &BoxPort) -> String {
    let protocol = port.protocol.as_str().to_lowercase();
    let (namespace, name) = (&service.namespace, &service.name);
    format!("{namespace}_{name}_{}_{protocol}", port.port)
}

/// The backends of a LoadBalancer by name, as the updater at that URL should have them.
pub fn backends<'a>(
    service: &'a ServiceKey,
    spec: &'a LoadBalancerSpec,
    url: &'a str,
) -> impl Iterator<Item = (RecordedBackend, Backend)> + 'a {
    let with_targets = spec.ports.iter().filter(|port| !port.targets.is_empty());
    with_targets.filter_map(move |port| {
        let backend = Backend {
            port: NonZeroU16::new(port.box_port)?,
            protocol: port.protocol,
            targets: port.targets.iter().cloned().collect(),
        };
        let recorded = RecordedBackend {
            backend_name: backend_name(service, port),
            url: url.to_owned(),
        };
        Some((recorded, backend))
    })
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The box's port.
    pub port: NonZeroU16,
    /// TCP or UDP: the protocol has no word for SCTP.
    pub protocol: Protocol,
    /// Where its traffic goes; never empty.
    pub targets: BTreeSet<Target>,
}

/// The body of a POST.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Update<'a> {
    backend_name: &'a str,
    lb_port: u16,
    lb_protocol: &'static str,
    upstream_servers: Vec<Upstream>,
    // 0 is "as the box is set up".
    proxy_timeout_seconds: u32,
    proxy_connect_timeout_seconds: u32,
}

#[derive(Debug, Serialize)]
struct Upstream {
    host: String,
    port: u16,
}

/// The body of a DELETE.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Removal<'a> {
    backend_name: &'a str,
}

impl Backend {
    /// The body that makes it so.
    #[must_use]
    pub fn body(&self, name: &str) -> serde_json::Value {
        let servers = self.targets.iter().map(|target| Upstream {
            host: match target.address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            },
            port: target.port,
        });
        serde_json::json!(Update {
            backend_name: name,
            lb_port: self.port.get(),
            lb_protocol: self.protocol.as_str(),
            upstream_servers: servers.collect(),
            proxy_timeout_seconds: 0,
            proxy_connect_timeout_seconds: 0,
        })
    }
}

/// The body that removes a backend.
#[must_use]
pub fn removal(name: &str) -> serde_json::Value {
    serde_json::json!(Removal { backend_name: name })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_backend_is_written_as_the_updaters_read_it() {
        let targets = ["10.0.0.1", "fd00::1"].map(|address| Target {
            address: address.parse().unwrap(),
            port: 30053,
        });
        let spec = LoadBalancerSpec {
            external_load_balancer: "box".to_owned(),
            ports: vec![BoxPort {
                port: 53,
                protocol: Protocol::Udp,
                box_port: 1053,
                targets: targets.into(),
            }],
            ..LoadBalancerSpec::default()
        };
        let service = "kube-system/dns".parse().unwrap();
        let (recorded, backend) = backends(&service, &spec, "http://box").next().unwrap();
        let name = recorded.backend_name;
        assert_eq!(
            backend.body(&name),
            json!({
                "backendName": "kube-system_dns_53_udp",
                "lbPort": 1053,
                "lbProtocol": "UDP",
                "upstreamServers": [
                    {"host": "10.0.0.1", "port": 30053},
                    {"host": "[fd00::1]", "port": 30053},
                ],
                "proxyTimeoutSeconds": 0,
                "proxyConnectTimeoutSeconds": 0,
            })
        );
        assert_eq!(
            removal(&name),
            json!({"backendName": "kube-system_dns_53_udp"})
        );
    }
}
