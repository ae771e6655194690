//! An agent that starts, on a node where one before it has left its table.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use highwire_agent::{
    decide::{Choice, Plan},
    metrics::Metrics,
    table::{DataPath, KernelTable, Nft},
};
use highwire_api::{Family, Protocol};

use super::{
    command,
    direct::{self, ask, clients},
    dnat::{self, ask as ask_tcp},
    drift, in_new_namespace, nft, plans, replace,
};

const STARTS: u32 = 100;

/// How often the agents that had this metric have built a whole table, by kind.
pub(super) fn built(metrics: &Metrics) -> [u64; 2] {
    ["refill", "replace"].map(|kind| metrics.applies.with_label_values(&[kind, "ok"]).get())
}

/// Has an agent start that wants this.
pub(super) async fn start(nft: Nft, metrics: &Metrics, path: DataPath, plan: &Plan) {
    let mut table = KernelTable::new(nft, metrics.clone());
    table.bring_to(path, plan).await.unwrap();
}

/// The table as anybody's nft lists it, and nothing beside it.
fn listed() -> String {
    command("nft --stateless list ruleset")
}

/// What is listed when an agent builds that table on a node without one.
fn listed_of_new(path: DataPath, plan: &Plan) -> String {
    let plan = plan.clone();
    in_new_namespace(async move || {
        nft().apply(&replace(path, &plan)).await.unwrap();
        listed()
    })
}

#[test]
fn it_fills_the_table_of_the_agent_before() {
    for (name, path, plan) in plans::golden() {
        let wanted = listed_of_new(path, &plan);
        let mut fewer = plan.clone();
        fewer.forwards.pop_first();
        fewer.addresses.pop_last();
        in_new_namespace(async move || {
            for before in [&plan, &fewer, &Plan::default()] {
                nft().apply(&replace(path, before)).await.unwrap();
                let metrics = Metrics::new().unwrap();
                start(nft(), &metrics, path, &plan).await;
                assert_eq!(listed(), wanted, "{name}");
                assert_eq!(built(&metrics), [1, 0], "{name}");
                start(nft(), &metrics, path, before).await;
                start(nft(), &metrics, path, &plan).await;
                assert_eq!(listed(), wanted, "{name}");
                assert_eq!(built(&metrics), [3, 0], "{name}");
            }
        });
    }
}

#[test]
fn it_replaces_a_table_of_another_shape() {
    let (_, path, plan) = plans::golden()[2].clone();
    let wanted = listed_of_new(path, &plan);
    for tamper in [
        "add set inet highwire more { typeof ip daddr; }",
        "add counter inet highwire more",
        "add chain inet highwire more { type filter hook input priority 0; policy drop; }",
        "add table inet highwire { flags dormant; }",
        "flush chain inet highwire postrouting\n\
         delete chain inet highwire postrouting",
        // The kernel refuses what has the same name.
        "flush chain inet highwire postrouting\n\
         delete chain inet highwire postrouting\n\
         add chain inet highwire postrouting { type nat hook postrouting priority 7; }",
        "flush chain inet highwire prerouting\n\
         delete chain inet highwire prerouting\n\
         add chain inet highwire prerouting",
        "flush table inet highwire\n\
         delete map inet highwire nodeport4\n\
         add map inet highwire nodeport4 { typeof ip saddr : ip saddr; }",
        "delete table inet highwire\n\
         add table inet highwire",
        "delete table inet highwire",
    ] {
        let (plan, wanted) = (plan.clone(), wanted.clone());
        in_new_namespace(async move || {
            nft().apply(&replace(path, &plan)).await.unwrap();
            drift::run(tamper);
            let metrics = Metrics::new().unwrap();
            start(nft(), &metrics, path, &plan).await;
            assert_eq!(listed(), wanted, "{tamper}");
            assert_eq!(built(&metrics), [0, 1], "{tamper}");
        });
    }
    in_new_namespace(async move || {
        let metrics = Metrics::new().unwrap();
        nft()
            .apply(&replace(DataPath::Direct, &Plan::default()))
            .await
            .unwrap();
        start(nft(), &metrics, path, &plan).await;
        assert_eq!(listed(), wanted);
        assert_eq!(built(&metrics), [0, 1], "another path");
    });
}

#[test]
fn what_another_program_has_done_to_rules_and_elements_is_undone() {
    let (_, path, plan) = plans::golden()[3].clone();
    let wanted = listed_of_new(path, &plan);
    for tamper in [
        "insert rule inet highwire inbound accept",
        "flush table inet highwire",
        "add element inet highwire ports4 { tcp . 9999 }",
        "add element inet highwire allowed4 { tcp . 443 . 203.0.113.0/24 }",
        "flush set inet highwire node4",
        "flush map inet highwire target4",
        "add chain inet highwire prerouting { type filter hook prerouting priority -115; policy drop; }",
    ] {
        let (plan, wanted) = (plan.clone(), wanted.clone());
        in_new_namespace(async move || {
            nft().apply(&replace(path, &plan)).await.unwrap();
            drift::run(tamper);
            assert_ne!(listed(), wanted, "{tamper}");
            let metrics = Metrics::new().unwrap();
            start(nft(), &metrics, path, &plan).await;
            assert_eq!(listed(), wanted, "{tamper}");
            assert_eq!(built(&metrics), [1, 0], "{tamper}");
        });
    }
}

/// Where a Service is, and where a listener of the host is, which has the port of another.
const SERVED: i32 = 53;
const LISTENER: i32 = 54;

/// A plan that leads both ports to a Pod.
fn two_ports(path: DataPath) -> Plan {
    let to = |port: i32| match path {
        DataPath::FirstPacket | DataPath::Dnat => {
            plans::forward(Family::V4, Protocol::Udp, port, "10.96.0.10")
        }
        DataPath::Direct => {
            let targets = ["10.244.1.7", "10.96.0.10"].map(|ip| format!("{ip}:{port}"));
            let targets = targets.each_ref().map(String::as_str);
            plans::to_backends(Family::V4, Protocol::Udp, port, &targets, Choice::Random)
        }
    };
    Plan {
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        forwards: [to(SERVED), to(LISTENER)].into(),
    }
}

/// What is to be counted on the node: packets of the Service that come to the node itself, and
/// packets of the listener that go elsewhere.
const ASTRAY: &str = "\
table inet astray {
  chain input { type filter hook input priority 0; udp dport 53 counter; }
  chain forward { type filter hook forward priority 0; udp dport 54 counter; }
}
table ip kube-proxy {
  chain services {
    # As kube-proxy does; else the first packet is given back to the node.
    type nat hook prerouting priority -100;
    ip daddr 10.96.0.10 udp dport { 53, 54 } dnat to 10.244.1.7
  }
}
";

fn astray() -> Vec<u64> {
    let listed = command("nft list table inet astray");
    let after = listed.split("packets ").skip(1);
    after
        .map(|text| text.split(' ').next().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn no_packet_misses_its_rewriting_and_none_of_a_listener_is_rewritten() {
    for path in DataPath::ALL {
        in_new_namespace(async move || {
            let client = dnat::node().await;
            // Each packet is one of a new flow; they are not to fill the kernel's table.
            command("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1");
            let _listener = UdpSocket::bind(format!("0.0.0.0:{LISTENER}")).unwrap();
            let plan = two_ports(path);
            nft().apply(&replace(path, &plan)).await.unwrap();
            drift::run(ASTRAY);
            let done = Arc::new(AtomicBool::new(false));
            let stop = Arc::clone(&done);
            let flood = client.run(|| {
                thread::spawn(move || {
                    let mut sent = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        for port in [SERVED, LISTENER] {
                            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                            let to = format!("192.0.2.11:{port}");
                            sent += u64::from(socket.send_to(b"?", to).is_ok());
                        }
                    }
                    sent
                })
            });
            let metrics = Metrics::new().unwrap();
            for _ in 0..STARTS {
                start(nft(), &metrics, path, &plan).await;
            }
            done.store(true, Ordering::Relaxed);
            let sent = flood.join().unwrap();
            assert!(sent > 10_000, "only {sent} packets were sent");
            assert_eq!(astray(), [0, 0], "of {sent} packets, {path:?}");
            assert_eq!(built(&metrics), [u64::from(STARTS), 0]);
        });
    }
}

#[test]
fn connections_are_counted_on() {
    in_new_namespace(async || {
        let client = dnat::node().await;
        let open = || client.run(|| ask_tcp("192.0.2.11:80")).unwrap();
        open();
        let metrics = Metrics::new().unwrap();
        start(nft(), &metrics, DataPath::Dnat, &dnat::plan()).await;
        open();
        start(nft(), &metrics, DataPath::Dnat, &dnat::plan()).await;
        assert_eq!(built(&metrics), [2, 0]);
        assert_eq!(dnat::counted("rewrite").await, 2, "of the table");
        metrics.read_connections().await;
        assert_eq!(
            metrics.connections.get("rewrite"),
            1,
            "since the first start"
        );
    });
}

#[test]
fn clients_keep_their_targets() {
    in_new_namespace(async || {
        let (client, pods) = direct::a_box().await;
        let ports = 31_000..31_040_u16;
        let all = ports.clone();
        pods.run(move || {
            for port in all {
                direct::answer(([10, 244, 1, 7], port).into());
            }
        });
        let plan = |ports: std::ops::Range<u16>| {
            let targets: Vec<String> = ports.map(|port| format!("10.244.1.7:{port}")).collect();
            let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
            let sticky = plans::by_client(60);
            Plan {
                addresses: ["192.0.2.11".parse().unwrap()].into(),
                forwards: [plans::to_backends(
                    Family::V4,
                    Protocol::Tcp,
                    90,
                    &targets,
                    sticky,
                )]
                .into(),
            }
        };
        let asked = || {
            client.run(|| {
                let all = clients(Family::V4).into_iter().take(16);
                let asked = all.map(|from| ask(Family::V4, Protocol::Tcp, 90, Some(from)));
                asked.map(|it| it.unwrap().0.port()).collect::<Vec<u16>>()
            })
        };
        let few = plan(ports.start..ports.start + 2);
        nft().apply(&replace(direct::PATH, &few)).await.unwrap();
        let first = asked();
        let metrics = Metrics::new().unwrap();
        // By their hashes most would get one of the others.
        start(nft(), &metrics, direct::PATH, &plan(ports.clone())).await;
        assert_eq!(asked(), first);
        assert_eq!(built(&metrics), [1, 0]);
        // A target that is gone is not kept.
        start(
            nft(),
            &metrics,
            direct::PATH,
            &plan(ports.start + 2..ports.end),
        )
        .await;
        client.run(|| {
            for from in clients(Family::V4).into_iter().take(16) {
                // The first packet is dropped, and sent again.
                let again = ask(Family::V4, Protocol::Tcp, 90, Some(from)).unwrap();
                assert!(again.0.port() >= 31_002, "{again:?}");
            }
        });
    });
}
