//! Packets through our table and a real ipvs, which is set up as kube-proxy's ipvs mode does
//! it. Few kernels have ipvs: `hack/test vm kernel` runs these tests, elsewhere they are
//! ignored.
//!
//! Addresses as in `dnat.rs`; the virtual servers are 10.96.0.10 and fd00:96::10, and for a
//! NodePort 192.0.2.11:30443; Pods are 10.244.1.7, fd00:244:1::7 and 10.244.1.8.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    thread,
    time::Instant,
};

use highwire_agent::{
    decide::{Plan, Target},
    table::DataPath,
    udp::{
        conntrack::Conntrack,
        stale::{Frontend, View},
    },
};
use highwire_api::{Family, Protocol, service::TrafficPolicy};

use super::{
    command,
    dnat::{
        CLIENT, MASQUERADED, MASQUERADED6, Namespace, PATIENCE, ask, between_client_and_pod,
        interface, serve,
    },
    in_new_namespace, nft, plans, replace,
};

fn plan() -> Plan {
    let four = |protocol, port| plans::forward(Family::V4, protocol, port, "10.96.0.10");
    let six = |protocol, port| plans::forward(Family::V6, protocol, port, "fd00:96::10");
    let (slot, mut local) = four(Protocol::Tcp, 8443);
    local.target = Target::NodePort {
        address: "192.0.2.11".parse().unwrap(),
        port: 30443.try_into().unwrap(),
        policy: TrafficPolicy::Local,
    };
    Plan {
        addresses: ["192.0.2.11", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        forwards: [
            four(Protocol::Tcp, 80),
            six(Protocol::Tcp, 80),
            four(Protocol::Udp, 53),
            six(Protocol::Udp, 53),
            four(Protocol::Sctp, 90),
            six(Protocol::Sctp, 90),
            (slot, local),
        ]
        .into(),
    }
}

/// A node with the table and with virtual servers; gives the client and the Pods.
pub(super) async fn node() -> (Namespace, Namespace) {
    let (client, pod) = between_client_and_pod();
    // kube-proxy leaves it down.
    command("ip link add kube-ipvs0 type dummy");
    for address in ["10.96.0.10/32", "fd00:96::10/128"] {
        command(&format!("ip address add {address} dev kube-ipvs0 nodad"));
    }
    // Loads the module, and with it come the sysctls.
    command("ipvsadm --clear");
    command(
        "sysctl -qw net.ipv4.vs.conntrack=1 net.ipv4.vs.conn_reuse_mode=0 \
         net.ipv4.vs.expire_nodest_conn=1 net.ipv4.vs.expire_quiescent_template=1",
    );
    for server in [
        "-t 10.96.0.10:80",
        "-t [fd00:96::10]:80",
        "-u 10.96.0.10:53",
        "-u [fd00:96::10]:53",
        "-t 192.0.2.11:30443",
        "--sctp-service 10.96.0.10:90",
        "--sctp-service [fd00:96::10]:90",
    ] {
        command(&format!("ipvsadm --add-service {server} --scheduler rr"));
    }
    pod.run(|| {
        interface("eth0", ["10.244.1.8/24", "fd00:244:1::8/64"]);
        for at in ["10.244.1.7:8080", "[fd00:244:1::7]:8080"] {
            serve(at);
        }
        for at in ["10.244.1.7:5353", "10.244.1.8:5353", "[fd00:244:1::7]:5353"] {
            answer_by_udp(at);
        }
    });
    let table = replace(DataPath::Dnat, &plan());
    nft().apply(&table).await.unwrap();
    (client, pod)
}

/// Makes a Pod an endpoint of a virtual server, as `--masquerading` (NAT, as kube-proxy).
pub(super) fn endpoint(server: &str, pod: &str) {
    command(&format!(
        "ipvsadm --add-server {server} --real-server {pod} --masquerading"
    ));
}

/// Answers each datagram with the server's own address.
fn answer_by_udp(at: &str) {
    let socket = UdpSocket::bind(at).unwrap();
    let own = socket.local_addr().unwrap().ip().to_string();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            // An error is an ICMP message about an earlier answer.
            if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                socket.send_to(own.as_bytes(), client).ok();
            }
        }
    });
}

/// Sends one datagram; who answers.
fn ask_by_udp(socket: &UdpSocket, to: &str) -> Result<String, ErrorKind> {
    let sent = socket.connect(to).and_then(|()| socket.send(b"?"));
    sent.map_err(|error| error.kind())?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn udp_socket(any: &str) -> UdpSocket {
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
#[ignore = "needs a kernel with ipvs: hack/test vm kernel"]
fn ipvs_leads_clients_from_outside_and_on_the_node_to_a_pod() {
    in_new_namespace(async || {
        let (client, _pod) = node().await;
        endpoint("-t 10.96.0.10:80", "10.244.1.7:8080");
        endpoint("-t [fd00:96::10]:80", "[fd00:244:1::7]:8080");
        let asks = |to: &'static str| client.run(move || ask(to));
        for (to, seen) in [
            ("192.0.2.11:80", MASQUERADED),
            ("[2001:db8:1::11]:80", MASQUERADED6),
        ] {
            assert_eq!(asks(to), Ok(seen.into()), "{to} from outside");
            assert_eq!(ask(to), Ok(seen.into()), "{to} from the node");
        }
        let entries = command("conntrack -L -p tcp --orig-dst 192.0.2.11");
        let entry = "dst=192.0.2.11 ";
        let led = entries
            .lines()
            .filter(|line| line.contains(entry) && line.contains("src=10.244.1.7 "));
        assert_eq!(led.count(), 2, "one entry each, to the Pod: {entries}");
    });
}

#[test]
#[ignore = "needs a kernel with ipvs: hack/test vm kernel"]
fn with_ipvs_and_the_policy_local_the_pod_sees_the_client() {
    in_new_namespace(async || {
        let (client, _pod) = node().await;
        endpoint("-t 192.0.2.11:30443", "10.244.1.7:8080");
        let asked = client.run(|| ask("192.0.2.11:8443"));
        assert_eq!(asked, Ok(CLIENT.into()));
    });
}

#[test]
#[ignore = "needs a kernel with ipvs: hack/test vm kernel"]
fn ipvs_without_endpoints_refuses_and_nobody_waits() {
    in_new_namespace(async || {
        let (client, _pod) = node().await;
        for to in ["192.0.2.11:80", "[2001:db8:1::11]:80"] {
            let (asked, took) = client.run(move || {
                let since = Instant::now();
                (ask(to), since.elapsed())
            });
            println!("{to}: refused after {took:?}");
            assert_eq!(asked, Err(ErrorKind::ConnectionRefused), "{to}");
        }
        for (any, to) in [("0.0.0.0", "192.0.2.11:53"), ("::", "[2001:db8:1::11]:53")] {
            let asked = client.run(move || ask_by_udp(&udp_socket(any), to));
            assert_eq!(asked, Err(ErrorKind::ConnectionRefused), "UDP to {to}");
        }
    });
}

#[test]
#[ignore = "needs a kernel with ipvs: hack/test vm kernel"]
fn a_udp_flow_leaves_a_pod_that_ipvs_has_dropped_once_its_entry_is_deleted() {
    in_new_namespace(async || {
        let (client, _pod) = node().await;
        let (server, old, new) = ("-u 10.96.0.10:53", "10.244.1.7:5353", "10.244.1.8:5353");
        endpoint(server, old);
        let socket = client.run(|| udp_socket("0.0.0.0"));
        let to = "192.0.2.11:53";
        let asks = |socket: &UdpSocket| {
            let socket = socket.try_clone().unwrap();
            client.run(move || ask_by_udp(&socket, to))
        };
        assert_eq!(asks(&socket), Ok("10.244.1.7".into()));
        endpoint(server, new);
        command(&format!(
            "ipvsadm --delete-server {server} --real-server {old}"
        ));
        let stuck = asks(&socket);
        assert_eq!(stuck, Ok("10.244.1.7".into()), "conntrack leads past ipvs");
        let frontend: SocketAddr = to.parse().unwrap();
        let endpoints = [new.parse().unwrap()];
        let view = View {
            frontends: BTreeMap::from([(
                frontend,
                Frontend::Served {
                    entrance: Some("10.96.0.10:53".parse().unwrap()),
                    endpoints: endpoints.into(),
                    reachable: endpoints.into(),
                },
            )]),
            own: [frontend.ip()].into(),
        };
        let conntrack = Conntrack::open().unwrap();
        let stale = conntrack
            .udp_flows_to(frontend.ip(), |flow| view.is_stale(flow))
            .unwrap();
        assert_eq!(stale.flows.len(), 1, "{:?}", stale.flows);
        assert!(conntrack.delete(&stale.flows[0]).unwrap());
        // ipvs drops the packet by which it notices that its own entry leads nowhere.
        let moved = (0..3).find_map(|_| asks(&socket).ok());
        assert_eq!(moved.as_deref(), Some("10.244.1.8"));
    });
}
