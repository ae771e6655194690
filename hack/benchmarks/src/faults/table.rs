//! What a node's kernel should hold for the Services of a test, and what it holds.
//!
//! What it should hold is read from the API's objects, by nothing of the agent's own: a port of a
//! Service leads to its ClusterIP, and is guarded if the Service has source ranges. That is for
//! IPv4 and policy Cluster, which all of these Services have.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use highwire_agent::table::nft::Listed;
use highwire_agent::table::{Nft, Set};
use highwire_e2e::{Cluster, Netns};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};

/// The sets that are compared.
const SETS: [&str; 4] = ["ports4", "clusterip4", "guarded4", "allowed4"];

/// Elements of those sets by port, as nft writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held(BTreeMap<u16, BTreeSet<String>>);

impl Held {
    /// What the Services of the namespace ask for whose names begin so. They must not conflict.
    pub(super) async fn wanted(cluster: &Cluster, namespace: &str, prefix: &str) -> Result<Self> {
        let api: Api<Service> = Api::namespaced(cluster.client(), namespace);
        let mut held = Self::default();
        for service in api.list(&ListParams::default()).await? {
            let name = service.metadata.name.unwrap_or_default();
            if !name.starts_with(prefix) {
                continue;
            }
            let spec = service.spec.context("a Service has a spec")?;
            let ip = spec.cluster_ip.context("a Service has a ClusterIP")?;
            for port in spec.ports.unwrap_or_default() {
                let number = u16::try_from(port.port)?;
                let elements = held.0.entry(number).or_default();
                elements.insert(format!("ports4 tcp . {number}"));
                elements.insert(format!("clusterip4 tcp . {number} : {ip}"));
                for range in spec.load_balancer_source_ranges.iter().flatten() {
                    elements.insert(format!("guarded4 tcp . {number}"));
                    elements.insert(format!("allowed4 tcp . {number} . {range}"));
                }
            }
        }
        Ok(held)
    }

    /// What the kernel of that namespace holds for these ports.
    pub(super) fn of(listed: &Listed, ports: impl Fn(u16) -> bool) -> Result<Self> {
        let elements = listed
            .elements
            .as_ref()
            .context("elements of another kind")?;
        let mut held = Self::default();
        for (name, set) in SETS
            .iter()
            .filter_map(|name| Some((name, Set::named(name)?)))
        {
            for (key, value) in elements.of_set(set) {
                let Some(port) = key
                    .port()
                    .map(|port| port.port.get())
                    .filter(|it| ports(*it))
                else {
                    continue;
                };
                let value = value.map(|value| format!(" : {value}")).unwrap_or_default();
                held.0
                    .entry(port)
                    .or_default()
                    .insert(format!("{name} {key}{value}"));
            }
        }
        Ok(held)
    }

    /// Ports that are open but lead nowhere, or are guarded by half: what no transaction leaves.
    pub(super) fn halves(&self) -> usize {
        let is_half = |elements: &&BTreeSet<String>| {
            let has = |set: &str| elements.iter().any(|element| element.starts_with(set));
            has("ports4") != has("clusterip4") || has("guarded4") != has("allowed4")
        };
        self.0.values().filter(is_half).count()
    }

    /// How many elements one has and the other has not.
    pub(super) fn differences(&self, other: &Self) -> usize {
        let all = |held: &Self| held.0.values().flatten().cloned().collect::<BTreeSet<_>>();
        all(self).symmetric_difference(&all(other)).count()
    }

    /// Some of those, in words.
    pub(super) fn difference(&self, other: &Self) -> String {
        let all = |held: &Self| held.0.values().flatten().cloned().collect::<BTreeSet<_>>();
        let (mine, theirs) = (all(self), all(other));
        let some: Vec<_> = mine.symmetric_difference(&theirs).take(5).collect();
        format!("{some:?}")
    }
}

/// Our table in that namespace; none if there is none.
pub(super) fn list(netns: &Netns) -> Result<Option<Listed>> {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(Nft::new("nft".into()).list())?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(elements: &[&str]) -> Held {
        Held([(80, elements.iter().map(ToString::to_string).collect())].into())
    }

    #[test]
    fn half_a_transaction_is_seen() {
        let whole = held(&["ports4 tcp . 80", "clusterip4 tcp . 80 : 10.96.0.9"]);
        assert_eq!(whole.halves(), 0);
        assert_eq!(held(&["ports4 tcp . 80"]).halves(), 1);
        assert_eq!(held(&["guarded4 tcp . 80"]).halves(), 1);
        assert_eq!(whole.differences(&held(&["ports4 tcp . 80"])), 1);
    }
}
