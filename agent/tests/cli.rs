//! Wrong use of the program gets an error that names the remedy.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_highwire-agent"));
    command
        .args(arguments)
        .env_remove("NODE_NAME")
        .env_remove("KUBECONFIG")
        .env("HOME", "/nowhere");
    command
}

fn failure(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(!status.success());
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_wrong_flag_is_named() {
    let (code, error) = failure(&mut agent(&[
        "--node-name",
        "n1",
        "--adress-cidr",
        "192.0.2.0/24",
    ]));
    assert_eq!(code, Some(2));
    assert!(
        error.contains("'--adress-cidr'") && error.contains("'--address-cidr'"),
        "{error}"
    );
}

#[test]
fn a_missing_node_name_is_asked_for() {
    for arguments in [&[][..], &["--node-name", ""]] {
        let (code, error) = failure(&mut agent(arguments));
        assert_eq!(code, Some(2));
        assert!(error.contains("--node-name"), "{error}");
    }
}

#[test]
fn a_missing_nft_is_named() {
    let (code, error) = failure(&mut agent(&["--node-name", "n1", "--nft", "/nowhere/nft"]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("/nowhere/nft") && error.contains("install nftables"),
        "{error}"
    );
}

#[test]
fn an_nft_that_is_too_old_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let nft = directory.path().join("nft");
    fs::write(&nft, "#!/bin/sh\necho 'nftables v0.9.8 (E.D.S.)'\n").unwrap();
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
    let (code, error) = failure(&mut agent(&[
        "--node-name",
        "n1",
        "--nft",
        nft.to_str().unwrap(),
    ]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("nftables v0.9.8") && error.contains("1.0.1"),
        "{error}"
    );
}
