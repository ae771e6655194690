//! Packets through the table of a node without kube-proxy: what a box outside the cluster
//! does not need. Addresses as in `direct.rs`, where the node is the box and the targets are
//! Pods.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use highwire_agent::decide::{Choice, Memory, Plan};
use highwire_api::{Family, Protocol};

use super::{
    command,
    direct::{
        Answer, BOX, FAMILIES, PATH, PROTOCOLS, a_box, answer, ask, at_box, change, clients, each,
        index, receive, udp_socket,
    },
    dnat::{Namespace, PATIENCE},
    in_new_namespace, nft, plans, replace,
};

const PORT: u16 = 90;
/// A Pod of each family.
const POD: [&str; 2] = ["10.244.1.7", "fd00:244:1::7"];
/// Its port that answers nothing.
const SILENT: u16 = 30_999;
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
        program(&plan(MANY, plans::by_client(60), false)).await;
        for (family, protocol) in each() {
            let first = asked(&client, family, protocol, 16);
            assert_eq!(
                asked(&client, family, protocol, 16),
                first,
                "{family} {protocol}"
            );
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

/// The targets of so many clients, one after another.
fn asked(client: &Namespace, family: Family, protocol: Protocol, many: usize) -> Vec<u16> {
    let asked = client.run(move || {
        let clients = clients(family).into_iter().take(many);
        let asks = clients.map(|from| ask(family, protocol, PORT, Some(from)));
        asks.collect()
    });
    ports(asked)
}

#[test]
fn a_client_keeps_its_pod_when_others_come_and_until_it_goes() {
    in_new_namespace(async || {
        let (client, pods) = a_box().await;
        pods.run(|| {
            for (ip, port) in POD.iter().flat_map(|ip| MANY.map(move |port| (ip, port))) {
                answer(SocketAddr::new(ip.parse().unwrap(), port));
            }
        });
        let few = || plan(MANY.take(3), plans::by_client(10_800), false);
        let many = || plan(MANY, plans::by_client(10_800), false);
        let last = || plan(MANY.skip(37), plans::by_client(10_800), false);
        program(&few()).await;
        for (family, protocol) in each() {
            let first = asked(&client, family, protocol, 4);
            change(&few(), &many()).await;
            assert_eq!(
                asked(&client, family, protocol, 4),
                first,
                "{family} {protocol}"
            );
            // The client's first packet is lost, and TCP sends it again after a second.
            change(&many(), &last()).await;
            if protocol == Protocol::Udp {
                // What leads to a Pod that is gone is lost once.
                client.run(move || {
                    for from in clients(family).into_iter().take(4) {
                        ask(family, protocol, PORT, Some(from)).ok();
                    }
                });
            }
            let then = asked(&client, family, protocol, 4);
            assert!(then.iter().all(|port| *port >= MANY.start + 37), "{then:?}");
            change(&last(), &many()).await;
            assert_eq!(
                asked(&client, family, protocol, 4),
                then,
                "{family} {protocol}"
            );
            change(&many(), &few()).await;
        }
    });
}

#[test]
fn a_flow_that_a_pod_never_answered_leaves_its_client_the_next_pod() {
    in_new_namespace(async || {
        let (client, pods) = a_box().await;
        let silent = pods.run(|| {
            for (ip, port) in POD.iter().flat_map(|ip| MANY.map(move |port| (ip, port))) {
                answer(SocketAddr::new(ip.parse().unwrap(), port));
            }
            POD.map(|ip| UdpSocket::bind(SocketAddr::new(ip.parse().unwrap(), SILENT)).unwrap())
        });
        let only = |port| plan([port].into_iter(), plans::by_client(10_800), false);
        let many = plan(MANY, plans::by_client(10_800), false);
        for family in FAMILIES {
            let silent = &silent[index(family)];
            silent.set_read_timeout(Some(PATIENCE)).unwrap();
            program(&only(SILENT)).await;
            let from = clients(family)[0];
            let flow = client.run(move || udp_socket(family, Some(from)));
            let send = || {
                flow.send_to(b"?", at_box(family, PORT)).unwrap();
                receive(silent)
            };
            assert_eq!(send().as_deref(), Ok("?"), "{family}");
            change(&only(SILENT), &only(MANY.start)).await;
            // What leads to a Pod that is gone is lost once.
            let lost = client.run(move || ask(family, Protocol::Udp, PORT, Some(from)));
            lost.unwrap_err();
            assert_eq!(asked(&client, family, Protocol::Udp, 1), [MANY.start]);
            change(&only(MANY.start), &many).await;
            // As TCP does with its first segment until it is answered.
            let again = send();
            assert_eq!(
                asked(&client, family, Protocol::Udp, 1),
                [MANY.start],
                "{family}"
            );
            assert_eq!(again.as_deref(), Ok("?"), "it follows its conntrack entry");
        }
    });
}

#[test]
fn a_client_is_remembered_for_as_long_as_its_service_says() {
    in_new_namespace(async || {
        let (client, pods) = a_box().await;
        pods.run(|| {
            for ip in POD {
                answer(SocketAddr::new(ip.parse().unwrap(), MANY.start));
            }
        });
        for seconds in Memory::SECONDS {
            let one = MANY.take(1);
            program(&plan(one, plans::by_client(seconds), false)).await;
            for (family, protocol) in each() {
                client
                    .run(move || ask(family, protocol, PORT, None))
                    .unwrap();
            }
            for map in [
                "clientaddress4",
                "clientport4",
                "clientaddress6",
                "clientport6",
            ] {
                let listed = command(&format!("nft --json list map inet highwire {map}"));
                let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
                let elements = listed["nftables"][1]["map"]["elem"].as_array().unwrap();
                assert_eq!(elements.len(), PROTOCOLS.len(), "{listed}");
                for element in elements {
                    assert_eq!(element[0]["elem"]["timeout"], seconds, "{element}");
                }
            }
        }
    });
}
