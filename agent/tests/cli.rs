//! Wrong use of the program gets an error that names the remedy.

#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Output},
    time::{Duration, Instant},
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

/// An agent whose nft does not end until the file `loaded` is there, and its admin port.
struct SlowNft {
    directory: tempfile::TempDir,
    port: u16,
    running: Child,
}

impl SlowNft {
    fn start(directory: tempfile::TempDir, output: fs::File) -> Self {
        let nft = directory.path().join("nft");
        let loaded = directory.path().join("loaded");
        let text = format!(
            "#!/bin/sh\n\
             [ \"$1\" != --version ] || {{ echo 'nftables v1.0.6 (Lester Gooch #5)'; exit; }}\n\
             [ -e {loaded:?} ] || exec sleep 60\n\
             echo 'Error: No such file or directory' >&2\n\
             [ \"$1\" = --check ]\n"
        );
        fs::write(&nft, text).unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let nowhere = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}]}"#;
        fs::write(&kubeconfig, nowhere).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let running = agent(&["--node-name=n1", "--nft-timeout=300ms"])
            .args(["--nft", nft.to_str().unwrap()])
            .args(["--port", &port.to_string()])
            .env("KUBECONFIG", &kubeconfig)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self {
            directory,
            port,
            running,
        }
    }

    fn says_that_it_waits(&self) -> bool {
        let late = "nft --check did not end within 0.3 s";
        readyz(self.port).is_ok_and(|text| text.contains(late))
    }

    fn end_the_wait(&self) {
        fs::write(self.directory.path().join("loaded"), "").unwrap();
    }
}

impl Drop for SlowNft {
    fn drop(&mut self) {
        // It may have ended.
        self.running.kill().ok();
        self.running.wait().ok();
    }
}

/// The kernel of a slow machine loads its modules for the first run.
#[test]
fn an_nft_that_is_slow_at_first_is_asked_again_and_readyz_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let agent = SlowNft::start(directory, fs::File::create(&log).unwrap());
    let log = || fs::read_to_string(&log).unwrap();
    until(|| agent.says_that_it_waits(), log);
    assert!(log().contains("trying again") && !log().contains("agent starts"));
    agent.end_the_wait();
    until(|| log().contains("agent starts"), log);
    until(|| !agent.says_that_it_waits(), log);
}

/// Nothing that it logs can be written: the disk is full.
#[test]
fn an_agent_whose_log_has_no_room_goes_on() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut agent = SlowNft::start(tempfile::tempdir().unwrap(), full);
    until(|| agent.says_that_it_waits(), || "no log".to_owned());
    agent.end_the_wait();
    // It logs by then that it starts.
    until(
        || readyz(agent.port).is_ok_and(|text| text.contains("watching")),
        || "no log".to_owned(),
    );
    assert_eq!(agent.running.try_wait().unwrap(), None, "it has ended");
}

fn until(is: impl Fn() -> bool, log: impl Fn() -> String) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < limit, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn readyz(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
