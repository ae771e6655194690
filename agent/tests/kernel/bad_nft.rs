//! An nft that hangs, dies, prints rubbish or too much, or only says that it did something. The
//! programs here are shell scripts in its place.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path, time::Instant};

use highwire_agent::{
    metrics::Metrics,
    table::{DataPath, Elements, KernelTable, Nft, nft::NftError, notifications::TableEvent},
};
use highwire_api::{Family, Protocol};

use super::{command, elements, in_new_namespace, nft_at, plans, replace, services};

const PATH: DataPath = DataPath::FirstPacket;

/// A program that does what `body` says.
fn script(folder: &Path, body: &str) -> Nft {
    let program = folder.join("nft");
    std::fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    nft_at(program)
}

/// More elements than a pipe holds text of.
fn many() -> Elements {
    let ports = 1..10_000;
    let forwards = ports.map(|port| plans::forward(Family::V4, Protocol::Tcp, port, "10.96.0.10"));
    elements(&highwire_agent::decide::Plan {
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        forwards: forwards.collect(),
    })
}

fn in_folder(test: impl AsyncFnOnce(&Path) + Send + 'static) {
    in_new_namespace(async move || {
        let folder = tempfile::tempdir().unwrap();
        test(folder.path()).await;
    });
}

#[test]
fn one_that_prints_without_end_is_stopped() {
    in_folder(async |folder| {
        let error = script(folder, "exec yes").list().await.unwrap_err();
        assert!(matches!(error, NftError::Unreadable { .. }), "{error}");
        assert!(error.to_string().contains("32 MiB"), "{error}");
    });
}

#[test]
fn one_that_prints_before_it_reads_is_fed_all_the_same() {
    in_folder(async |folder| {
        let nft = script(folder, "head -c 1000000 /dev/zero\nexec nft \"$@\"");
        let table = highwire_agent::table::Transaction::Replace(PATH, many());
        nft.apply(&table).await.unwrap();
        assert_eq!(super::nft().elements().await.unwrap(), Some(many()));
    });
}

#[test]
fn what_it_says_of_an_error_fits_into_a_condition_and_moves_no_cursor() {
    in_folder(async |folder| {
        let words = "printf '\\033[2J\\n' >&2; head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1";
        let error = script(folder, words).list().await.unwrap_err().to_string();
        assert!(error.contains("\\u{1b}[2J"), "{error}");
        let long = "head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1";
        let error = script(folder, long).list().await.unwrap_err().to_string();
        assert!(
            error.contains("xxx") && error.len() < 1_000,
            "{}",
            error.len()
        );
        let error = script(folder, "head -c 1000000 /dev/zero | tr '\\0' y");
        let error = error.probe(&[PATH]).await.unwrap_err().to_string();
        assert!(
            error.contains("yyy") && error.len() < 1_000,
            "{}",
            error.len()
        );
    });
}

#[test]
fn one_that_is_killed_blames_no_service() {
    in_folder(async |folder| {
        let nft = script(folder, "kill -9 $$");
        let error = nft.apply(&replace(PATH, &services())).await.unwrap_err();
        assert!(matches!(error, NftError::Killed { .. }), "{error}");
        assert!(error.is_late(), "an agent that starts asks again");
        let mut table = KernelTable::new(nft, Metrics::new().unwrap());
        let failure = table.bring_to(PATH, &services()).await.unwrap_err();
        assert!(!failure.refused, "{failure:?}");
        assert_eq!(table.accepts(PATH, elements(&services())).await, None);
    });
}

#[test]
fn one_that_reports_success_and_does_nothing_is_found_out() {
    in_folder(async |folder| {
        let nft = script(folder, "cat > /dev/null");
        let mut table = KernelTable::new(nft, Metrics::new().unwrap());
        let failure = table.bring_to(PATH, &services()).await.unwrap_err();
        assert!(failure.message.contains("reports success"), "{failure:?}");
        assert!(!failure.refused, "{failure:?}");
    });
}

#[test]
fn a_table_that_is_gone_is_missed_though_nft_cannot_be_asked() {
    for broken in [
        "exit 3",
        "echo '{\"nftables\": 17'",
        "kill -9 $$",
        "cat > /dev/null",
    ] {
        in_folder(async |folder| {
            let nft = script(folder, "exec nft \"$@\"");
            let mut table = KernelTable::new(nft, Metrics::new().unwrap());
            let wanted = services();
            table.bring_to(PATH, &wanted).await.unwrap();
            let right = command("nft --stateless list table inet highwire");
            script(folder, broken);
            // As long as the table is there, it stays as it is, and so does the node.
            table.notice(TableEvent::Missed, Instant::now());
            table.bring_to(PATH, &wanted).await.unwrap();
            assert_eq!(command("nft --stateless list table inet highwire"), right);

            command("nft delete table inet highwire");
            table.notice(TableEvent::Changed, Instant::now());
            tokio::time::sleep_until(table.due().unwrap().into()).await;
            table.bring_to(PATH, &wanted).await.unwrap_err();
            script(folder, "exec nft \"$@\"");
            tokio::time::sleep_until(table.due().unwrap().into()).await;
            table.bring_to(PATH, &wanted).await.unwrap();
            assert_eq!(command("nft --stateless list table inet highwire"), right);
        });
    }
}
