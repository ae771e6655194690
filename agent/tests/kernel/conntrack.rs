//! UDP flows in the kernel's conntrack: read and deleted, and no others.
//!
//! Addresses: the node 192.0.2.11 and 2001:db8:1::11, Pods 10.244.1.7 and
//! fd00:244:1::7, the client 198.51.100.10 and 2001:db8:2::10; all of them on the
//! loopback of one namespace.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
};

use highwire_agent::udp::{
    conntrack::{Conntrack, ConntrackError},
    flow::Flow,
};

use super::{command, in_new_namespace};

const NODES: [&str; 2] = ["192.0.2.11:53", "[2001:db8:1::11]:53"];
const PODS: [&str; 2] = ["10.244.1.7:5353", "[fd00:244:1::7]:5353"];
const CLIENTS: [&str; 2] = ["198.51.100.10:4711", "[2001:db8:2::10]:4711"];

/// All addresses, and rules that rewrite port 53 of the node as kube-proxy's do.
fn network() {
    command("ip link set lo up");
    for socket in [NODES, PODS, CLIENTS].concat() {
        let ip = at(socket).ip();
        let rest = if ip.is_ipv4() { "/32" } else { "/128 nodad" };
        command(&format!("ip address add {ip}{rest} dev lo"));
    }
    command("nft add table inet proxy");
    command("nft add chain inet proxy output { type nat hook output priority -100 ; }");
    for (node, pod) in NODES.iter().zip(PODS) {
        let (family, ip) = if at(node).is_ipv4() {
            ("ip", at(node).ip())
        } else {
            ("ip6", at(node).ip())
        };
        command(&format!(
            "nft add rule inet proxy output {family} daddr {ip} meta l4proto {{ tcp, udp }} \
             th dport 53 dnat {family} to {pod}"
        ));
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A datagram of the client's.
fn send(client: &UdpSocket, to: &str) {
    // An ICMP error about an earlier one is reported here.
    while let Err(error) = client.send_to(b"hi", to) {
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
}

fn flows(to: IpAddr) -> Vec<Flow> {
    let found = Conntrack::open().unwrap().udp_flows_to(to, |_| true);
    let mut flows = found.unwrap().flows;
    flows.sort();
    flows
}

fn texts(to: IpAddr) -> Vec<String> {
    flows(to).iter().map(ToString::to_string).collect()
}

#[test]
fn flows_are_read_as_they_were_rewritten() {
    in_new_namespace(async || {
        network();
        for ((node, pod), client) in NODES.iter().zip(PODS).zip(CLIENTS) {
            let ip = at(node).ip();
            assert_eq!(texts(ip), [""; 0]);
            let socket = UdpSocket::bind(client).unwrap();
            send(&socket, node);
            let other_port = SocketAddr::new(ip, 54).to_string();
            send(&socket, &other_port);
            assert_eq!(
                texts(ip),
                [
                    format!("{client} → {node} ⇒ {pod}"),
                    format!("{client} → {other_port} ⇒ {other_port}"),
                ]
            );
            let rewritten: Vec<bool> = flows(ip).iter().map(Flow::is_rewritten).collect();
            assert_eq!(rewritten, [true, false]);
            assert_eq!(texts(at(pod).ip()), [""; 0], "by original address");
        }
    });
}

#[test]
fn a_deleted_flow_is_gone_and_no_other() {
    in_new_namespace(async || {
        network();
        for ((node, pod), client) in NODES.iter().zip(PODS).zip(CLIENTS) {
            let ip = at(node).ip();
            let _pod = TcpListener::bind(pod).unwrap();
            let _tcp = TcpStream::connect(node).unwrap();
            let socket = UdpSocket::bind(client).unwrap();
            let neighbour = UdpSocket::bind(SocketAddr::new(at(client).ip(), 4712)).unwrap();
            send(&socket, node);
            send(&neighbour, node);
            let [flow, other] = flows(ip)[..] else {
                panic!("{:?}", texts(ip));
            };
            let conntrack = Conntrack::open().unwrap();
            let before = tracked();
            assert!(conntrack.delete(&flow).unwrap());
            assert_eq!(flows(ip), [other]);
            assert_eq!(tracked(), before - 1, "TCP is never touched");
            assert!(!conntrack.delete(&flow).unwrap(), "gone already");
        }
    });
}

/// How many connections and flows of any kind the namespace tracks.
fn tracked() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn only_what_is_wanted_is_kept() {
    in_new_namespace(async || {
        network();
        let sockets: Vec<UdpSocket> = (0..500)
            .map(|_| UdpSocket::bind("198.51.100.10:0").unwrap())
            .collect();
        for socket in &sockets {
            send(socket, NODES[0]);
        }
        let conntrack = Conntrack::open().unwrap();
        let ip = at(NODES[0]).ip();
        let all = conntrack.udp_flows_to(ip, |_| true).unwrap();
        assert_eq!(all.unreadable, 0);
        assert_eq!(
            all.flows.len(),
            500,
            "a long answer comes in several datagrams"
        );
        let wanted = sockets[7].local_addr().unwrap();
        let one = conntrack
            .udp_flows_to(ip, |flow| flow.original.source == wanted)
            .unwrap();
        assert_eq!(one.flows.len(), 1);
    });
}

#[test]
fn without_the_right_the_remedy_is_named() {
    // The capability is taken from a program of its own, this test again.
    const INSIDE: &str = "HIGHWIRE_TEST_WITHOUT_NET_ADMIN";
    if std::env::var_os(INSIDE).is_some() {
        let conntrack = Conntrack::open().unwrap();
        let node = at(NODES[0]).ip();
        let error = conntrack.udp_flows_to(node, |_| true).unwrap_err();
        assert!(matches!(error, ConntrackError::Failed { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("192.0.2.11") && text.contains("CAP_NET_ADMIN"),
            "{text}"
        );
        return;
    }
    let output = in_new_namespace(async || {
        Command::new("setpriv")
            .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "conntrack::without_the_right_the_remedy_is_named",
            ])
            .env(INSIDE, "1")
            .output()
            .expect("setpriv is part of util-linux")
    });
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn an_entry_that_comes_and_goes_meanwhile_is_no_trouble() {
    in_new_namespace(async || {
        network();
        let ip = at(NODES[0]).ip();
        let socket = UdpSocket::bind(CLIENTS[0]).unwrap();
        let conntrack = Conntrack::open().unwrap();
        for _ in 0..200 {
            send(&socket, NODES[0]);
            for flow in conntrack.udp_flows_to(ip, |_| true).unwrap().flows {
                assert!(conntrack.delete(&flow).unwrap());
            }
        }
        assert_eq!(texts(ip), [""; 0]);
    });
}
