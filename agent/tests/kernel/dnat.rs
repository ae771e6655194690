//! Packets through the table that stands beside a kube-proxy in ipvs mode, on any kernel.
//! There is no ipvs here: what it would make of a virtual server, its address and port, the
//! Pod has itself. So this shows our rules, and nothing of how ipvs goes on: `ipvs.rs` does.
//!
//! Addresses: the node 192.0.2.11 and 2001:db8:1::11, the client 198.51.100.10 and
//! 2001:db8:2::10, the Pod 10.244.1.7, 10.96.0.10 and fd00:96::10; the node's
//! towards the Pod 10.244.1.1 and fd00:244:1::1.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use highwire_agent::{
    decide::{Plan, Target},
    table::{DataPath, counters},
};
use highwire_api::{Family, Protocol, service::TrafficPolicy};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

use super::{command, in_new_namespace, nft, patience, plans, replace};

pub(super) const CLIENT: &str = "198.51.100.10";
pub(super) const CLIENT6: &str = "2001:db8:2::10";
pub(super) const MASQUERADED: &str = "10.244.1.1";
pub(super) const MASQUERADED6: &str = "fd00:244:1::1";
/// Within which an answer comes, and after which none is thought to come.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);

type Job = Box<dyn FnOnce() + Send>;

/// Another namespace than the node's: a thread that runs what it is given.
pub(super) struct Namespace {
    thread: Pid,
    jobs: mpsc::Sender<Job>,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, given) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            usable_at_once();
            ready.send(gettid()).unwrap();
            given.into_iter().for_each(|job| job());
        });
        let thread = is_ready.recv().unwrap();
        Self { thread, jobs }
    }

    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || done.send(work()).unwrap());
        self.jobs.send(job).unwrap();
        result.recv().expect("the work panicked in its namespace")
    }

    /// Joins it to the node by a link, with an address on either end.
    fn join(&self, link: &str, node: [&str; 2], here: [&str; 2]) {
        let thread = self.thread;
        command(&format!(
            "ip link add {link} type veth peer name eth0 netns {thread}"
        ));
        interface(link, node);
        let (here, node) = (here.map(str::to_owned), node.map(str::to_owned));
        self.run(move || {
            interface("lo", ["127.0.0.1/8", "::1/128"]);
            interface("eth0", [&here[0], &here[1]]);
            for node in node {
                let gateway = node.split('/').next().unwrap();
                command(&format!("ip route add default via {gateway}"));
            }
        });
    }
}

/// Has IPv6 use an interface's own address at once. Until then, a second or two, the kernel
/// does not ask for the neighbour to whom it forwards a packet.
fn usable_at_once() {
    command("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
}

pub(super) fn interface(name: &str, addresses: [&str; 2]) {
    command(&format!("ip link set {name} up"));
    for address in addresses {
        command(&format!("ip address replace {address} dev {name} nodad"));
    }
}

/// Answers each client with the client's address, then repeats what it says.
pub(super) fn serve(at: &str) {
    serve_by(TcpListener::bind(at).unwrap());
}

/// The same on a listener of any protocol with streams.
pub(super) fn serve_by(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let client = stream.peer_addr().unwrap().ip().to_canonical();
            writeln!(stream, "{client}").unwrap();
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
}

/// As whom the server sees the one who asks.
pub(super) fn ask(to: &str) -> Result<String, ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| error.kind())?;
    Ok(line(&mut stream))
}

/// What comes next, which has to come.
pub(super) fn line(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(patience())).unwrap();
    let mut text = String::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0].into());
    }
    text.trim().to_owned()
}

pub(super) fn plan() -> Plan {
    let cluster_ip = |port| plans::forward(Family::V4, Protocol::Tcp, port, "10.96.0.10");
    let node_port = |port, policy| {
        let (slot, mut forward) = cluster_ip(port);
        forward.target = Target::NodePort {
            address: "10.244.1.7".parse().unwrap(),
            port: 30443.try_into().unwrap(),
            policy,
        };
        (slot, forward)
    };
    let mut plan = Plan {
        addresses: ["192.0.2.11", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        forwards: [
            cluster_ip(80),
            plans::forward(Family::V6, Protocol::Tcp, 80, "fd00:96::10"),
            cluster_ip(81),
            cluster_ip(82),
            cluster_ip(83),
            node_port(8443, TrafficPolicy::Local),
            node_port(443, TrafficPolicy::Cluster),
        ]
        .into(),
    };
    for (port, network) in [(81, "203.0.113.0/24"), (82, "198.51.100.0/24")] {
        plans::guard(&mut plan, Family::V4, Protocol::Tcp, port, &[network]);
    }
    plan
}

/// A node between a client and a Pod.
pub(super) fn between_client_and_pod() -> (Namespace, Namespace) {
    usable_at_once();
    interface("lo", ["192.0.2.11/32", "2001:db8:1::11/128"]);
    let (client, pod) = (Namespace::new(), Namespace::new());
    let outside = ["198.51.100.1/24", "2001:db8:2::1/64"];
    client.join(
        "outside",
        outside,
        ["198.51.100.10/24", "2001:db8:2::10/64"],
    );
    let inside = ["10.244.1.1/24", "fd00:244:1::1/64"];
    pod.join("inside", inside, ["10.244.1.7/24", "fd00:244:1::7/64"]);
    command("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    (client, pod)
}

/// Such a node with the table; gives the client.
pub(super) async fn node() -> Namespace {
    let (client, pod) = between_client_and_pod();
    command("ip route add 10.96.0.10 via 10.244.1.7");
    command("ip route add fd00:96::10 via fd00:244:1::7");
    pod.run(|| {
        interface("lo", ["10.96.0.10/32", "fd00:96::10/128"]);
        for at in [
            "10.96.0.10:80",
            "10.96.0.10:81",
            "10.96.0.10:82",
            "10.96.0.10:83",
            "[fd00:96::10]:80",
            "10.244.1.7:30443",
        ] {
            serve(at);
        }
    });
    nft()
        .apply(&replace(DataPath::Dnat, &plan()))
        .await
        .unwrap();
    client
}

pub(super) async fn counted(name: &str) -> u64 {
    counters::read().unwrap()[name].packets
}

#[test]
fn a_client_from_outside_is_led_on_and_masqueraded_unless_the_policy_is_local() {
    in_new_namespace(async || {
        let client = node().await;
        let asks = |to: &'static str| client.run(move || ask(to));
        assert_eq!(asks("192.0.2.11:80"), Ok(MASQUERADED.into()));
        assert_eq!(asks("[2001:db8:1::11]:80"), Ok(MASQUERADED6.into()));
        assert_eq!(asks("192.0.2.11:443"), Ok(MASQUERADED.into()));
        assert_eq!(asks("192.0.2.11:8443"), Ok(CLIENT.into()));
        assert_eq!(counted("rewrite").await, 4);
        assert_eq!(
            asks("192.0.2.11:84"),
            Err(ErrorKind::ConnectionRefused),
            "not a served port"
        );
        assert_eq!(counted("rewrite").await, 4);
    });
}

#[test]
fn a_client_on_the_node_is_led_on_too() {
    in_new_namespace(async || {
        let _client = node().await;
        assert_eq!(ask("192.0.2.11:80"), Ok(MASQUERADED.into()));
        assert_eq!(ask("[2001:db8:1::11]:80"), Ok(MASQUERADED6.into()));
        assert_eq!(ask("192.0.2.11:81"), Err(ErrorKind::TimedOut), "guarded");
    });
}

#[test]
fn who_is_not_in_the_source_ranges_is_dropped() {
    in_new_namespace(async || {
        let client = node().await;
        let asks = |to: &'static str| client.run(move || ask(to));
        assert_eq!(asks("192.0.2.11:81"), Err(ErrorKind::TimedOut));
        assert!(counted("denied").await > 0);
        assert_eq!(counted("rewrite").await, 0, "dropped before our nat");
        assert_eq!(asks("192.0.2.11:82"), Ok(MASQUERADED.into()));
    });
}

#[test]
fn a_listener_on_the_node_wins() {
    in_new_namespace(async || {
        let client = node().await;
        serve("0.0.0.0:83");
        serve("[2001:db8:1::11]:80");
        let asks = |to: &'static str| client.run(move || ask(to));
        assert_eq!(asks("192.0.2.11:83"), Ok(CLIENT.into()));
        assert_eq!(asks("[2001:db8:1::11]:80"), Ok(CLIENT6.into()));
        assert_eq!(counted("rewrite").await, 0);
        assert!(counted("listener").await > 0);
        assert_eq!(asks("192.0.2.11:80"), Ok(MASQUERADED.into()));
    });
}

#[test]
fn connections_outlive_the_change_to_another_data_path() {
    in_new_namespace(async || {
        let client = node().await;
        let mut connection = client.run(|| TcpStream::connect("192.0.2.11:80").unwrap());
        assert_eq!(line(&mut connection), MASQUERADED);
        let table = replace(DataPath::FirstPacket, &plan());
        nft().apply(&table).await.unwrap();
        writeln!(connection, "still there").unwrap();
        assert_eq!(line(&mut connection), "still there");
    });
}
