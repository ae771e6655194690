//! Histories from seeds.

use fastrand::Rng;

use crate::api_fault::{ApiClient, ApiFault};
use crate::history::{
    AddressType, Bind, Class, Families, History, Operation, PodKind, Pool, Protocol, Ranges,
    ServiceKind, Shape,
};

const SERVICES: u8 = 6;
const PODS: u8 = 6;
const NODES: u8 = 3;
/// Few ports, so that they are wanted more than once. 22 is reserved.
const PORTS: [u16; 6] = [80, 80, 443, 8443, 31_080, 22];
const UDP_PORTS: [u16; 3] = [53, 443, 31_080];
/// A NodePort that Services ask for as their own port, too.
const NODE_PORT: u16 = 31_080;

/// What agents and controllers ask for; all, most often.
const RESOURCES: [&str; 12] = [
    "",
    "",
    "",
    "",
    "services",
    "services/status",
    "nodes",
    "pods",
    "endpointslices",
    "leases",
    "loadbalancernodes",
    "events",
];

/// An operation that is generated in so many of all cases.
type Choice = (u32, fn(&mut Rng) -> Operation);

const CHOICES: [Choice; 29] = [
    (36, |rng| {
        let slot = rng.u8(0..SERVICES);
        let shape = shape(rng, class_of(slot));
        Operation::PutService { slot, shape }
    }),
    (8, |rng| Operation::DeleteService {
        slot: rng.u8(0..SERVICES),
    }),
    (3, |rng| Operation::ForeignStatus {
        slot: rng.u8(0..SERVICES),
        node: rng.bool().then(|| node(rng)),
    }),
    (10, |rng| Operation::PutPod {
        slot: rng.u8(0..PODS),
        node: node(rng),
        kind: match rng.u8(0..6) {
            0 => PodKind::Edge(*pick(rng, &PORTS)),
            1 => PodKind::HostPort(*pick(rng, &PORTS)),
            _ => PodKind::Web,
        },
    }),
    (8, |rng| Operation::ReadyPod {
        slot: rng.u8(0..PODS),
        ready: rng.bool(),
    }),
    (4, |rng| Operation::DeletePod {
        slot: rng.u8(0..PODS),
    }),
    (6, |rng| Operation::EnableNode {
        node: node(rng),
        enabled: rng.u8(0..3) > 0,
    }),
    (3, |rng| Operation::ExcludeNode {
        node: node(rng),
        excluded: rng.bool(),
    }),
    (4, |rng| Operation::PoolNode {
        node: node(rng),
        pool: pool(rng),
    }),
    (7, |rng| Operation::Listen {
        node: node(rng),
        at: *pick(rng, &[Bind::All, Bind::V4, Bind::Loopback]),
        protocol: protocol(rng),
        port: *pick(rng, &PORTS),
    }),
    (5, |rng| Operation::StopListening {
        node: node(rng),
        protocol: protocol(rng),
        port: *pick(rng, &PORTS),
    }),
    (3, |rng| Operation::SecondAddress {
        node: node(rng),
        there: rng.bool(),
    }),
    (3, |rng| Operation::ExternalAddress {
        node: node(rng),
        named: rng.bool(),
    }),
    (3, |rng| Operation::KillAgent { node: node(rng) }),
    (2, |rng| Operation::FreezeAgent { node: node(rng) }),
    (3, |rng| Operation::ThawAgent { node: node(rng) }),
    (2, |rng| Operation::KillController {
        number: number(rng),
    }),
    (2, |rng| Operation::FreezeController {
        number: number(rng),
    }),
    (3, |rng| Operation::ThawController {
        number: number(rng),
    }),
    (2, |rng| Operation::KillProxy { node: node(rng) }),
    (2, |rng| Operation::ProxyMode {
        node: node(rng),
        nftables: rng.bool(),
    }),
    (2, |rng| Operation::FlushRuleset { node: node(rng) }),
    (2, |rng| Operation::DeleteTable { node: node(rng) }),
    (3, |rng| Operation::DeleteElement {
        node: node(rng),
        protocol: protocol(rng),
        port: *pick(rng, &PORTS),
    }),
    (3, |rng| Operation::AddElement {
        node: node(rng),
        protocol: protocol(rng),
        port: *pick(rng, &PORTS),
    }),
    (1, |rng| Operation::CutOff {
        nodes: vec![node(rng)],
        seconds: *pick(rng, &[1, 4, 16]),
    }),
    (1, |rng| Operation::CutOff {
        nodes: vec![1, 2],
        seconds: *pick(rng, &[2, 16]),
    }),
    (10, |rng| Operation::FailApi {
        client: match rng.u8(0..8) {
            0 => ApiClient::All,
            1..4 => ApiClient::Controller(number(rng)),
            _ => ApiClient::Agent(node(rng)),
        },
        fault: *pick(rng, &ApiFault::ALL),
        resource: pick(rng, &RESOURCES).to_string(),
    }),
    (2, |rng| Operation::Pause {
        seconds: *pick(rng, &[1, 4, 20]),
    }),
];

/// A history of about so many operations, with a quiet moment after every few.
pub(crate) fn history(seed: u64, operations: usize) -> History {
    let mut rng = Rng::with_seed(seed);
    let mut all: Vec<Operation> = (0..4)
        .map(|slot| Operation::PutPod {
            slot,
            node: slot % NODES + 1,
            kind: PodKind::Web,
        })
        .collect();
    let total: u32 = CHOICES.iter().map(|(weight, _)| weight).sum();
    let mut until_quiet = rng.u8(1..6);
    let mut until_mended = None;
    while all.len() < operations {
        if until_mended == Some(0) {
            all.push(Operation::MendApi);
            until_mended = None;
        }
        if until_quiet == 0 {
            all.push(Operation::Quiet);
            until_quiet = rng.u8(1..6);
            continue;
        }
        until_quiet -= 1;
        until_mended = until_mended.map(|left: u8| left.saturating_sub(1));
        let mut at = rng.u32(0..total);
        let chosen = CHOICES.iter().find(|(weight, _)| {
            let is_here = at < *weight;
            at = at.saturating_sub(*weight);
            is_here
        });
        let Some((_, generate)) = chosen else { break };
        let operation = generate(&mut rng);
        if matches!(operation, Operation::FailApi { .. }) {
            until_mended = Some(rng.u8(1..8));
            // Between two quiet moments it shows whether all goes on that was right.
            if rng.bool() {
                all.push(Operation::Quiet);
                until_quiet = 0;
            }
        }
        all.push(operation);
    }
    History {
        about: format!("seed {seed}, {operations} operations"),
        operations: all,
    }
}

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(0..from.len())]
}

fn node(rng: &mut Rng) -> u8 {
    rng.u8(1..=NODES)
}

fn number(rng: &mut Rng) -> u8 {
    rng.u8(1..=2)
}

fn pool(rng: &mut Rng) -> Option<Pool> {
    *pick(rng, &[None, Some(Pool::A), Some(Pool::B)])
}

fn protocol(rng: &mut Rng) -> Protocol {
    *pick(rng, &[Protocol::Tcp, Protocol::Tcp, Protocol::Udp])
}

/// Once in so many times.
fn rarely(rng: &mut Rng, times: u8) -> bool {
    rng.u8(0..times) == 0
}

/// A class cannot be changed, so each slot has its own.
fn class_of(slot: u8) -> Class {
    match slot {
        3 => Class::Ours,
        5 => Class::Others,
        _ => Class::None,
    }
}

fn shape(rng: &mut Rng, class: Class) -> Shape {
    let edge = rarely(rng, 6);
    let mut ports = Vec::new();
    for _ in 0..rng.u8(1..=3) {
        let port = match !edge && rarely(rng, 3) {
            true => (Protocol::Udp, *pick(rng, &UDP_PORTS)),
            false => (Protocol::Tcp, *pick(rng, &PORTS)),
        };
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Shape {
        kind: match rng.u8(0..14) {
            0 => ServiceKind::ClusterIp,
            1 => ServiceKind::NodePort(NODE_PORT),
            2 => ServiceKind::ExternalIp(node(rng)),
            _ => ServiceKind::LoadBalancer,
        },
        ports,
        families: *pick(rng, &[Families::V4, Families::V6, Families::Dual]),
        edge,
        external_local: rarely(rng, 4),
        internal_local: rarely(rng, 6),
        sticky: rarely(rng, 6),
        node_ports: !rarely(rng, 6),
        not_ready: rarely(rng, 8),
        class,
        ranges: *pick(
            rng,
            &[
                Ranges::None,
                Ranges::None,
                Ranges::None,
                Ranges::None,
                Ranges::None,
                Ranges::Client,
                Ranges::ClientBoth,
                Ranges::Others,
            ],
        ),
        pool: if rarely(rng, 5) { pool(rng) } else { None },
        address_type: match rng.u8(0..6) {
            0 => AddressType::ExternalIp,
            1 => AddressType::InternalIp,
            _ => AddressType::None,
        },
        max_addresses: rarely(rng, 5).then(|| rng.u8(1..=2)),
        adopt: rarely(rng, 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_history_each_time_and_every_operation_comes() {
        assert_eq!(history(7, 200), history(7, 200));
        assert_ne!(history(7, 200), history(8, 200));
        let text = history(7, 3_000).to_json().unwrap();
        let read: History = serde_json::from_str(&text).unwrap();
        assert_eq!(read, history(7, 3_000), "what is printed is what is run");
        for name in [
            "Quiet",
            "ForeignStatus",
            "FreezeController",
            "CutOff",
            "HostPort",
            "MendApi",
            "OldLists",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }
}
