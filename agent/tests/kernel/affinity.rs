//! Session affinity while targets change: the packets of one client on all processors at once.
//! Addresses as in `direct.rs`.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use highwire_agent::decide::Plan;
use highwire_api::{Family, Protocol};

use super::{
    command,
    direct::{
        BOX, FAMILIES, PATH, a_box, answer, ask, ask_by_udp, at_box, change, clients, index, read,
    },
    dnat::Namespace,
    in_new_namespace, nft, patience, plans, replace,
};

const PORT: u16 = 90;
/// The targets: each has an address and a port of its own, so that the address of one with the
/// port of another is none of them.
const TARGETS: [[&str; 3]; 2] = [
    ["10.244.1.7", "10.244.1.8", "10.244.1.9"],
    ["fd00:244:1::7", "fd00:244:1::8", "fd00:244:1::9"],
];
const TARGET_PORTS: [u16; 3] = [31_000, 31_001, 31_002];

/// How often the targets change.
const CHANGES: usize = 300;
/// How many ask at once, and how often each of them while a change is made and after it.
const ASKERS: u16 = 4;
const ASKS: usize = 20;
/// The ports from which they ask, each once: one that was used before would bring its conntrack
/// entry. `ask` begins at 32,768.
const FIRST_PORT: u16 = 8_000;
const PORTS_EACH: u16 = 6_000;

fn target(family: Family, number: usize) -> SocketAddr {
    let ip = TARGETS[index(family)][number].parse().unwrap();
    SocketAddr::new(ip, TARGET_PORTS[number])
}

/// The port leads to the targets of these numbers, which see the client: of two connections that
/// are masqueraded at the same moment on two processors to the same port of the box, the kernel
/// drops one (`insert_failed` of `conntrack --stats`).
fn plan(family: Family, numbers: &[usize]) -> Plan {
    let targets = numbers
        .iter()
        .map(|number| target(family, *number).to_string());
    let targets: Vec<String> = targets.collect();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let choice = plans::by_client(10_800);
    let (slot, mut forward) =
        plans::to_backends(family, Protocol::Udp, PORT.into(), &targets, choice);
    plans::keep_client(&mut forward);
    Plan {
        addresses: BOX.map(|ip| ip.parse().unwrap()).into(),
        forwards: [(slot, forward)].into(),
    }
}

/// Each address has each of the ports.
fn answer_at_all() {
    for ip in TARGETS.concat() {
        for port in TARGET_PORTS {
            answer(SocketAddr::new(ip.parse().unwrap(), port));
        }
    }
}

/// How many changes of the targets have begun, and how many are done.
#[derive(Debug, Default)]
struct Changes {
    counts: Mutex<(usize, usize)>,
    counted: Condvar,
}

impl Changes {
    fn done(&self) -> usize {
        self.counts.lock().unwrap().1
    }

    fn begun(&self) -> usize {
        self.counts.lock().unwrap().0
    }

    fn begin(&self, number: usize) {
        self.counts.lock().unwrap().0 = number;
        self.counted.notify_all();
    }

    fn finish(&self, number: usize) {
        self.counts.lock().unwrap().1 = number;
    }

    /// Waits until another one begins; gives its number.
    fn next(&self, last: usize) -> usize {
        let counts = self.counts.lock().unwrap();
        let counts = self.counted.wait_while(counts, |counts| counts.0 == last);
        counts.unwrap().0
    }
}

/// Who answered, and how many changes were done before and had begun until then.
#[derive(Clone, Copy, Debug)]
struct Asked {
    target: Option<SocketAddr>,
    done: usize,
    begun: usize,
}

fn ask_once(changes: &Changes, from: SocketAddr, to: SocketAddr, patience: Duration) -> Asked {
    let done = changes.done();
    let socket = UdpSocket::bind(from).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    let text = ask_by_udp(&socket, to);
    Asked {
        target: text.ok().map(|text| read(&text).0),
        done,
        begun: changes.begun(),
    }
}

/// One of those who ask, from the client's address and its own ports.
fn asker(changes: &Changes, family: Family, number: u16, patience: Duration) -> Vec<Asked> {
    let first = FIRST_PORT + number * PORTS_EACH;
    let mut ports = first..first + PORTS_EACH;
    let (mut all, mut change) = (Vec::new(), 0);
    while change < CHANGES {
        change = changes.next(change);
        for port in ports.by_ref().take(ASKS) {
            let from = SocketAddr::new(clients(family)[0], port);
            all.push(ask_once(changes, from, at_box(family, PORT), patience));
        }
    }
    all
}

/// Changes the targets from one of these lists to the next, around and around, while the client
/// asks.
async fn asked_while_changing(
    client: &Namespace,
    family: Family,
    rounds: &[&[usize]],
    patience: Duration,
) -> Vec<Asked> {
    let changes = Arc::new(Changes::default());
    let given = Arc::clone(&changes);
    let askers = client.run(move || {
        let askers = (0..ASKERS).map(|number| {
            let changes = Arc::clone(&given);
            thread::spawn(move || asker(&changes, family, number, patience))
        });
        askers.collect::<Vec<_>>()
    });
    for now in 0..CHANGES {
        let [before, after] = [now, now + 1].map(|it| plan(family, rounds[it % rounds.len()]));
        changes.begin(now + 1);
        change(&before, &after).await;
        changes.finish(now + 1);
    }
    let asked = askers.into_iter().flat_map(|asker| asker.join().unwrap());
    let asked: Vec<Asked> = asked.collect();
    let lost = asked.iter().filter(|it| it.target.is_none()).count();
    println!("{family}: {} asked, {lost} lost", asked.len());
    asked
}

#[test]
fn a_client_on_several_processors_keeps_its_pod_while_others_come_and_go() {
    in_new_namespace(async || {
        let (client, pods) = a_box().await;
        pods.run(answer_at_all);
        for family in FAMILIES {
            nft()
                .apply(&replace(PATH, &plan(family, &[1])))
                .await
                .unwrap();
            let from = clients(family)[0];
            let remembered = client.run(move || ask(family, Protocol::Udp, PORT, Some(from)));
            assert_eq!(remembered.unwrap().0, target(family, 1));
            let rounds: [&[usize]; 4] = [&[1], &[0, 1], &[0, 1, 2], &[1, 2]];
            let asked = asked_while_changing(&client, family, &rounds, patience()).await;
            let own = Some(target(family, 1));
            let others: Vec<&Asked> = asked.iter().filter(|it| it.target != own).collect();
            assert!(others.is_empty(), "{family}: {others:?}");
        }
    });
}

#[test]
fn a_client_on_several_processors_gets_no_pod_that_is_gone() {
    in_new_namespace(async || {
        let (client, pods) = a_box().await;
        pods.run(answer_at_all);
        for family in FAMILIES {
            let rounds: [&[usize]; 5] = [&[2, 0], &[0], &[0, 1], &[1], &[1, 2]];
            nft()
                .apply(&replace(PATH, &plan(family, rounds[0])))
                .await
                .unwrap();
            // What leads to a Pod that is gone is lost once.
            let patience = Duration::from_millis(100);
            let asked = asked_while_changing(&client, family, &rounds, patience).await;
            for it in &asked {
                let numbers = (it.done..=it.begun).flat_map(|change| rounds[change % rounds.len()]);
                let targets: BTreeSet<SocketAddr> = numbers.map(|it| target(family, *it)).collect();
                assert!(
                    it.target.is_none_or(|target| targets.contains(&target)),
                    "{family}: {it:?}"
                );
            }
            let from = clients(family)[0];
            let then: Vec<Option<SocketAddr>> = client.run(move || {
                let asks = (0..21).map(|_| ask(family, Protocol::Udp, PORT, Some(from)));
                asks.map(|asked| Some(asked.ok()?.0)).collect()
            });
            let targets = rounds[CHANGES % rounds.len()].iter();
            let targets: Vec<_> = targets.map(|it| Some(target(family, *it))).collect();
            assert!(targets.contains(&then[1]), "{family}: {then:?}");
            assert!(
                then[1..].iter().all(|it| *it == then[1]),
                "{family}: {then:?}"
            );
        }
    });
}

#[test]
fn a_client_with_the_address_of_one_pod_and_the_port_of_another_is_forgotten() {
    in_new_namespace(async || {
        let (client, pods) = a_box().await;
        pods.run(answer_at_all);
        for (family, digit) in FAMILIES.into_iter().zip([4, 6]) {
            nft()
                .apply(&replace(PATH, &plan(family, &[0, 1])))
                .await
                .unwrap();
            let from = clients(family)[0];
            let asks = || client.run(move || ask(family, Protocol::Udp, PORT, Some(from)));
            let first = asks().unwrap().0;
            let map = format!("inet highwire clientport{digit}");
            let listed = command(&format!("nft --json list map {map}"));
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            let element = &listed["nftables"][1]["map"]["elem"][0];
            assert_eq!(element[1], first.port(), "{listed}");
            let hash = &element[0]["elem"]["val"]["concat"][2];
            let another = TARGET_PORTS.into_iter().find(|it| *it != first.port());
            let another = another.unwrap();
            let key = format!("udp . {PORT} . {hash}");
            command(&format!("nft delete element {map} {{ {key} }}"));
            command(&format!(
                "nft add element {map} {{ {key} timeout 1h : {another} }}"
            ));
            asks().unwrap_err();
            for _ in 0..5 {
                assert_eq!(asks().unwrap().0, first, "{family}");
            }
        }
    });
}
