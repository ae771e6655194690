//! Changes of our table by other programs: each is put back once, and nothing else is
//! taken for one.

use std::{
    fmt::Write,
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use highwire_agent::{
    decide::Plan,
    metrics::Metrics,
    table::{
        DataPath, KernelTable, Nft,
        notifications::{self, TableEvent},
    },
};
use highwire_api::{Family, Protocol};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{command, elements, in_new_namespace, nft, nft_at, patience, plans, replace, services};

const PATH: DataPath = DataPath::FirstPacket;

/// A table that follows the notifications, as the agent's does.
struct Follower {
    path: DataPath,
    table: KernelTable,
    metrics: Metrics,
    events: mpsc::Receiver<TableEvent>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Follower {
    async fn new() -> Self {
        Self::with(nft()).await
    }

    async fn with(nft: Nft) -> Self {
        let (sender, events) = mpsc::channel(1024);
        let task = tokio::spawn(notifications::follow(sender, |event| event));
        tokio::task::yield_now().await; // it subscribes
        let metrics = Metrics::new().unwrap();
        Self {
            path: PATH,
            table: KernelTable::new(nft, metrics.clone()),
            metrics,
            events,
            task,
        }
    }

    fn repairs(&self) -> u64 {
        self.metrics.drift_repairs.get()
    }

    fn checks(&self, result: &str) -> u64 {
        self.metrics.drift_checks.with_label_values(&[result]).get()
    }

    async fn hold(&mut self, wanted: &Plan) {
        self.table.bring_to(self.path, wanted).await.unwrap();
    }

    /// Takes in the next notification and does what it asks for.
    async fn follow_one(&mut self, wanted: &Plan) {
        let event = timeout(patience(), self.events.recv())
            .await
            .expect("a notification");
        self.table.notice(event.unwrap(), Instant::now());
        if let Some(due) = self.table.due() {
            tokio::time::sleep_until(due.into()).await;
            self.hold(wanted).await;
        }
    }
}

#[test]
fn each_change_by_another_program_is_put_back_once() {
    for tamper in [
        "delete element inet highwire ports4 { tcp . 80 }",
        "add element inet highwire ports4 { tcp . 9999 }",
        "add element inet highwire node4 { 198.51.100.99 }",
        "delete element inet highwire clusterip4 { tcp . 80 }\n\
         add element inet highwire clusterip4 { tcp . 80 : 10.96.0.99 }",
        "flush set inet highwire allowed4",
        "flush chain inet highwire guard",
        "insert rule inet highwire inbound accept",
        "add chain inet highwire more",
        "add set inet highwire more { typeof ip daddr; }",
        "flush table inet highwire",
        "delete table inet highwire",
        "flush ruleset",
    ] {
        is_put_back_once(PATH, services(), tamper);
    }
}

#[test]
fn each_change_of_targets_by_another_program_is_put_back_once() {
    for tamper in [
        "delete element inet highwire target4 { tcp . 80 . 63 }",
        "delete element inet highwire target4 { tcp . 80 . 0 }\n\
         add element inet highwire target4 { tcp . 80 . 0 : 192.0.2.99 . 30080 }",
        "flush map inet highwire target6",
        "delete element inet highwire sticky4 { udp . 53 }",
        "flush chain inet highwire to_service",
    ] {
        let (_, path, plan) = plans::golden()[3].clone();
        is_put_back_once(path, plan, tamper);
    }
}

#[test]
fn so_is_each_change_of_a_table_that_an_agent_before_has_left() {
    for tamper in [
        "insert rule inet highwire inbound accept",
        "add chain inet highwire more",
        "delete element inet highwire ports4 { tcp . 80 }",
    ] {
        in_new_namespace(async move || {
            let before = replace(PATH, &Plan::default());
            nft().apply(&before).await.unwrap();
            put_back_once(PATH, services(), tamper).await;
        });
    }
}

fn is_put_back_once(path: DataPath, plan: Plan, tamper: &'static str) {
    in_new_namespace(async move || put_back_once(path, plan, tamper).await);
}

async fn put_back_once(path: DataPath, plan: Plan, tamper: &str) {
    let mut follower = Follower::new().await;
    follower.path = path;
    follower.hold(&plan).await;
    follower.follow_one(&plan).await;
    let built = command("nft --stateless list table inet highwire");
    assert_eq!((follower.repairs(), follower.table.due()), (0, None));
    run(tamper);
    // What they did, and our replacement.
    follower.follow_one(&plan).await;
    follower.follow_one(&plan).await;
    assert_eq!(follower.repairs(), 1, "{tamper}");
    assert_eq!(follower.table.due(), None, "{tamper}");
    let now = command("nft --stateless list table inet highwire");
    assert_eq!(now, built, "{tamper}");
}

/// Has nft carry out a script in one transaction.
pub(super) fn run(script: &str) {
    let mut nft = Command::new("nft")
        .args(["--file", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(nft.wait().unwrap().success(), "{script}");
}

/// An nft that flushes one of our chains right after it has carried out its first
/// transaction, as if another program had, and from then on does so no more.
fn nft_with_a_flush_behind_it(folder: &Path) -> Nft {
    let (program, flushed) = (folder.join("nft"), folder.join("flushed"));
    let script = format!(
        "#!/bin/sh\nnft \"$@\" || exit\n\
         [ \"$1\" = --file ] && mkdir {} 2>/dev/null && nft flush chain inet highwire guard\n\
         exit 0\n",
        flushed.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    nft_at(program)
}

#[test]
fn what_others_change_right_behind_our_own_transaction_is_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    in_new_namespace(async move || {
        let wanted = services();
        nft().apply(&replace(PATH, &services())).await.unwrap();
        let right = command("nft --stateless list table inet highwire");
        let mut follower = Follower::with(nft_with_a_flush_behind_it(&path)).await;
        follower.hold(&wanted).await;
        for _whose in ["ours", "theirs", "ours again"] {
            follower.follow_one(&wanted).await;
        }
        assert_eq!(follower.table.due(), None);
        let now = command("nft --stateless list table inet highwire");
        assert_eq!(now, right);
        // From here on it knows what the table has to be.
        std::fs::remove_dir(path.join("flushed")).unwrap();
        run("flush table inet highwire");
        for _whose in ["theirs", "ours", "theirs", "ours again"] {
            follower.follow_one(&wanted).await;
        }
        assert_eq!((follower.repairs(), follower.table.due()), (2, None));
        let now = command("nft --stateless list table inet highwire");
        assert_eq!(now, right);
    });
}

#[test]
fn a_rule_that_is_deleted_is_put_back_once() {
    in_new_namespace(async || {
        let mut follower = Follower::new().await;
        let wanted = services();
        follower.hold(&wanted).await;
        follower.follow_one(&wanted).await;
        let listing = command("nft --handle list chain inet highwire guard");
        let drop = listing.lines().find(|line| line.contains("drop")).unwrap();
        let (_, handle) = drop.rsplit_once("handle ").unwrap();
        run(&format!("delete rule inet highwire guard handle {handle}"));
        follower.follow_one(&wanted).await;
        follower.follow_one(&wanted).await;
        assert_eq!((follower.repairs(), follower.table.due()), (1, None));
        let after = command("nft list chain inet highwire guard");
        assert!(after.contains("drop"), "{after}");
    });
}

#[test]
fn what_changes_nothing_is_not_put_back() {
    in_new_namespace(async || {
        let mut follower = Follower::new().await;
        let wanted = services();
        follower.hold(&wanted).await;
        follower.follow_one(&wanted).await;
        // There and back again.
        run("delete element inet highwire ports4 { tcp . 80 }
             add element inet highwire ports4 { tcp . 80 }");
        follower.follow_one(&wanted).await;
        assert_eq!((follower.repairs(), follower.checks("same")), (0, 1));
        // The kernel has sent more notifications than we read.
        follower.table.notice(TableEvent::Missed, Instant::now());
        tokio::time::sleep_until(follower.table.due().unwrap().into()).await;
        follower.hold(&wanted).await;
        assert_eq!((follower.repairs(), follower.checks("same")), (0, 2));
        assert_eq!(follower.table.due(), None);
    });
}

#[test]
fn a_table_that_is_gone_is_replaced_at_once_by_the_next_change() {
    in_new_namespace(async || {
        let mut follower = Follower::new().await;
        follower.hold(&services()).await;
        run("flush ruleset");
        // Before the notification is read.
        let wanted = Plan {
            forwards: [plans::forward(Family::V4, Protocol::Tcp, 81, "10.96.0.81")].into(),
            ..services()
        };
        follower.hold(&wanted).await;
        assert_eq!(nft().elements().await.unwrap(), Some(elements(&wanted)));
        for _told in ["ours", "theirs", "ours again"] {
            follower.follow_one(&wanted).await;
        }
        assert_eq!((follower.repairs(), follower.table.due()), (1, None));
    });
}

const PORTS: i32 = 10_000;

/// Many ports, none of which is the same in two rounds.
fn many(round: i32) -> Plan {
    let first = 1 + round * PORTS;
    let forwards = (first..first + PORTS)
        .map(|port| plans::forward(Family::V4, Protocol::Tcp, port, "10.96.0.10"));
    Plan {
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        forwards: forwards.collect(),
    }
}

/// A table as kube-proxy writes for so many Services, in its size.
fn foreign_table(services: u32) -> String {
    let mut text = String::from("table ip foreign\ndelete table ip foreign\ntable ip foreign {\n");
    let mut map = String::new();
    for service in 0..services {
        let address = format!("10.97.{}.{}", service / 256, service % 256);
        for endpoint in 0..2 {
            writeln!(
                text,
                " chain endpoint-{service}-{endpoint} {{\n  ip saddr 10.244.0.{endpoint} \
                 meta mark set 0x4000\n  meta l4proto tcp dnat to 10.244.0.{endpoint}:8080\n }}"
            )
            .unwrap();
        }
        writeln!(
            text,
            " chain service-{service} {{\n  ip daddr {address} tcp dport 80 ip saddr != \
             10.244.0.0/16 meta mark set 0x4000\n  numgen random mod 2 vmap {{ 0 : goto \
             endpoint-{service}-0, 1 : goto endpoint-{service}-1 }}\n }}"
        )
        .unwrap();
        writeln!(map, "  {address} . tcp . 80 : goto service-{service},").unwrap();
    }
    writeln!(
        text,
        " map services {{\n  typeof ip daddr . meta l4proto . th dport : verdict\n  \
         elements = {{\n{map} }}\n }}\n}}"
    )
    .unwrap();
    text
}

#[test]
fn ten_thousand_ports_beside_a_big_foreign_table_raise_no_false_alarm() {
    in_new_namespace(async || {
        let mut follower = Follower::new().await;
        let foreign = foreign_table(3000);
        let mut missed = 0;
        for round in 0..5 {
            let wanted = many(round);
            follower.hold(&wanted).await;
            run(&foreign);
            let mut notified = 0;
            while notified == 0 || follower.table.due().is_some() {
                let event = timeout(patience(), follower.events.recv()).await;
                let event = event.expect("a notification").unwrap();
                missed += u32::from(event == TableEvent::Missed);
                notified += 1;
                follower.table.notice(event, Instant::now());
                follower.hold(&wanted).await;
            }
            assert_eq!(nft().elements().await.unwrap(), Some(elements(&wanted)));
        }
        println!("{missed} times the kernel had more to tell than was read");
        assert_eq!((follower.repairs(), follower.checks("changed")), (0, 0));
        assert!(!follower.task.is_finished());
    });
}
