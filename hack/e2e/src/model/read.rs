//! Reads a cluster: the API server, the nodes' kernels, the agents' admin ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as api;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use super::read_service::{pod, service};
use super::world::{AgentState, Explained, Listener, Node, NodeReport, Protocol, World};
use crate::cluster::handle::{Cluster, Node as Handle};
use crate::highwire::program::Programs as _;
use crate::highwire::workload::NAMESPACE;

/// Reads everything.
pub(super) async fn world(cluster: &Cluster) -> Result<World> {
    let (client, all) = (cluster.client(), ListParams::default());
    let services: Api<api::Service> = Api::all(client.clone());
    let services = services.list(&all).await?.items;
    let pods: Api<api::Pod> = Api::all(client.clone());
    let pods = pods.list(&all).await?.items;
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let leases = leases.list(&all).await?.items;
    let leases = leases.into_iter().filter_map(|lease| lease.metadata.name);
    let objects: Api<api::Node> = Api::all(client);
    let mut nodes = BTreeMap::new();
    for object in objects.list(&all).await?.items {
        let name = object.metadata.name.clone().unwrap_or_default();
        // One that the cluster does not have a namespace for is not ours to judge.
        if let Ok(handle) = cluster.node(&name) {
            nodes.insert(name, node(cluster, &handle, &object)?);
        }
    }
    let services = services.iter().map(service);
    Ok(World {
        services: services
            .map(|service| (service.key.clone(), service))
            .collect(),
        pods: pods.iter().filter_map(pod).collect(),
        nodes,
        leases: leases
            .filter_map(|name| Some(name.strip_prefix("agent-")?.to_owned()))
            .collect(),
        reports: reports(cluster).await?,
    })
}

fn node(cluster: &Cluster, handle: &Handle, object: &api::Node) -> Result<Node> {
    let status = object.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.iter().flatten();
    let ready = conditions.find(|it| it.type_ == "Ready");
    let addresses = status.addresses.iter().flatten().filter_map(|it| {
        let is_external = match it.type_.as_str() {
            "ExternalIP" => true,
            "InternalIP" => false,
            _ => return None,
        };
        Some((it.address.parse().ok()?, is_external))
    });
    let netns = handle.netns();
    let agent = cluster.agent(&handle.name)?;
    let state = match (agent.is_running(), agent.get("/healthz")) {
        (false, _) => AgentState::None,
        (true, Ok(_)) => AgentState::Running,
        (true, Err(_)) => AgentState::Silent,
    };
    let explained = match state {
        AgentState::Running => explained(&agent.get("/explain?output=json").unwrap_or_default()),
        _ => None,
    };
    Ok(Node {
        name: handle.name.clone(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        ready: ready.is_none_or(|it| it.status == "True"),
        addresses: addresses.collect(),
        host_addresses: host_addresses(&netns.check(&[
            "ip", "-json", "address", "show", "dev", "eth0", "scope", "global",
        ])?)?,
        listeners: listeners(&netns.check(&["ss", "-Hlntu"])?),
        agent: state,
        has_table: netns
            .check(&["nft", "list", "tables"])?
            .contains("inet highwire"),
        proxy_mode: proxy_mode(cluster, handle)?,
        explained,
    })
}

fn proxy_mode(cluster: &Cluster, node: &Handle) -> Result<String> {
    if !cluster.config().proxy_modes.has_any() {
        return Ok("none".to_owned());
    }
    let file = cluster
        .state()
        .path(format!("pki/kube-proxy-{}.json", node.name));
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let config: Value = serde_json::from_str(&text)?;
    Ok(config["mode"].as_str().unwrap_or_default().to_owned())
}

fn host_addresses(json: &str) -> Result<BTreeSet<IpAddr>> {
    let links: Value = serde_json::from_str(json).context("read what ip says")?;
    let links = links.as_array().into_iter().flatten();
    let all = links.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    Ok(all
        .filter_map(|it| it["local"].as_str()?.parse().ok())
        .collect())
}

/// `tcp LISTEN 0 128 0.0.0.0:80 0.0.0.0:*`
fn listeners(text: &str) -> Vec<Listener> {
    let lines = text.lines();
    lines.filter_map(listener).collect()
}

fn listener(line: &str) -> Option<Listener> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let (host, port) = words.nth(3)?.rsplit_once(':')?;
    let (host, _interface) = host.split_once('%').unwrap_or((host, ""));
    let host = host.trim_matches(['[', ']']);
    let (address, families) = match host {
        "*" => (None, (true, true)),
        "0.0.0.0" => (None, (true, false)),
        "::" => (None, (false, true)),
        host => (Some(host.parse().ok()?), (false, false)),
    };
    Some(Listener {
        protocol,
        port: port.parse().ok()?,
        address,
        families,
    })
}

fn explained(json: &str) -> Option<Explained> {
    let json: Value = serde_json::from_str(json).ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = json["ports"].as_array()?.iter().map(|row| {
        let port = row["port"].as_u64().and_then(|it| u16::try_from(it).ok());
        let state = match row["state"].as_str().unwrap_or_default() {
            "served" => format!("served {}", text(&row["kernel"])),
            "refused" => format!("refused {}", text(&row["reason"])),
            other => other.to_owned(),
        };
        let key = (text(&row["service"]), text(&row["protocol"]), port?);
        Some((key, state))
    });
    Some(Explained {
        table: (text(&json["table"]["state"]), json["table"].to_string()),
        rows: rows.collect::<Option<_>>()?,
    })
}

async fn reports(cluster: &Cluster) -> Result<BTreeMap<String, NodeReport>> {
    let kind = GroupVersionKind::gvk("highwire.dev", "v1alpha1", "LoadBalancerNode");
    let resource = ApiResource::from_gvk_with_plural(&kind, "loadbalancernodes");
    let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
    let listed = api.list(&ListParams::default()).await?;
    let all = listed.into_iter().map(|object| {
        let name = object.metadata.name.unwrap_or_default();
        (name, report(&object.data["status"]))
    });
    Ok(all.collect())
}

fn report(status: &Value) -> NodeReport {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let conditions = list(&status["conditions"]);
    let ready = conditions.iter().find(|it| it["type"] == "Ready");
    let conflicts = list(&status["conflicts"]).into_iter().map(|it| {
        let port = it["port"].as_u64().and_then(|it| u16::try_from(it).ok());
        let port = port.unwrap_or_default();
        (
            text(&it["service"]),
            text(&it["protocol"]),
            port,
            text(&it["reason"]),
        )
    });
    let addresses = list(&status["addresses"]);
    NodeReport {
        ready: ready.map_or("missing".to_owned(), |it| {
            let (status, reason) = (text(&it["status"]), text(&it["reason"]));
            format!("{status} {reason}: {}", text(&it["message"]))
        }),
        services: status["services"].as_u64().unwrap_or_default(),
        conflicts: conflicts.collect(),
        addresses: addresses
            .iter()
            .filter_map(|it| it.as_str()?.parse().ok())
            .collect(),
        proxy_mode: text(&status["proxyMode"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read_as_ss_prints_them() {
        let all = listeners(
            "udp UNCONN 0 0 192.0.2.11%eth0:53 0.0.0.0:*\n\
             tcp LISTEN 0 128 *:9807 *:*\n\
             tcp LISTEN 0 128 [::]:80 [::]:*\n",
        );
        let (v4, v6): (IpAddr, IpAddr) = (
            "192.0.2.11".parse().unwrap(),
            "2001:db8:1::11".parse().unwrap(),
        );
        assert!(all[0].covers(v4, Protocol::Udp, 53) && !all[0].covers(v6, Protocol::Udp, 53));
        assert!(all[1].covers(v4, Protocol::Tcp, 9807) && all[1].covers(v6, Protocol::Tcp, 9807));
        assert!(all[2].covers(v6, Protocol::Tcp, 80) && !all[2].covers(v4, Protocol::Tcp, 80));
    }
}
