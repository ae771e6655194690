//! Packets through the table of a node without kube-proxy: what a box outside the cluster
//! does not need. Addresses as in `direct.rs`, where the node is the box and the targets are
//! Pods.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use highwire_agent::decide::{Choice, Plan};

use super::{
    direct::{Answer, BOX, PATH, a_box, answer, ask, clients, each, index},
    in_new_namespace, nft, plans, replace,
};

const PORT: u16 = 90;
/// A Pod of each family.
const POD: [&str; 2] = ["10.244.1.7", "fd00:244:1::7"];
/// More than a port has buckets for with few targets.
const MANY: std::ops::Range<u16> = 31_000..31_040;

/// The port of the node leads to these ports of the Pod, in each family and protocol.
fn plan(targets: impl Iterator<Item = u16> + Clone, choice: Choice, keeps_client: bool) -> Plan {
    let forwards = each().map(|(family, protocol)| {
        let ip: IpAddr = POD[index(family)].parse().unwrap();
        let targets = targets.clone();
        let targets: Vec<String> = targets
            .map(|port| SocketAddr::new(ip, port).to_string())
            .collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let (slot, mut forward) =
            plans::to_backends(family, protocol, PORT.into(), &targets, choice);
        if keeps_client {
            plans::keep_client(&mut forward);
        }
        (slot, forward)
    });
    Plan {
        addresses: BOX.map(|ip| ip.parse().unwrap()).into(),
        forwards: forwards.collect(),
    }
}

async fn program(plan: &Plan) {
    nft().apply(&replace(PATH, plan)).await.unwrap();
}

/// Which of many targets answered: their ports are all that tells them apart.
fn ports(answers: Vec<Answer>) -> Vec<u16> {
    let targets = answers.into_iter().map(|it| it.unwrap().0);
    targets.map(|target| target.port()).collect()
}

#[test]
fn all_of_many_targets_get_connections() {
    in_new_namespace(async || {
        let (client, pods) = a_box().await;
        pods.run(|| {
            for (ip, port) in POD.iter().flat_map(|ip| MANY.map(move |port| (ip, port))) {
                answer(SocketAddr::new(ip.parse().unwrap(), port));
            }
        });
        program(&plan(MANY, Choice::Random, false)).await;
        for (family, protocol) in each() {
            let answers = client.run(move || {
                let asks = (0..600).map(|_| ask(family, protocol, PORT, None));
                asks.collect()
            });
            let seen: BTreeSet<u16> = ports(answers).into_iter().collect();
            // Each has 15 of them on the average: one in a million runs leaves one out.
            assert_eq!(seen.len(), MANY.len(), "{family} {protocol}");
        }
        program(&plan(MANY, Choice::ByClient, false)).await;
        for (family, protocol) in each() {
            let ask_all = || {
                let asks = client.run(move || {
                    let clients = clients(family).into_iter();
                    let asks = clients.map(|from| ask(family, protocol, PORT, Some(from)));
                    asks.collect()
                });
                ports(asks)
            };
            let first = ask_all();
            assert_eq!(ask_all(), first, "{family} {protocol}");
            let seen: BTreeSet<&u16> = first.iter().collect();
            assert!(seen.len() > 8, "16 clients: {first:?}");
        }
    });
}

#[test]
fn without_targets_clients_are_refused_at_once() {
    in_new_namespace(async || {
        let (client, _pods) = a_box().await;
        program(&plan([].into_iter(), Choice::Random, false)).await;
        for (family, protocol) in each() {
            let asked = client.run(move || ask(family, protocol, PORT, None));
            let refused = Err(ErrorKind::ConnectionRefused);
            assert_eq!(asked, refused, "{family} {protocol}");
        }
    });
}

#[test]
fn a_pod_that_sees_its_clients_reaches_itself() {
    in_new_namespace(async || {
        let (_client, pods) = a_box().await;
        pods.run(|| {
            for ip in POD {
                answer(SocketAddr::new(ip.parse().unwrap(), MANY.start));
            }
        });
        program(&plan([MANY.start].into_iter(), Choice::Random, true)).await;
        for (family, protocol) in each() {
            let pod: IpAddr = POD[index(family)].parse().unwrap();
            let asked = pods.run(move || ask(family, protocol, PORT, Some(pod)));
            let (target, seen) = asked.unwrap_or_else(|it| panic!("{family} {protocol}: {it:?}"));
            assert_eq!(target.ip(), pod);
            assert_ne!(seen, pod, "{family} {protocol}");
        }
    });
}
