//! `highwire-agent explain`: every claimed port of this node, who asked, who has
//! it and why not, from live facts and without touching anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use anyhow::{Context, Result, bail};
use highwire_api::{Problem, ServiceSpec, node::Conflict};
use highwire_runtime::mirror::Mirror;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{Api, Client, api::ListParams, runtime::watcher::Event};

use crate::{
    config::Policy,
    decide::{Decision, decide},
    facts::{
        Facts, addresses,
        listener_history::Listeners,
        listeners,
        node::NodeFacts,
        pods::LocalPod,
        service_proxy::ServiceProxy,
        services::{ServiceFacts, Services},
        sysctls::Sysctls,
    },
};

/// Prints the table for a node. It must run on that node: sockets and addresses
/// are those of the host it runs on.
///
/// # Errors
/// If the API server or the kernel cannot be asked.
pub async fn explain(client: Client, node_name: &str, policy: &Policy) -> Result<()> {
    let listed = Api::<Service>::all(client.clone());
    let listed = listed.list(&ListParams::default()).await;
    let mut services = Services::new(policy.class_policy);
    for event in list(listed.context("cannot list Services")?.items) {
        services.absorb(event);
    }
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node_name}"));
    let listed = Api::<Pod>::all(client.clone()).list(&on_node).await;
    let mut pods = Mirror::default();
    for event in list(listed.context("cannot list the node's Pods")?.items) {
        pods.absorb(event, LocalPod::of);
    }
    let node = Api::<Node>::all(client).get_opt(node_name).await;
    let Some(node) = node.context("cannot read the Node")? else {
        bail!("there is no Node {node_name:?}; --node takes a name as in `kubectl get nodes`");
    };
    let node = NodeFacts::of(&node);
    let none = (BTreeMap::new(), BTreeMap::new());
    let services = services.known().unwrap_or(&none.0);
    let decision = decide(&Facts {
        services,
        node: &node,
        addresses: &addresses::read()?,
        pods: pods.known().unwrap_or(&none.1),
        listeners: &Listeners {
            open: listeners::scan()?,
            // Those are known to the running agent only.
            held: Vec::new(),
        },
        sysctls: &Sysctls::read(),
        proxy: &ServiceProxy::default(),
        policy,
        left_out: &BTreeMap::new(),
    });
    print!("{}", table(node_name, &node, services, &decision));
    print!("{}", left_alone(services));
    Ok(())
}

/// A list as a watch would bring it.
fn list<K>(items: Vec<K>) -> impl Iterator<Item = Event<K>> {
    let items = items.into_iter().map(Event::InitApply);
    [Event::Init]
        .into_iter()
        .chain(items)
        .chain([Event::InitDone])
}

/// The Services that other load balancers serve, a line each.
fn left_alone(services: &BTreeMap<String, ServiceFacts>) -> String {
    let line = |service: &ServiceFacts| {
        let manager = service.managed_elsewhere.clone()?;
        let problem = Problem::ManagedElsewhere { manager };
        Some(format!("Service {}: {problem}\n", service.key))
    };
    services.values().filter_map(line).collect()
}

/// The table as text.
fn table(
    node_name: &str,
    node: &NodeFacts,
    services: &BTreeMap<String, ServiceFacts>,
    decision: &Decision,
) -> String {
    let mut rows = vec![["PORT", "SERVICE", "STATE", "HELD BY", "REASON"].map(str::to_owned)];
    let specs = services
        .values()
        .filter_map(|it| Some(&it.ours.as_ref()?.spec));
    let specs: BTreeMap<_, &ServiceSpec> = specs.map(|spec| (&spec.key, spec)).collect();
    let claims: BTreeSet<_> = specs
        .iter()
        .flat_map(|(key, spec)| {
            let ports = spec.ports.keys();
            ports.map(|port| (port.port, port.protocol, *key))
        })
        .collect();
    for (port, protocol, key) in claims {
        let spec = specs[key];
        let refusals = |c: &&Conflict| c.service == *key;
        let here = |c: &&Conflict| refusals(c) && c.port == port.get() && c.protocol == protocol;
        let (state, held_by, reason) = if let Some(c) = decision.conflicts.iter().find(here) {
            ("refused", c.held_by.clone(), c.reason.as_str().to_owned())
        } else if decision.served.contains(key) {
            ("served", format!("Service {key}"), String::new())
        } else if let Some(c) = decision.conflicts.iter().find(refusals) {
            (
                "refused",
                "-".to_owned(),
                format!("all or nothing: {}/{} is refused", c.port, c.protocol),
            )
        } else if !node.enabled {
            (
                "not here",
                "-".to_owned(),
                "the node has not opted in".to_owned(),
            )
        } else if !spec.node_selector.matches(&node.labels) {
            (
                "not here",
                "-".to_owned(),
                format!("node-selector {}", spec.node_selector),
            )
        } else {
            (
                "not here",
                "-".to_owned(),
                "no address of the Service's family".to_owned(),
            )
        };
        rows.push([
            format!("{port}/{protocol}"),
            key.to_string(),
            state.into(),
            held_by,
            reason,
        ]);
    }
    let addresses: Vec<String> = decision
        .plan
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut text = format!("Node {node_name}, serving at {}\n\n", addresses.join(", "));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    for [port, service, state, held_by, reason] in &rows {
        let [a, b, c, d] = widths;
        let line = format!("{port:a$}  {service:b$}  {state:c$}  {held_by:d$}  {reason}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if rows.len() == 1 {
        text.push_str("no LoadBalancer Service of ours asks for a port\n");
    }
    text
}
