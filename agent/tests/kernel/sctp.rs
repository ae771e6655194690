//! SCTP through our tables: with rules of the three kinds that kube-proxy makes, and straight
//! to Pods. Few kernels have SCTP: `hack/test vm kernel` runs these tests, elsewhere they are ignored.
//!
//! Addresses as in `dnat.rs`; the Pod serves SCTP on port 9090, the Service's is 90.

use std::{
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use highwire_agent::{
    decide::{Choice, Plan},
    facts::listeners,
    table::DataPath,
};
use highwire_api::{Family, Protocol};
use socket2::{Domain, Socket, Type};

use super::{
    command,
    direct::change,
    dnat::{
        CLIENT, CLIENT6, MASQUERADED, MASQUERADED6, Namespace, PATIENCE, between_client_and_pod,
        line, serve_by,
    },
    in_new_namespace, ipvs, nft, plans, replace,
};

fn socket(like: SocketAddr) -> Socket {
    let protocol = Some(socket2::Protocol::SCTP);
    Socket::new(Domain::for_address(like), Type::STREAM, protocol)
        .expect("this kernel has no SCTP: hack/test vm kernel runs one that has")
}

fn listener(at: &str) -> TcpListener {
    let at: SocketAddr = at.parse().unwrap();
    let socket = socket(at);
    socket.bind(&at.into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

/// As whom the server sees the one who asks.
fn ask(to: &str) -> Result<String, ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = socket(to);
    let connected = socket.connect_timeout(&to.into(), PATIENCE);
    connected.map_err(|error| error.kind())?;
    Ok(line(&mut TcpStream::from(socket)))
}

fn serve(pod: &Namespace) {
    pod.run(|| {
        for at in ["10.244.1.7:9090", "[fd00:244:1::7]:9090"] {
            serve_by(listener(at));
        }
        // A checksum that nobody computed must be seen.
        command("ethtool -K eth0 tx off rx off");
    });
}

/// Clients from outside and on the node are answered, three times each.
fn is_answered(client: &Namespace) {
    client.run(|| command("ethtool -K eth0 tx off rx off"));
    for (to, seen) in [
        ("192.0.2.11:90", MASQUERADED),
        ("[2001:db8:1::11]:90", MASQUERADED6),
    ] {
        for _ in 0..3 {
            let asked = client.run(move || ask(to));
            assert_eq!(asked, Ok(seen.into()), "{to} from outside");
            assert_eq!(ask(to), Ok(seen.into()), "{to} from the node");
        }
    }
}

async fn first_packet(kube_proxy: &[&str]) {
    let (client, pod) = between_client_and_pod();
    serve(&pod);
    // As by a default route: the header with the ClusterIP is routed before kube-proxy's nat.
    command("ip route add 10.96.0.0/16 via 10.244.1.7");
    command("ip route add fd00:96::/112 via fd00:244:1::7");
    for rule in kube_proxy {
        command(rule);
    }
    let plan = Plan {
        addresses: ["192.0.2.11", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        forwards: [
            plans::forward(Family::V4, Protocol::Sctp, 90, "10.96.0.10"),
            plans::forward(Family::V6, Protocol::Sctp, 90, "fd00:96::10"),
        ]
        .into(),
    };
    let table = replace(DataPath::FirstPacket, &plan);
    nft().apply(&table).await.unwrap();
    is_answered(&client);
}

#[test]
#[ignore = "needs a kernel with SCTP: hack/test vm kernel"]
fn sctp_is_answered_beside_rules_of_nftables() {
    in_new_namespace(async || {
        first_packet(&[
            "nft add table inet proxy",
            "nft add chain inet proxy pre { type nat hook prerouting priority -100 ; }",
            "nft add chain inet proxy out { type nat hook output priority -100 ; }",
            "nft add rule inet proxy pre ip daddr 10.96.0.10 sctp dport 90 dnat ip to 10.244.1.7:9090",
            "nft add rule inet proxy out ip daddr 10.96.0.10 sctp dport 90 dnat ip to 10.244.1.7:9090",
            "nft add rule inet proxy pre ip6 daddr fd00:96::10 sctp dport 90 dnat ip6 to [fd00:244:1::7]:9090",
            "nft add rule inet proxy out ip6 daddr fd00:96::10 sctp dport 90 dnat ip6 to [fd00:244:1::7]:9090",
        ])
        .await;
    });
}

#[test]
#[ignore = "needs a kernel with SCTP: hack/test vm kernel"]
fn sctp_is_answered_beside_rules_of_iptables() {
    in_new_namespace(async || {
        first_packet(&[
            "iptables -t nat -A PREROUTING -p sctp -d 10.96.0.10 --dport 90 -j DNAT --to 10.244.1.7:9090",
            "iptables -t nat -A OUTPUT -p sctp -d 10.96.0.10 --dport 90 -j DNAT --to 10.244.1.7:9090",
            "ip6tables -t nat -A PREROUTING -p sctp -d fd00:96::10 --dport 90 -j DNAT --to [fd00:244:1::7]:9090",
            "ip6tables -t nat -A OUTPUT -p sctp -d fd00:96::10 --dport 90 -j DNAT --to [fd00:244:1::7]:9090",
        ])
        .await;
    });
}

#[test]
#[ignore = "needs a kernel with SCTP and ipvs: hack/test vm kernel"]
fn sctp_is_answered_by_ipvs() {
    in_new_namespace(async || {
        let (client, pod) = ipvs::node().await;
        serve(&pod);
        ipvs::endpoint("--sctp-service 10.96.0.10:90", "10.244.1.7:9090");
        ipvs::endpoint("--sctp-service [fd00:96::10]:90", "[fd00:244:1::7]:9090");
        is_answered(&client);
    });
}

/// A node without a kube-proxy, whose port leads to these ports of the Pod.
fn straight_to(ports: &[u16], choice: Choice, keeps_client: bool) -> Plan {
    let forwards = [(Family::V4, "10.244.1.7"), (Family::V6, "[fd00:244:1::7]")];
    let forwards = forwards.map(|(family, pod)| {
        let targets: Vec<String> = ports.iter().map(|port| format!("{pod}:{port}")).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let (slot, mut forward) = plans::to_backends(family, Protocol::Sctp, 90, &targets, choice);
        if keeps_client {
            plans::keep_client(&mut forward);
        }
        (slot, forward)
    });
    Plan {
        addresses: ["192.0.2.11", "2001:db8:1::11"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        forwards: forwards.into(),
    }
}

#[test]
#[ignore = "needs a kernel with SCTP: hack/test vm kernel"]
fn sctp_is_led_straight_to_pods() {
    in_new_namespace(async || {
        let (client, pod) = between_client_and_pod();
        serve(&pod);
        for choice in [Choice::Random, plans::by_client(10_800)] {
            let plan = straight_to(&[9090], choice, false);
            nft()
                .apply(&replace(DataPath::Direct, &plan))
                .await
                .unwrap();
            is_answered(&client);
        }
        let plan = straight_to(&[9090], Choice::Random, true);
        nft()
            .apply(&replace(DataPath::Direct, &plan))
            .await
            .unwrap();
        for (to, own) in [("192.0.2.11:90", CLIENT), ("[2001:db8:1::11]:90", CLIENT6)] {
            assert_eq!(client.run(move || ask(to)), Ok(own.into()), "{to}");
        }
    });
}

#[test]
#[ignore = "needs a kernel with SCTP: hack/test vm kernel"]
fn sctp_without_pods_is_refused_and_associations_stay_with_theirs() {
    in_new_namespace(async || {
        let (client, pod) = between_client_and_pod();
        serve(&pod);
        let some = straight_to(&[9090], Choice::Random, false);
        nft()
            .apply(&replace(DataPath::Direct, &some))
            .await
            .unwrap();
        let mut association = client.run(|| {
            let to: SocketAddr = "192.0.2.11:90".parse().unwrap();
            let socket = socket(to);
            socket.connect_timeout(&to.into(), PATIENCE).unwrap();
            TcpStream::from(socket)
        });
        assert_eq!(line(&mut association), MASQUERADED);
        let none = straight_to(&[], Choice::Random, false);
        change(&some, &none).await;
        for to in ["192.0.2.11:90", "[2001:db8:1::11]:90"] {
            let refused = Err(ErrorKind::ConnectionRefused);
            assert_eq!(client.run(move || ask(to)), refused, "{to} from outside");
            assert_eq!(ask(to), refused, "{to} from the node");
        }
        writeln!(association, "still there").unwrap();
        assert_eq!(line(&mut association), "still there");
    });
}

#[test]
#[ignore = "needs a kernel with SCTP: hack/test vm kernel"]
fn sctp_listeners_of_the_host_are_found() {
    in_new_namespace(async || {
        command("ip link set lo up");
        let _open = listener("0.0.0.0:2905");
        let found = listeners::scan().unwrap();
        let found: Vec<String> = found
            .iter()
            .filter(|listener| listener.protocol == Protocol::Sctp)
            .map(|listener| listener.bound.to_string())
            .collect();
        assert_eq!(found, ["0.0.0.0:2905"]);
    });
}
