//! A listener of the host keeps its port for a while after it is gone.
//!
//! A restart of sshd or nginx must move nothing, and nobody may get a port by waiting
//! for one. What is remembered here is lost when the agent restarts; then only what
//! Services hold by their status keeps ports where they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use highwire_api::{PortKey, Protocol, ServiceKey};

use super::listeners::Listener;

/// What tells listeners apart across restarts of their program.
type Identity = (Protocol, SocketAddr, bool, Option<u32>);

/// A listener that is gone and keeps its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The listener as it last was.
    pub listener: Listener,
    /// The Services that were served on its port while it lived: it belonged to their own
    /// Pods, so its port is not kept from them.
    pub beside: BTreeSet<ServiceKey>,
}

#[derive(Debug)]
struct Known {
    held: Held,
    /// When it was missed first; `None` while it lives.
    left: Option<Instant>,
}

/// The listeners of late.
#[derive(Debug)]
pub struct HoldDown {
    hold: Duration,
    known: BTreeMap<Identity, Known>,
}

impl HoldDown {
    /// Nothing is known yet. Ports are kept for `hold`; not at all if that is zero.
    #[must_use]
    pub fn new(hold: Duration) -> Self {
        let known = BTreeMap::new();
        Self { hold, known }
    }

    /// Takes in which listeners live now, and says which ones are gone and keep their
    /// ports.
    pub fn update<'a>(
        &mut self,
        live: impl IntoIterator<Item = &'a Listener>,
        now: Instant,
    ) -> Vec<Held> {
        for known in self.known.values_mut() {
            known.left.get_or_insert(now);
        }
        for listener in live {
            let held = Held {
                listener: listener.clone(),
                beside: BTreeSet::new(),
            };
            let known = Known { held, left: None };
            let known = self.known.entry(identity(listener)).or_insert(known);
            known.held.listener = listener.clone();
            known.left = None;
        }
        let hold = self.hold;
        self.known.retain(|_, known| {
            known
                .left
                .is_none_or(|left| now.duration_since(left) < hold)
        });
        let gone = self.known.values().filter(|known| known.left.is_some());
        gone.map(|known| known.held.clone()).collect()
    }

    /// Takes in which Services are served on ports that have a listener.
    pub fn note(&mut self, beside: &BTreeMap<PortKey, BTreeSet<ServiceKey>>) {
        let live = self.known.values_mut().filter(|known| known.left.is_none());
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

fn identity(listener: &Listener) -> Identity {
    let Listener {
        protocol,
        bound,
        v6_only,
        device,
        ..
    } = *listener;
    (protocol, bound, v6_only, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(60);

    fn listener(bound: &str, inode: u32) -> Listener {
        Listener {
            protocol: Protocol::Tcp,
            bound: bound.parse().unwrap(),
            v6_only: false,
            device: None,
            uid: 0,
            inode,
        }
    }

    fn texts(held: &[Held]) -> Vec<String> {
        let bound = held.iter().map(|held| held.listener.bound);
        bound.map(|bound| bound.to_string()).collect()
    }

    #[test]
    fn who_leaves_keeps_the_port_for_the_time_given() {
        let (mut hold, start) = (HoldDown::new(HOLD), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let sshd = listener("0.0.0.0:22", 1);
        assert!(hold.update(&[sshd], at(0)).is_empty());
        assert_eq!(texts(&hold.update(&[], at(4))), ["0.0.0.0:22"]);
        assert_eq!(texts(&hold.update(&[], at(63))), ["0.0.0.0:22"]);
        assert!(hold.update(&[], at(64)).is_empty());
    }

    #[test]
    fn who_comes_back_starts_anew() {
        let (mut hold, start) = (HoldDown::new(HOLD), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        hold.update(&[listener("0.0.0.0:22", 1)], at(0));
        assert_eq!(hold.update(&[], at(50)).len(), 1);
        // Another socket, the same program.
        assert!(hold.update(&[listener("0.0.0.0:22", 2)], at(54)).is_empty());
        assert_eq!(hold.update(&[], at(58)).len(), 1);
        assert_eq!(
            hold.update(&[], at(117)).len(),
            1,
            "60 s from the second time"
        );
        assert!(hold.update(&[], at(118)).is_empty());
    }

    #[test]
    fn zero_keeps_nothing() {
        let (mut hold, now) = (HoldDown::new(Duration::ZERO), Instant::now());
        hold.update(&[listener("0.0.0.0:22", 1)], now);
        assert!(hold.update(&[], now).is_empty());
        assert!(hold.known.is_empty());
    }

    #[test]
    fn services_served_beside_a_living_listener_are_remembered() {
        let (mut hold, now) = (HoldDown::new(HOLD), Instant::now());
        let service = |name: &str| ServiceKey {
            namespace: "ns".into(),
            name: name.into(),
        };
        let port = PortKey::new(Protocol::Tcp, 80).unwrap();
        let beside = |name| BTreeMap::from([(port, BTreeSet::from([service(name)]))]);
        hold.update(&[listener("0.0.0.0:80", 1), listener("0.0.0.0:81", 2)], now);
        hold.note(&beside("ingress"));
        // Its Pod is not ready for a moment.
        hold.note(&BTreeMap::new());
        let held = hold.update(&[], now);
        hold.note(&beside("late"));
        assert_eq!(held[0].beside, BTreeSet::from([service("ingress")]));
        assert!(held[1].beside.is_empty());
        let held = hold.update(&[], now);
        assert_eq!(held[0].beside, BTreeSet::from([service("ingress")]));
    }
}
