//! Which flows are stale. Pure: the same view and flow give the same answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::flow::Flow;

/// What is known of one address and port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// Served.
    Served {
        /// Where the Service's traffic enters kube-proxy: its ClusterIP or NodePort. `None`
        /// without a kube-proxy.
        entrance: Option<SocketAddr>,
        /// The endpoints that serve it, on whatever node; perhaps none.
        endpoints: BTreeSet<SocketAddr>,
        /// Those of them that a new client from outside gets at this node: all, or with
        /// `externalTrafficPolicy: Local` the node's own.
        reachable: BTreeSet<SocketAddr>,
    },
    /// No longer served.
    Retired,
}

/// What decides whether a flow is stale. A frontend whose endpoints are not known yet is
/// left out, so that none of its flows is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// By address and port.
    pub frontends: BTreeMap<SocketAddr, Frontend>,
    /// All addresses of this node.
    pub own: BTreeSet<IpAddr>,
}

impl View {
    /// The addresses whose flows can be stale.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.frontends.keys().map(SocketAddr::ip).collect()
    }

    /// Whether the flow's Pod no longer serves, or a new flow would reach a Pod where this
    /// one is refused. Flows to anything but our frontends are never stale.
    #[must_use]
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let frontend = flow.original.destination;
        match self.frontends.get(&frontend) {
            None => false,
            // A rewritten flow at a port that is no longer served goes to a Pod of the
            // Service that was served; one that is not rewritten is the host's own.
            Some(Frontend::Retired) => flow.is_rewritten(),
            // Beside ipvs the rewrite is ours and leads to a virtual server, which
            // sends every packet on as it sees fit, until it has changed the entry to
            // lead to a Pod.
            Some(Frontend::Served {
                entrance: Some(entrance),
                ..
            }) if flow.reply.source == *entrance => false,
            Some(Frontend::Served {
                endpoints,
                reachable,
                ..
            }) => {
                let usable = |endpoint: &&SocketAddr| endpoint.is_ipv4() == frontend.is_ipv4();
                let leads_on = endpoints
                    .iter()
                    .filter(usable)
                    .any(|endpoint| self.leads_to(flow, *endpoint));
                // What is not rewritten was refused. So would a new flow be where no
                // endpoint can be reached: deleting it would only make it come again.
                !leads_on && (flow.is_rewritten() || reachable.iter().any(|e| usable(&e)))
            }
        }
    }

    /// A flow to a Pod in this host's network on the very port stays as it is: the
    /// Pod's socket takes it at every address of the host, rewritten or not.
    fn leads_to(&self, flow: &Flow, endpoint: SocketAddr) -> bool {
        let answers = flow.reply.source;
        let itself = !flow.is_rewritten()
            && answers.port() == endpoint.port()
            && self.own.contains(&endpoint.ip());
        answers == endpoint || itself
    }
}

#[cfg(test)]
#[path = "stale_tests.rs"]
mod tests;
