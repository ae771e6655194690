//! `highwire-agent explain`: every claimed port of this node, who asked, who has
//! it and why not, from live facts and without touching anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use highwire_api::{ClassPolicy, Problem, ServiceKey, node::Conflict, ownership::Manager};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{Api, Client, api::ListParams, runtime::watcher::Event};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    claims::HostFacts,
    decide::{Decision, Facts, Wanted, decide},
    host::{
        addresses::{self, AddressPolicy, HostAddress},
        listeners,
        pods::PodIndex,
    },
    node::NodeFacts,
    reserved::ReservedPorts,
    services::ServiceIndex,
};

const HOST_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the table for a node. It must run on that node: sockets and addresses
/// are those of the host it runs on.
///
/// # Errors
/// If the API server or the kernel cannot be asked.
pub async fn explain(
    client: Client,
    node_name: &str,
    class_policy: ClassPolicy,
    address_policy: &AddressPolicy,
    reserved: &ReservedPorts,
) -> Result<()> {
    let mut services = ServiceIndex::new(class_policy);
    let listed = Api::<Service>::all(client.clone())
        .list(&ListParams::default())
        .await;
    services.absorb(Event::Init);
    for service in listed.context("cannot list Services")?.items {
        services.absorb(Event::InitApply(service));
    }
    services.absorb(Event::InitDone);
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node_name}"));
    let listed = Api::<Pod>::all(client.clone()).list(&on_node).await;
    let mut pods = PodIndex::default();
    pods.absorb(Event::Init);
    for pod in listed.context("cannot list the node's Pods")?.items {
        pods.absorb(Event::InitApply(pod));
    }
    pods.absorb(Event::InitDone);
    let node = Api::<Node>::all(client).get_opt(node_name).await;
    let Some(node) = node.context("cannot read the Node")? else {
        bail!("there is no Node {node_name:?}; --node takes a name as in `kubectl get nodes`");
    };
    let node = NodeFacts::of(&node);
    let host_addresses = host_addresses().await?;
    let none = BTreeMap::new();
    let wanted = services.wanted().unwrap_or(&none);
    let no_pods = BTreeMap::new();
    let decision = decide(&Facts {
        services: wanted,
        node: &node,
        host_addresses: &host_addresses,
        address_policy,
        host: HostFacts {
            listeners: &listeners::scan()?,
            // Who left is known to the running agent only.
            held: &[],
            reserved,
            pods: pods.pods().unwrap_or(&no_pods),
            occupied: services.occupied(),
        },
        left_out: &BTreeMap::new(),
    });
    print!("{}", table(node_name, &node, wanted, &decision));
    print!("{}", left_alone(services.elsewhere()));
    Ok(())
}

async fn host_addresses() -> Result<Vec<HostAddress>> {
    let (sender, mut found) = mpsc::channel(1);
    tokio::select! {
        result = addresses::follow(sender) => {
            result?;
            bail!("the kernel told no addresses")
        }
        first = timeout(HOST_TIMEOUT, found.recv()) => {
            first.ok().flatten().context("the kernel did not tell the host's addresses in time")
        }
    }
}

/// The Services that other load balancers serve, a line each.
#[must_use]
pub fn left_alone(elsewhere: &BTreeMap<ServiceKey, Manager>) -> String {
    let line = |(key, manager): (&ServiceKey, &Manager)| {
        let manager = manager.clone();
        format!("Service {key}: {}\n", Problem::ManagedElsewhere { manager })
    };
    elsewhere.iter().map(line).collect()
}

/// The table as text.
#[must_use]
pub fn table(
    node_name: &str,
    node: &NodeFacts,
    services: &BTreeMap<ServiceKey, Wanted>,
    decision: &Decision,
) -> String {
    let mut rows = vec![["PORT", "SERVICE", "STATE", "HELD BY", "REASON"].map(str::to_owned)];
    let mut claims = BTreeSet::new();
    for wanted in services.values() {
        claims.extend(
            wanted
                .spec
                .ports
                .keys()
                .map(|port| (port.port, port.protocol, &wanted.spec.key)),
        );
    }
    for (port, protocol, key) in claims {
        let spec = &services[key].spec;
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
