//! What nft and the kernel make of our transactions. Every test runs in a fresh
//! network namespace of its own, so the host's ruleset is never touched.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

#[path = "kernel/conntrack.rs"]
mod conntrack;
mod plans;

#[path = "kernel/affinity.rs"]
mod affinity;

#[path = "kernel/bad_nft.rs"]
mod bad_nft;
#[path = "kernel/connections.rs"]
mod connections;
#[path = "kernel/direct.rs"]
mod direct;
#[path = "kernel/dnat.rs"]
mod dnat;
#[path = "kernel/drift.rs"]
mod drift;
#[path = "kernel/host.rs"]
mod host;
#[path = "kernel/ipvs.rs"]
mod ipvs;
#[path = "kernel/left_out.rs"]
mod left_out;
#[path = "kernel/nft_versions.rs"]
mod nft_versions;
#[path = "kernel/pods.rs"]
mod pods;
#[path = "kernel/sctp.rs"]
mod sctp;
#[path = "kernel/service_proxy.rs"]
mod service_proxy;
#[path = "kernel/start.rs"]
mod start;

use std::{net::IpAddr, path::PathBuf, process::Command, thread, time::Duration};

use highwire_agent::{
    decide::{Choice, Plan},
    facts::{
        addresses::{self, HostAddress},
        listeners,
    },
    table::{
        DataPath, Element, Elements, Nft, Set, Transaction, counters,
        nft::NftError,
        notifications::{self, TableEvent},
        sets::Key,
    },
};
use highwire_api::{Family, Protocol};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::mpsc;

/// Runs a test on a thread that is alone in a new network namespace; programs
/// it starts are in there too.
fn in_new_namespace<T: Send + 'static>(test: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("the kernel tests need root: run them by hack/test, or as root");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test())
    };
    thread::spawn(body)
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program}: {error}; hack/install-deps installs what the tests need")
        });
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// For what happens in the end. Longer by `HIGHWIRE_SLOWNESS`, as the cluster tests' limits.
fn patience() -> Duration {
    let factor = std::env::var("HIGHWIRE_SLOWNESS").map_or(1, |factor| factor.parse().unwrap());
    Duration::from_secs(20) * factor
}

fn nft() -> Nft {
    nft_at("nft".into())
}

fn nft_at(program: PathBuf) -> Nft {
    Nft::new(program).within(patience())
}

fn replace(path: DataPath, plan: &Plan) -> Transaction {
    Transaction::Replace(path, Elements::of(plan, path))
}

fn elements(plan: &Plan) -> Elements {
    Elements::of(plan, DataPath::FirstPacket)
}

fn services() -> Plan {
    plans::golden()[1].2.clone()
}

#[test]
fn the_probe_accepts_this_kernel_and_changes_nothing() {
    in_new_namespace(async || {
        let version = nft().probe(&DataPath::ALL).await.unwrap();
        assert!(version.starts_with("1."), "{version}");
        assert_eq!(command("nft list tables"), "");
    });
}

#[test]
fn what_the_kernel_gets_is_what_the_golden_text_says() {
    for (name, path, plan) in plans::golden() {
        let text = plans::golden_file(name).display().to_string();
        let from_file = in_new_namespace(async move || {
            command(&format!("nft --check --file {text}"));
            command(&format!("nft --file {text}"));
            command("nft list table inet highwire")
        });
        let applied = in_new_namespace(async move || {
            nft().apply(&replace(path, &plan)).await.unwrap();
            command("nft list table inet highwire")
        });
        assert_eq!(applied, from_file, "{name}");
    }
}

#[test]
fn what_was_applied_is_read_back() {
    in_new_namespace(async || {
        assert_eq!(nft().elements().await.unwrap(), None, "no table yet");
        for (_, path, plan) in plans::golden() {
            nft().apply(&replace(path, &plan)).await.unwrap();
            assert_eq!(
                nft().elements().await.unwrap(),
                Some(Elements::of(&plan, path))
            );
        }
    });
}

#[test]
fn changes_lead_where_a_replacement_would() {
    let mut steps = vec![services(); 5];
    steps[1].forwards.pop_last();
    steps[2].addresses.pop_first();
    let (slot, target) = plans::forward(Family::V4, Protocol::Tcp, 80, "10.96.0.99");
    steps[2].forwards.insert(slot, target);
    steps[3] = Plan::default();
    change_step_by_step(DataPath::FirstPacket, services(), steps);
}

#[test]
fn changes_of_targets_lead_where_a_replacement_would() {
    let (_, path, first) = plans::golden()[3].clone();
    let mut steps = vec![first.clone(); 6];
    let (v4, v6) = (Family::V4, Family::V6);
    let udp = |family, targets: &[&str], choice| {
        plans::to_backends(family, Protocol::Udp, 53, targets, choice)
    };
    steps[1].forwards.pop_last();
    // One target less, and not sticky any more.
    steps[2]
        .forwards
        .extend([udp(v4, &["192.0.2.22:30053"], Choice::Random)]);
    // All but one are others, with other ports.
    let others = ["192.0.2.22:30053", "192.0.2.31:31053", "192.0.2.32:32053"];
    steps[3]
        .forwards
        .extend([udp(v4, &others, plans::by_client(60))]);
    let others = ["[2001:db8:1::31]:53", "[2001:db8:1::32]:65535"];
    steps[3]
        .forwards
        .extend([udp(v6, &others, plans::by_client(60))]);
    steps[4] = Plan::default();
    change_step_by_step(path, first, steps);
}

/// Changes a table of the `first` plan to each of these, and compares each time what the
/// kernel has with what nft would have built.
fn change_step_by_step(path: DataPath, first: Plan, steps: Vec<Plan>) {
    let listed = |table: Transaction| {
        in_new_namespace(async move || {
            nft().apply(&table).await.unwrap();
            command("nft list table inet highwire")
        })
    };
    let built: Vec<String> = steps
        .iter()
        .map(|step| listed(replace(path, step)))
        .collect();
    in_new_namespace(async move || {
        nft().apply(&replace(path, &first)).await.unwrap();
        let mut before = Elements::of(&first, path);
        for (step, built) in steps.iter().zip(built) {
            let after = Elements::of(step, path);
            if let Some(change) = Transaction::between(&before, &after) {
                nft().apply(&change).await.unwrap();
            }
            assert_eq!(nft().elements().await.unwrap().as_ref(), Some(&after));
            assert_eq!(command("nft list table inet highwire"), built);
            before = after;
        }
    });
}

#[test]
fn a_change_of_thousands_of_elements_is_one_transaction() {
    in_new_namespace(async || {
        let mut many = services();
        for port in 10_000..13_000 {
            let (slot, forward) = plans::forward(Family::V4, Protocol::Tcp, port, "10.96.0.99");
            many.forwards.insert(slot, forward);
        }
        let (few, many) = (elements(&services()), elements(&many));
        let table = Transaction::Replace(DataPath::FirstPacket, few.clone());
        nft().apply(&table).await.unwrap();
        for (before, after) in [(&few, &many), (&many, &few)] {
            let change = Transaction::between(before, after).unwrap();
            assert_eq!(change.cost(), 6_000);
            nft().apply(&change).await.unwrap();
            assert_eq!(nft().elements().await.unwrap().as_ref(), Some(after));
        }
    });
}

#[test]
fn a_transaction_that_fails_changes_nothing() {
    in_new_namespace(async || {
        nft()
            .apply(&replace(DataPath::FirstPacket, &services()))
            .await
            .unwrap();
        let node = |address: &str| Element {
            set: Set::named("node4").unwrap(),
            key: Key::Address(address.parse().unwrap()),
        };
        let (missing, there) = (node("192.0.2.99"), node("192.0.2.11"));
        let change = Transaction::Change {
            delete: vec![there, missing],
            add: vec![],
        };
        let error = nft().apply(&change).await.unwrap_err();
        assert!(matches!(error, NftError::NotChanged { .. }), "{error}");
        assert_eq!(nft().elements().await.unwrap(), Some(elements(&services())));
    });
}

#[test]
fn other_tables_are_left_alone_and_nothing_of_ours_stays() {
    in_new_namespace(async || {
        command("nft add table ip other");
        command("nft add chain ip other input { type filter hook input priority 0 ; }");
        command("nft add rule ip other input tcp dport 22 accept");
        let other = command("nft list table ip other");
        nft()
            .apply(&replace(DataPath::FirstPacket, &services()))
            .await
            .unwrap();
        assert_eq!(command("nft list table ip other"), other);
        nft().apply(&Transaction::Remove).await.unwrap();
        assert_eq!(command("nft list ruleset"), other);
        nft()
            .apply(&Transaction::Remove)
            .await
            .expect("removing nothing is no error");
    });
}

#[test]
fn the_counters_can_be_read() {
    in_new_namespace(async || {
        nft()
            .apply(&replace(DataPath::FirstPacket, &services()))
            .await
            .unwrap();
        let counters = counters::read().unwrap();
        let names: Vec<_> = counters.keys().map(String::as_str).collect();
        assert_eq!(names, ["denied", "giveback", "listener", "rewrite"]);
        assert!(counters.values().all(|counter| counter.packets == 0));
    });
}

#[test]
fn without_cap_net_admin_the_remedy_is_named() {
    let output = in_new_namespace(async || {
        Command::new("setpriv")
            .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
            .arg(env!("CARGO_BIN_EXE_highwire-agent"))
            .args(["--node-name", "n1"])
            .output()
            .expect("setpriv is part of util-linux")
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("not permitted") && error.contains("CAP_NET_ADMIN"),
        "{error}"
    );
}

#[test]
fn without_a_way_to_the_api_server_the_remedy_is_named() {
    let output = in_new_namespace(async || {
        command("ip link set lo up");
        Command::new(env!("CARGO_BIN_EXE_highwire-agent"))
            .args(["--node-name", "n1"])
            .env_remove("KUBECONFIG")
            .env("HOME", "/nowhere")
            .output()
            .unwrap()
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("KUBECONFIG"), "{error}");
}

#[test]
fn who_has_the_agents_port_is_named() {
    let output = in_new_namespace(async || {
        command("ip link set lo up");
        let _other = std::net::TcpListener::bind("0.0.0.0:9807").unwrap();
        Command::new(env!("CARGO_BIN_EXE_highwire-agent"))
            .args(["--node-name", "n1"])
            .env_remove("POD_IP")
            .output()
            .unwrap()
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let own = format!("process {}", std::process::id());
    assert!(
        error.contains("socket 0.0.0.0:9807 uid 0") && error.contains(&own),
        "{error}"
    );
}

#[test]
fn cleanup_by_hand_removes_the_table() {
    in_new_namespace(async || {
        nft()
            .apply(&replace(DataPath::FirstPacket, &services()))
            .await
            .unwrap();
        let printed = command(concat!(env!("CARGO_BIN_EXE_highwire-agent"), " cleanup"));
        assert_eq!(printed, "table inet highwire is gone\n");
        assert_eq!(command("nft list tables"), "");
    });
}

#[test]
fn addresses_are_followed() {
    in_new_namespace(async || {
        command("ip link add eth0 type veth peer name eth1");
        command("ip link set eth0 up");
        command("ip link set eth1 up");
        let (sender, mut found) = mpsc::channel(1);
        let follower = tokio::spawn(addresses::follow(sender, |found| found));
        let first = found.recv().await.unwrap();
        assert!(first.iter().all(|address| !address.global), "{first:?}");
        let address: IpAddr = "192.0.2.11".parse().unwrap();
        command("ip address add 192.0.2.11/24 dev eth0");
        let eth0 = command("ip -o link show eth0");
        let eth0 = eth0.split(':').next().unwrap().parse().unwrap();
        let with = |on_default_route| HostAddress {
            address,
            interface: "eth0".into(),
            devices: [eth0].into(),
            global: true,
            on_default_route,
        };
        until(&mut found, |addresses| addresses.contains(&with(false))).await;
        command("ip route add default via 192.0.2.1 dev eth0");
        until(&mut found, |addresses| addresses.contains(&with(true))).await;
        command("ip address del 192.0.2.11/24 dev eth0");
        until(&mut found, |addresses| {
            addresses.iter().all(|a| a.address != address)
        })
        .await;
        assert!(!follower.is_finished());
    });
}

#[test]
fn listeners_are_found_with_what_they_are_bound_to() {
    in_new_namespace(async || {
        command("ip link set lo up");
        let tcp4 = std::net::TcpListener::bind("0.0.0.0:80").unwrap();
        let tcp6 = std::net::TcpListener::bind("[::]:81").unwrap();
        let own = std::net::TcpListener::bind("127.0.0.1:82").unwrap();
        let udp = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:54").unwrap();
        client.connect("127.0.0.1:53").unwrap();
        let _connection = std::net::TcpStream::connect("127.0.0.1:80").unwrap();
        let texts = || -> Vec<String> {
            let found = listeners::scan().unwrap();
            found
                .iter()
                .map(|l| format!("{} {} {}", l.protocol, l.bound, l.v6_only))
                .collect()
        };
        assert_eq!(
            texts(),
            [
                "TCP 0.0.0.0:80 false",
                "TCP 127.0.0.1:82 false",
                "TCP [::]:81 false",
                "UDP 0.0.0.0:53 false",
            ],
            "a connected socket is a client"
        );
        drop((tcp4, tcp6, own, udp));
        assert!(texts().is_empty(), "{:?}", texts());
    });
}

#[test]
fn every_transaction_on_the_table_is_told_and_no_other() {
    in_new_namespace(async || {
        let (sender, mut events) = mpsc::channel(16);
        let follower = tokio::spawn(notifications::follow(sender, |event| event));
        tokio::task::yield_now().await; // the follower subscribes
        command("nft add table ip other");
        nft()
            .apply(&replace(DataPath::FirstPacket, &services()))
            .await
            .unwrap();
        command("nft flush ruleset");
        nft()
            .apply(&replace(DataPath::FirstPacket, &services()))
            .await
            .unwrap();
        let change = Transaction::between(&elements(&services()), &Elements::default());
        nft().apply(&change.unwrap()).await.unwrap();
        for step in [
            "replaced",
            "flushed by somebody",
            "replaced again",
            "changed",
        ] {
            let event = tokio::time::timeout(patience(), events.recv()).await;
            assert_eq!(event.expect(step), Some(TableEvent::Changed));
        }
        command("nft add table ip other");
        tokio::task::yield_now().await;
        assert!(
            events.try_recv().is_err(),
            "a foreign table is none of our business"
        );
        assert!(!follower.is_finished());
    });
}

/// Waits for addresses as wanted; other news may come before, of IPv6 addresses say.
async fn until(
    found: &mut mpsc::Receiver<Vec<HostAddress>>,
    wanted: impl Fn(&[HostAddress]) -> bool,
) -> Vec<HostAddress> {
    let search = async {
        loop {
            let addresses = found.recv().await.expect("the follower goes on");
            if wanted(&addresses) {
                return addresses;
            }
        }
    };
    tokio::time::timeout(patience(), search)
        .await
        .expect("a notification of the change")
}
