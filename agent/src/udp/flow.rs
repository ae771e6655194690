//! One UDP flow as conntrack knows it.

use std::{fmt, net::SocketAddr};

/// Where packets of one direction come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
}

/// A conntrack entry of protocol UDP in the default zone, the only one that
/// kube-proxy and we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// As the client sends.
    pub original: Tuple,
    /// As the answers come: the source is who answers, before NAT is undone.
    pub reply: Tuple,
    /// The entry's number in the kernel (`CTA_ID`). A later entry of the same client
    /// mostly has another.
    pub id: u32,
}

impl Flow {
    /// Whether its destination was rewritten (DNAT).
    #[must_use]
    pub fn is_rewritten(&self) -> bool {
        self.reply.source != self.original.destination
    }
}

/// As people read it: `198.51.100.10:4711 → 192.0.2.11:53 ⇒ 10.244.1.7:5353`.
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple {
            source,
            destination,
        } = self.original;
        write!(f, "{source} → {destination} ⇒ {}", self.reply.source)
    }
}
