//! Which listeners count, by how long they have been there or gone.
//!
//! **A listener keeps its port for a while after it is gone.** A restart of sshd or nginx
//! must move nothing, and nobody may get a port by waiting for one. What is remembered
//! here is lost when the agent restarts; then only what Services hold by their status
//! keeps ports where they are.
//!
//! **A client's socket is no listener.** That of UDP (a resolver's, QUIC) is bound to every
//! address and an ephemeral port, and not connected: the kernel does not distinguish it
//! from a server's. So it counts only once it has stayed for [`UDP_AGE`]: as long as it is
//! there the kernel gives it what comes for the port, whatever it is. An admin can rule
//! that out: the kernel gives no client a port of `net.ipv4.ip_local_reserved_ports`, so a
//! socket there is a server's, at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use highwire_api::{PortKey, Protocol, ServiceKey};

use super::{listeners::Listener, sysctls::EphemeralPorts};

/// How long a UDP socket that may be a client's must exist to count. Resolvers wait for
/// answers no longer, and most QUIC connections are over.
const UDP_AGE: Duration = Duration::from_secs(30);

/// The listeners that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// Those that are there.
    pub open: Vec<Listener>,
    /// Those that are gone and keep their ports.
    pub held: Vec<Held>,
}

/// A listener that is gone and keeps its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The listener as it last was.
    pub listener: Listener,
    /// The Services that were served on its port while it lived: it belonged to their own
    /// Pods, so its port is not kept from them.
    pub beside: BTreeSet<ServiceKey>,
}

/// What distinguishes listeners across restarts of their program.
type Identity = (Protocol, SocketAddr, bool, Option<u32>);

#[derive(Debug)]
struct Known {
    held: Held,
    /// When it was missed first; `None` while it lives.
    left: Option<Instant>,
}

/// The listeners of late.
#[derive(Debug)]
pub struct ListenerHistory {
    hold: Duration,
    servers: BTreeMap<Identity, Known>,
    /// The sockets that may be clients', by inode, since when they are known.
    doubtful: HashMap<u32, Instant>,
}

impl ListenerHistory {
    /// Nothing is known yet. Ports are kept for `hold`; not at all if that is zero.
    #[must_use]
    pub fn new(hold: Duration) -> Self {
        Self {
            hold,
            servers: BTreeMap::new(),
            doubtful: HashMap::new(),
        }
    }

    /// Takes in all sockets that there are now.
    pub fn update(
        &mut self,
        found: Vec<Listener>,
        ephemeral: &EphemeralPorts,
        now: Instant,
    ) -> Listeners {
        let may_be_clients = |listener: &Listener| {
            // A client's socket is not bound to one address of the host.
            listener.protocol == Protocol::Udp
                && listener.bound.ip().to_canonical().is_unspecified()
                && ephemeral.contains(listener.bound.port())
        };
        for known in self.servers.values_mut() {
            known.left.get_or_insert(now);
        }
        let before = std::mem::take(&mut self.doubtful);
        let mut open = Vec::new();
        for listener in found {
            if may_be_clients(&listener) {
                // It holds nothing when it is gone.
                let since = *before.get(&listener.inode).unwrap_or(&now);
                self.doubtful.insert(listener.inode, since);
                if now.duration_since(since) < UDP_AGE {
                    continue;
                }
            } else {
                self.is_there(&listener);
            }
            open.push(listener);
        }
        let hold = self.hold;
        let keeps = |left: Instant| now.duration_since(left) < hold;
        self.servers.retain(|_, known| known.left.is_none_or(keeps));
        let gone = self.servers.values().filter(|known| known.left.is_some());
        let held = gone.map(|known| known.held.clone()).collect();
        Listeners { open, held }
    }

    fn is_there(&mut self, listener: &Listener) {
        let Listener {
            protocol,
            bound,
            v6_only,
            device,
            ..
        } = *listener;
        let held = Held {
            listener: listener.clone(),
            beside: BTreeSet::new(),
        };
        let known = Known { held, left: None };
        let identity = (protocol, bound, v6_only, device);
        let known = self.servers.entry(identity).or_insert(known);
        known.held.listener = listener.clone();
        known.left = None;
    }

    /// Takes in which Services are served on ports that have a listener, because it is
    /// their own Pods'.
    pub fn served_beside(&mut self, beside: &BTreeMap<PortKey, BTreeSet<ServiceKey>>) {
        let live = self.servers.values_mut().filter(|it| it.left.is_none());
        for Held {
            listener,
            beside: known,
        } in live.map(|known| &mut known.held)
        {
            if let Some(services) = listener.port().and_then(|port| beside.get(&port)) {
                known.extend(services.iter().cloned());
            }
        }
    }
}

#[cfg(test)]
#[path = "listener_history_tests.rs"]
mod tests;
