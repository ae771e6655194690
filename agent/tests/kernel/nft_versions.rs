//! Several nft beside each other on one table, as an agent in a container, a
//! kube-proxy in another and the host's own nft are. `hack/nft-versions` fetches them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use highwire_agent::{
    decide::{Forward, Plan},
    metrics::Metrics,
    table::{DataPath, Elements, Nft, Transaction, counters},
};
use highwire_api::{Family, Protocol, arbitration::Slot};
use nix::sched::{CloneFlags, unshare};

use super::{command, in_new_namespace, nft_at, plans, replace, start};

/// Too old for the agent, but it may be the host's own (Debian 11).
const LISTS_ONLY: &str = "bullseye";
const RELEASES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// The nft of each of these releases.
fn programs(releases: &[&str]) -> Vec<PathBuf> {
    let folder = PathBuf::from(command("../hack/nft-versions").trim());
    releases
        .iter()
        .map(|release| folder.join(release).join("nft"))
        .collect()
}

#[test]
fn every_nft_lists_what_any_other_has_written() {
    let writers = programs(&RELEASES);
    for writer in writers {
        for (name, path, plan) in plans::golden() {
            let readers = match path {
                // Such an nft ends with a failed assertion where a key has a number.
                DataPath::Direct => programs(&RELEASES),
                _ => programs(&[&[LISTS_ONLY], &RELEASES[..]].concat()),
            };
            let writer = writer.clone();
            in_new_namespace(async move || {
                let nft = nft_at(writer.clone());
                nft.probe(&DataPath::ALL).await.unwrap();
                nft.apply(&replace(path, &plan)).await.unwrap();
                for reader in readers {
                    for what in [
                        "list tables",
                        "list ruleset",
                        "list table inet highwire",
                        "--json list table inet highwire",
                        "list sets",
                        "list maps",
                        "list chains",
                        "list counters",
                    ] {
                        let listed = Command::new(&reader)
                            .args(what.split(' '))
                            .output()
                            .unwrap();
                        assert!(
                            listed.status.success(),
                            "{name} by {}: {} {what}: {listed:?}",
                            writer.display(),
                            reader.display()
                        );
                    }
                }
            });
        }
    }
}

/// What one agent leaves, the next reads and changes, with whatever nft it has.
async fn one_writes_and_another_goes_on(writer: PathBuf, reader: PathBuf) {
    let (writer, reader) = (nft_at(writer), nft_at(reader));
    let (_, path, plan) = plans::golden()[1].clone();
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let more = protocols.map(|protocol| plans::forward(Family::V4, protocol, 81, "10.96.0.99"));
    write_and_go_on(&writer, &reader, path, plan, more).await;
    let (_, path, plan) = plans::golden()[3].clone();
    let targets = ["192.0.2.22:30081", "192.0.2.23:30081"];
    let more = protocols.map(|protocol| {
        plans::to_backends(Family::V4, protocol, 81, &targets, plans::by_client(60))
    });
    write_and_go_on(&writer, &reader, path, plan, more).await;
}

async fn write_and_go_on(
    writer: &Nft,
    reader: &Nft,
    path: DataPath,
    plan: Plan,
    more: [(Slot, Forward); 3],
) {
    writer.apply(&replace(path, &plan)).await.unwrap();
    let before = Elements::of(&plan, path);
    assert_eq!(reader.elements().await.unwrap().as_ref(), Some(&before));
    let mut plan = plan;
    plan.forwards.pop_first();
    plan.forwards.extend(more);
    plans::guard(&mut plan, Family::V4, Protocol::Tcp, 81, &["0.0.0.0/0"]);
    let after = Elements::of(&plan, path);
    let change = Transaction::between(&before, &after).unwrap();
    reader.apply(&change).await.unwrap();
    for nft in [writer, reader] {
        assert_eq!(nft.elements().await.unwrap().as_ref(), Some(&after));
        assert_eq!(counters::read().unwrap().len(), 4);
    }
}

#[test]
fn an_agent_goes_on_with_what_another_nft_has_written() {
    for writer in programs(&RELEASES) {
        for reader in programs(&RELEASES) {
            let writer = writer.clone();
            in_new_namespace(async move || one_writes_and_another_goes_on(writer, reader).await);
        }
    }
}

#[test]
fn an_agent_that_starts_fills_the_table_of_another_nft() {
    for writer in programs(&RELEASES) {
        for reader in programs(&RELEASES) {
            for (_, path, plan) in plans::golden() {
                let (writer, reader) = (nft_at(writer.clone()), nft_at(reader.clone()));
                in_new_namespace(async move || {
                    let mut before = plan.clone();
                    before.forwards.pop_first();
                    writer.apply(&replace(path, &before)).await.unwrap();
                    let metrics = Metrics::new().unwrap();
                    start::start(reader.clone(), &metrics, path, &plan).await;
                    assert_eq!(
                        start::built(&metrics),
                        [1, 0],
                        "{writer:?} {reader:?} {path:?}"
                    );
                    let wanted = Elements::of(&plan, path);
                    for nft in [writer, reader] {
                        assert_eq!(nft.elements().await.unwrap().as_ref(), Some(&wanted));
                    }
                });
            }
        }
    }
}

/// The chains of the rules to which this nft adds a match of one protocol.
fn with_one_protocol(nft: &Path, transaction: &Transaction) -> BTreeSet<String> {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), transaction.to_string()).unwrap();
    let (nft, script) = (nft.display(), script.path().display());
    let compiled = command(&format!("{nft} --debug=netlink --file {script}"));
    let (mut chain, mut before) = ("", "");
    let mut found = BTreeSet::new();
    for line in compiled.lines().map(str::trim) {
        if let Some(rule) = line.strip_prefix("inet highwire ") {
            chain = rule.split(' ').next().unwrap();
        }
        if before.contains("meta load l4proto") && line.contains("cmp eq") {
            found.insert(chain.to_owned());
        }
        before = line;
    }
    found
}

/// It would serve one protocol and not the others.
#[test]
fn no_nft_adds_a_protocol_to_a_rule_that_packets_get_to() {
    let unused: BTreeSet<String> = ["unused".to_owned()].into();
    for writer in programs(&RELEASES) {
        for reader in programs(&RELEASES) {
            let (writer, unused) = (writer.clone(), unused.clone());
            in_new_namespace(async move || {
                let (_, path, plan) = plans::golden()[3].clone();
                let elements = Elements::of(&plan, path);
                let replace = Transaction::Replace(path, elements.clone());
                assert_eq!(with_one_protocol(&writer, &replace), unused);
                let refill = Transaction::Refill(path, elements);
                assert_eq!(with_one_protocol(&reader, &refill), unused);
            });
        }
    }
}

#[test]
fn without_names_of_protocols_numbers_are_read_and_written() {
    for writer in programs(&RELEASES) {
        for reader in programs(&RELEASES) {
            let writer = writer.clone();
            in_new_namespace(async move || {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                command("mount --make-rprivate /");
                if Path::new("/etc/protocols").exists() {
                    command("mount --bind /dev/null /etc/protocols");
                }
                one_writes_and_another_goes_on(writer, reader).await;
            });
        }
    }
}
