//! Packets through the table of a box outside the cluster, which leads connections to its
//! targets itself.
//!
//! Addresses as in `dnat.rs`, where the box is the node; the targets are 10.244.1.7 to
//! 10.244.1.9 and fd00:244:1::7 to fd00:244:1::9, each on several ports.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use highwire_agent::{
    decide::{Choice, Plan, Target},
    table::{DataPath, Elements, Transaction},
    udp::{Behind, conntrack::Conntrack, stale::View},
};
use highwire_api::{Family, PortKey, Protocol, arbitration::Slot};
use socket2::{Domain, Socket, Type};

use super::{
    command,
    dnat::{
        CLIENT, CLIENT6, MASQUERADED, MASQUERADED6, Namespace, PATIENCE, between_client_and_pod,
        counted, interface, line, serve,
    },
    in_new_namespace, nft, plans, replace,
};

pub(super) const PATH: DataPath = DataPath::Direct;
pub(super) const BOX: [&str; 2] = ["192.0.2.11", "2001:db8:1::11"];
const TARGETS: [[&str; 3]; 2] = [
    ["10.244.1.7", "10.244.1.8", "10.244.1.9"],
    ["fd00:244:1::7", "fd00:244:1::8", "fd00:244:1::9"],
];

/// What the box forwards from a port is this much higher at the targets.
const HIGHER: u16 = 30_000;
/// Of both protocols and families.
const RANDOM: u16 = 80;
const BY_CLIENT: u16 = 81;
const KEEPS_CLIENT: u16 = 82;
const GUARDED: u16 = 83;
const PORTS: [u16; 4] = [RANDOM, BY_CLIENT, KEEPS_CLIENT, GUARDED];
pub(super) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub(super) fn index(family: Family) -> usize {
    usize::from(family == Family::V6)
}

fn plan() -> Plan {
    let mut plan = Plan {
        addresses: BOX.map(|ip| ip.parse().unwrap()).into(),
        forwards: BTreeMap::new(),
    };
    for (family, protocol) in FAMILIES.map(|f| PROTOCOLS.map(|p| (f, p))).concat() {
        let targets = |port: u16| {
            let ips = TARGETS[index(family)].map(|ip| ip.parse::<IpAddr>().unwrap());
            ips.map(|ip| SocketAddr::new(ip, port + HIGHER).to_string())
        };
        for port in PORTS {
            let targets = targets(port);
            let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
            let choice = match port {
                BY_CLIENT => plans::by_client(10_800),
                _ => Choice::Random,
            };
            let number = i32::from(port);
            let (slot, mut forward) =
                plans::to_backends(family, protocol, number, &targets, choice);
            if port == KEEPS_CLIENT {
                plans::keep_client(&mut forward);
            }
            plan.forwards.insert(slot, forward);
        }
        let network = ["203.0.113.0/24", "2001:db8:99::/64"][index(family)];
        plans::guard(&mut plan, family, protocol, GUARDED.into(), &[network]);
    }
    plan
}

/// A box with the table; gives the clients and the targets.
pub(super) async fn a_box() -> (Namespace, Namespace) {
    let (client, pods) = between_client_and_pod();
    client.run(|| {
        for host in 11..=25 {
            let (four, six) = (format!("198.51.100.{host}/24"), client6(host) + "/64");
            interface("eth0", [&four, &six]);
        }
    });
    pods.run(|| {
        interface("eth0", ["10.244.1.8/24", "fd00:244:1::8/64"]);
        interface("eth0", ["10.244.1.9/24", "fd00:244:1::9/64"]);
        for ip in TARGETS.concat() {
            for port in PORTS {
                answer(SocketAddr::new(ip.parse().unwrap(), port + HIGHER));
            }
        }
    });
    nft().apply(&replace(PATH, &plan())).await.unwrap();
    (client, pods)
}

fn client6(host: u8) -> String {
    format!("2001:db8:2::{host}")
}

/// The clients' addresses.
pub(super) fn clients(family: Family) -> Vec<IpAddr> {
    let hosts = 10..=25;
    let texts = hosts.map(|host| match family {
        Family::V4 => format!("198.51.100.{host}"),
        Family::V6 => client6(host),
    });
    texts.map(|text| text.parse().unwrap()).collect()
}

/// Answers who it is and whom it sees; by TCP it then repeats what it gets.
pub(super) fn answer(at: SocketAddr) {
    let listener = TcpListener::bind(at).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let client = stream.peer_addr().unwrap().ip();
            writeln!(stream, "{at} {client}").unwrap();
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    let socket = UdpSocket::bind(at).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            // An error is an ICMP message about an earlier answer.
            if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                let text = format!("{at} {}", client.ip());
                socket.send_to(text.as_bytes(), client).ok();
            }
        }
    });
}

/// Who answers, and whom it sees.
pub(super) type Answer = Result<(SocketAddr, IpAddr), ErrorKind>;

pub(super) fn read(text: &str) -> (SocketAddr, IpAddr) {
    let (target, seen) = text.split_once(' ').unwrap();
    (target.parse().unwrap(), seen.parse().unwrap())
}

/// A new connection or flow to a port of the box, from this address if one is given.
pub(super) fn ask(family: Family, protocol: Protocol, port: u16, from: Option<IpAddr>) -> Answer {
    let to = at_box(family, port);
    let asked = match protocol {
        Protocol::Udp => ask_by_udp(&udp_socket(family, from), to),
        _ => connect(to, from).map(|mut stream| line(&mut stream)),
    };
    asked.map(|text| read(&text))
}

pub(super) fn at_box(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(BOX[index(family)].parse().unwrap(), port)
}

fn connect(to: SocketAddr, from: Option<IpAddr>) -> Result<TcpStream, ErrorKind> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    }
    let connected = socket.connect_timeout(&to.into(), PATIENCE);
    connected
        .map(|()| socket.into())
        .map_err(|error| error.kind())
}

thread_local! {
    /// The port of the next UDP socket of this thread, which is the only one in its namespace that
    /// has some made. No two get the same: a port that an earlier one had would bring its conntrack
    /// entry, which leads past the table to that one's target. The kernel's own choice does that
    /// once in 28,232 for each of them.
    static NEXT_PORT: Cell<u16> = const { Cell::new(32_768) };
}

pub(super) fn udp_socket(family: Family, from: Option<IpAddr>) -> UdpSocket {
    let any = match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    };
    let port = NEXT_PORT.get();
    NEXT_PORT.set(port.checked_add(1).expect("no port is left"));
    let socket = UdpSocket::bind((from.unwrap_or(any), port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(super) fn ask_by_udp(socket: &UdpSocket, to: SocketAddr) -> Result<String, ErrorKind> {
    let sent = socket.connect(to).and_then(|()| socket.send(b"?"));
    sent.map_err(|error| error.kind())?;
    receive(socket)
}

pub(super) fn receive(socket: &UdpSocket) -> Result<String, ErrorKind> {
    let mut buffer = [0; 64];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            // A signal: a program of another test has ended.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

/// How often each target answers.
fn count(answers: impl IntoIterator<Item = Answer>) -> BTreeMap<IpAddr, u32> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.unwrap().0.ip()).or_default() += 1;
    }
    counts
}

/// Each family and protocol.
pub(super) fn each() -> impl Iterator<Item = (Family, Protocol)> {
    let pairs = FAMILIES.map(|family| PROTOCOLS.map(|protocol| (family, protocol)));
    pairs.into_iter().flatten()
}

/// Takes a target from every port.
fn without(mut plan: Plan, gone: IpAddr) -> Plan {
    for forward in plan.forwards.values_mut() {
        if let Target::Backends(backends) = &mut forward.target {
            backends.targets.retain(|target| target.ip() != gone);
        }
    }
    plan
}

pub(super) async fn change(before: &Plan, after: &Plan) {
    let elements = |plan| Elements::of(plan, PATH);
    let change = Transaction::between(&elements(before), &elements(after));
    nft().apply(&change.unwrap()).await.unwrap();
}

#[test]
fn connections_are_spread_over_the_targets_which_see_the_box() {
    in_new_namespace(async || {
        let (client, _targets) = a_box().await;
        for (family, protocol) in each() {
            let answers: Vec<Answer> = client.run(move || {
                let asks = (0..90).map(|_| ask(family, protocol, RANDOM, None));
                asks.collect()
            });
            let box_: IpAddr = [MASQUERADED, MASQUERADED6][index(family)].parse().unwrap();
            let seen: BTreeSet<IpAddr> = answers.iter().map(|it| it.unwrap().1).collect();
            assert_eq!(seen, [box_].into(), "{family} {protocol}");
            let counts = count(answers);
            println!("{family} {protocol}: {counts:?}");
            // 30 each on the average, with a standard deviation of 4.5.
            assert_eq!(counts.len(), 3);
            assert!(counts.values().all(|count| *count >= 10), "{counts:?}");
        }
        assert_eq!(counted("rewrite").await, 360);
        let unserved = client.run(|| ask(Family::V4, Protocol::Tcp, 84, None));
        assert_eq!(unserved, Err(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn by_client_each_client_keeps_its_target_also_in_a_new_table() {
    in_new_namespace(async || {
        let (client, _targets) = a_box().await;
        for (family, protocol) in each() {
            let ask_all = || -> Vec<IpAddr> {
                client.run(move || {
                    let clients = clients(family).into_iter();
                    let asks = clients.map(|from| ask(family, protocol, BY_CLIENT, Some(from)));
                    asks.map(|answer| answer.expect("an answer").0.ip())
                        .collect()
                })
            };
            let first = ask_all();
            assert_eq!(ask_all(), first, "{family} {protocol}");
            nft().apply(&replace(PATH, &plan())).await.unwrap();
            assert_eq!(ask_all(), first, "{family} {protocol}, in a new table");
            let targets: BTreeSet<&IpAddr> = first.iter().collect();
            assert_eq!(targets.len(), 3, "16 clients: {first:?}");
        }
    });
}

#[test]
fn without_masquerade_a_target_sees_the_client() {
    in_new_namespace(async || {
        let (client, _targets) = a_box().await;
        for (family, protocol) in each() {
            let from: IpAddr = [CLIENT, CLIENT6][index(family)].parse().unwrap();
            let asked = client.run(move || ask(family, protocol, KEEPS_CLIENT, Some(from)));
            let seen = asked.map(|(_, seen)| seen);
            assert_eq!(seen, Ok(from), "{family} {protocol}");
        }
    });
}

#[test]
fn a_client_on_the_box_is_led_on_too() {
    in_new_namespace(async || {
        let _others = a_box().await;
        for (family, protocol) in each() {
            let answers: Vec<Answer> = (0..90)
                .map(|_| ask(family, protocol, RANDOM, None))
                .collect();
            let counts = count(answers);
            assert_eq!(counts.len(), 3, "{family} {protocol}: {counts:?}");
            let sticky = (0..5).map(|_| ask(family, protocol, BY_CLIENT, None));
            assert_eq!(count(sticky).len(), 1, "{family} {protocol}");
        }
        let guarded = ask(Family::V4, Protocol::Tcp, GUARDED, None);
        assert_eq!(guarded, Err(ErrorKind::TimedOut));
    });
}

#[test]
fn who_is_not_in_the_source_ranges_is_dropped_before_it_is_led_on() {
    in_new_namespace(async || {
        let (client, _targets) = a_box().await;
        for (family, protocol) in each() {
            let before = counted("denied").await;
            let asked = client.run(move || ask(family, protocol, GUARDED, None));
            let timeout = [ErrorKind::TimedOut, ErrorKind::WouldBlock];
            assert!(asked.is_err_and(|kind| timeout.contains(&kind)));
            assert!(counted("denied").await > before, "{family} {protocol}");
        }
        assert_eq!(counted("rewrite").await, 0);
        let mut open = plan();
        for (family, protocol) in each() {
            let network = ["198.51.100.0/24", "2001:db8:2::/64"][index(family)];
            plans::guard(&mut open, family, protocol, GUARDED.into(), &[network]);
        }
        change(&plan(), &open).await;
        for (family, protocol) in each() {
            client
                .run(move || ask(family, protocol, GUARDED, None))
                .unwrap();
        }
    });
}

#[test]
fn a_listener_on_the_box_wins() {
    in_new_namespace(async || {
        let (client, _targets) = a_box().await;
        serve("0.0.0.0:80");
        let udp = UdpSocket::bind(at_box(Family::V6, RANDOM)).unwrap();
        let to = at_box(Family::V4, RANDOM);
        let seen = client.run(move || connect(to, None).map(|mut stream| line(&mut stream)));
        assert_eq!(seen, Ok(CLIENT.into()));
        let to = at_box(Family::V6, RANDOM);
        client.run(move || {
            let socket = udp_socket(Family::V6, None);
            socket.send_to(b"for the listener", to).unwrap();
        });
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(receive(&udp).as_deref(), Ok("for the listener"));
        assert_eq!(counted("rewrite").await, 0);
        assert!(counted("listener").await >= 2);
    });
}

#[test]
fn a_target_that_goes_keeps_its_connections_and_gets_no_new_ones() {
    in_new_namespace(async || {
        let (client, _targets) = a_box().await;
        for family in FAMILIES {
            let to = at_box(family, RANDOM);
            let mut connection = client.run(move || connect(to, None).unwrap());
            let gone = read(&line(&mut connection)).0.ip();
            let fewer = without(plan(), gone);
            change(&plan(), &fewer).await;
            writeln!(connection, "still there").unwrap();
            assert_eq!(line(&mut connection), "still there");
            for protocol in PROTOCOLS {
                let answers: Vec<Answer> = client.run(move || {
                    let asks = (0..40).map(|_| ask(family, protocol, RANDOM, None));
                    asks.collect()
                });
                let counts = count(answers);
                assert!(!counts.contains_key(&gone), "{gone}: {counts:?}");
                assert_eq!(counts.len(), 2, "{counts:?}");
            }
            change(&fewer, &plan()).await;
        }
    });
}

#[test]
fn a_udp_flow_moves_on_once_its_stale_entry_is_deleted() {
    in_new_namespace(async || {
        let (client, _targets) = a_box().await;
        for family in FAMILIES {
            let to = at_box(family, RANDOM);
            let socket = client.run(move || udp_socket(family, None));
            let asks = || {
                let socket = socket.try_clone().unwrap();
                client.run(move || read(&ask_by_udp(&socket, to).unwrap()).0.ip())
            };
            let gone = asks();
            let fewer = without(plan(), gone);
            change(&plan(), &fewer).await;
            assert_eq!(asks(), gone, "conntrack leads past the table");
            let slot = Slot {
                family,
                port: PortKey::new(Protocol::Udp, RANDOM.into()).unwrap(),
            };
            let Target::Backends(backends) = &fewer.forwards[&slot].target else {
                unreachable!();
            };
            let behind = Behind::Targets {
                targets: backends.targets.clone(),
                draining: BTreeSet::new(),
            };
            let view = View {
                frontends: [(to, behind.frontend(None).unwrap())].into(),
                own: [to.ip()].into(),
            };
            let conntrack = Conntrack::open().unwrap();
            let stale = conntrack
                .udp_flows_to(to.ip(), |flow| view.is_stale(flow))
                .unwrap();
            assert_eq!(stale.flows.len(), 1, "{:?}", stale.flows);
            assert!(conntrack.delete(&stale.flows[0]).unwrap());
            assert_ne!(asks(), gone);
            change(&fewer, &plan()).await;
        }
    });
}

#[test]
fn nothing_of_the_table_grows_with_the_ports_but_elements() {
    in_new_namespace(async || {
        let rules = || {
            command("nft list table inet highwire")
                .matches(" dnat ")
                .count()
        };
        nft().apply(&replace(PATH, &Plan::default())).await.unwrap();
        let empty = rules();
        nft().apply(&replace(PATH, &plan())).await.unwrap();
        assert_eq!((empty, rules()), (16, 16));
    });
}
