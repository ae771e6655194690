//! Services as their shapes say.

use anyhow::{Context, Result};
use highwire_e2e::{Cluster, layout};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

use crate::history::{AddressType, Class, Families, Protocol, Ranges, ServiceKind, Shape};

/// Services of one namespace.
pub(crate) struct Services<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) namespace: &'a str,
}

impl Services<'_> {
    fn api(&self) -> Api<Service> {
        Api::namespaced(self.cluster.client(), self.namespace)
    }

    /// Creates the Service, or edits it as far as the API server lets it be edited.
    pub(crate) async fn put(&self, slot: u8, shape: &Shape) -> Result<()> {
        let (api, name) = (self.api(), name(slot));
        let mut wanted = merge_patch(slot, shape);
        if api.get_opt(&name).await?.is_none() {
            families(&mut wanted, shape);
            remove_nulls(&mut wanted);
            let object: Service = serde_json::from_value(wanted)?;
            return refused_or(api.create(&PostParams::default(), &object).await.map(drop));
        }
        let patch = Patch::Merge(wanted);
        let patched = api.patch(&name, &PatchParams::default(), &patch).await;
        refused_or(patched.map(drop))
    }

    pub(crate) async fn delete(&self, slot: u8) -> Result<()> {
        let deleted = self
            .api()
            .delete(&name(slot), &DeleteParams::default())
            .await;
        refused_or(deleted.map(drop))
    }

    /// Writes an ingress as another load balancer.
    pub(crate) async fn write_status(&self, slot: u8, ip: &str) -> Result<()> {
        let patch = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": ip }] } } });
        let params = PatchParams {
            field_manager: Some("other-balancer".to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch);
        let written = self.api().patch_status(&name(slot), &params, &patch).await;
        refused_or(written.map(drop))
    }
}

/// Services and Pods of even numbers belong together, and so do the others: who answers says
/// for which of two Services that want one port.
pub(crate) fn set(slot: u8) -> &'static str {
    if slot.is_multiple_of(2) {
        "even"
    } else {
        "odd"
    }
}

fn name(slot: u8) -> String {
    format!("s{slot}")
}

/// What the API server does not take does not happen.
fn refused_or(outcome: kube::Result<()>) -> Result<()> {
    if let Err(kube::Error::Api(status)) = &outcome
        && [404, 409, 422].contains(&status.code)
    {
        println!("    (refused: {})", status.message);
        return Ok(());
    }
    outcome.context("change a Service")
}

fn families(object: &mut Value, shape: &Shape) {
    object["spec"]["ipFamilies"] = match shape.families {
        Families::V4 => json!(["IPv4"]),
        Families::V6 => json!(["IPv6"]),
        Families::Dual => json!(["IPv4", "IPv6"]),
    };
}

/// Everything that the shape says, absent fields as null.
fn merge_patch(slot: u8, shape: &Shape) -> Value {
    let is_balancer = shape.kind == ServiceKind::LoadBalancer;
    let (kind, node_port) = match shape.kind {
        ServiceKind::LoadBalancer => ("LoadBalancer", None),
        ServiceKind::NodePort(port) => ("NodePort", Some(port)),
        ServiceKind::ClusterIp | ServiceKind::ExternalIp(_) => ("ClusterIP", None),
    };
    let ports = shape
        .ports
        .iter()
        .enumerate()
        .map(|(index, (protocol, port))| {
            let target = match (shape.edge, protocol) {
                (true, _) => *port,
                (false, Protocol::Tcp) => 8080,
                (false, Protocol::Udp) => 5353,
            };
            json!({
                "name": format!("{}-{port}", protocol.as_str().to_lowercase()),
                "protocol": protocol.as_str(),
                "port": port,
                "targetPort": target,
                "nodePort": node_port.filter(|_| index == 0),
            })
        });
    let has_node_ports = kind != "ClusterIP";
    let policy = |local: bool| if local { "Local" } else { "Cluster" };
    json!({
        "metadata": { "name": name(slot), "annotations": annotations(shape) },
        "spec": {
            "type": kind,
            "selector": {
                "app": if shape.edge { "edge" } else { "web" },
                "set": set(slot),
            },
            "ports": ports.collect::<Vec<_>>(),
            "ipFamilyPolicy": match shape.families {
                Families::Dual => "PreferDualStack",
                _ => "SingleStack",
            },
            "externalTrafficPolicy": has_node_ports.then(|| policy(shape.external_local)),
            "internalTrafficPolicy": policy(shape.internal_local),
            "sessionAffinity": if shape.sticky { "ClientIP" } else { "None" },
            "publishNotReadyAddresses": shape.not_ready,
            "allocateLoadBalancerNodePorts": is_balancer.then_some(shape.node_ports),
            "loadBalancerClass": match shape.class {
                Class::Ours if is_balancer => Some("highwire.dev/node"),
                Class::Others if is_balancer => Some("example.com/other"),
                _ => None,
            },
            "loadBalancerSourceRanges": match shape.ranges {
                Ranges::Client if is_balancer => Some(json!(["198.51.100.0/24"])),
                Ranges::ClientBoth if is_balancer => {
                    Some(json!(["198.51.100.10/32", "2001:db8:2::/64", "203.0.113.0/24"]))
                }
                Ranges::Others if is_balancer => Some(json!(["203.0.113.0/24"])),
                _ => None,
            },
            "externalIPs": match shape.kind {
                ServiceKind::ExternalIp(node) => Some(json!([layout::node_v4(node)])),
                _ => None,
            },
        },
    })
}

fn annotations(shape: &Shape) -> Value {
    json!({
        "highwire.dev/node-selector": shape.pool.map(|pool| format!("pool={}", pool.as_str())),
        "highwire.dev/address-type": match shape.address_type {
            AddressType::None => None,
            AddressType::ExternalIp => Some("ExternalIP"),
            AddressType::InternalIp => Some("InternalIP"),
        },
        "highwire.dev/max-addresses": shape.max_addresses.map(|most| most.to_string()),
        "highwire.dev/adopt": shape.adopt.then_some("true"),
    })
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let kept = std::mem::take(fields).into_iter();
            *fields = kept.filter(|(_, it)| !it.is_null()).collect::<Map<_, _>>();
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}
