//! Network namespaces: make, enter, remove.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::lab::command;
use crate::lab::init::{self, Init, in_thread};
use crate::lab::state::State;

/// A network namespace of a laboratory, which may or may not exist.
#[derive(Clone, Debug)]
pub struct Netns {
    state: State,
    role: String,
}

impl Netns {
    /// The laboratory's namespace of that role: `fabric`, `cp`, `client`, `n1` or `n1-p7`.
    pub fn of(state: &State, role: impl Into<String>) -> Self {
        Self {
            state: state.clone(),
            role: role.into(),
        }
    }

    /// What it is in its laboratory.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The laboratory it belongs to.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The laboratory and its role there, for messages.
    pub fn name(&self) -> String {
        format!("{}/{}", self.state.name(), self.role)
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path().is_ok_and(|path| path.exists())
    }

    /// Creates it with loopback up. Of two callers at once only one succeeds.
    pub fn create(&self) -> Result<()> {
        let file = init::names(&self.state).join(&self.role);
        // Named by a mount, which only the laboratory's own mount namespace has. The
        // kernel's file is opened before, where /proc is the caller's.
        let namespace = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            fs::File::open("/proc/thread-self/ns/net").context("open the new namespace")
        })?;
        let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let nothing = None::<&str>;
        let named = self.init()?.in_mounts(|| {
            fs::File::create_new(&file)?;
            mount(
                Some(source.as_str()),
                &file,
                nothing,
                MsFlags::MS_BIND,
                nothing,
            )?;
            Ok(())
        });
        named.with_context(|| format!("name the network namespace {}", self.name()))?;
        // Link-local addresses work at once instead of after a second or two.
        self.sysctl(&[("net/ipv6/conf/default/accept_dad", "0")])?;
        self.ip_batch("link set lo up")
    }

    /// Deletes it; one that is gone already is fine.
    pub fn delete(&self) -> Result<()> {
        let file = init::names(&self.state).join(&self.role);
        let deleted = self.init()?.in_mounts(|| {
            if file.exists() {
                umount2(&file, MntFlags::MNT_DETACH)?;
                fs::remove_file(&file)?;
            }
            Ok(())
        });
        deleted.with_context(|| format!("delete the network namespace {}", self.name()))
    }

    /// Runs `work` on a thread of its own inside the namespace and returns its
    /// value. Sockets opened there stay in the namespace after it returns.
    ///
    /// Blocks the caller. Panics if the namespace cannot be entered (a bug of the
    /// test, not a thing to assert on) and passes a panic of `work` on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match in_thread(|| self.enter().map(|()| work())) {
            Ok(value) => value,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Moves the calling thread into it.
    pub(crate) fn enter(&self) -> Result<()> {
        let path = self.path()?;
        let file = fs::File::open(&path)
            .with_context(|| format!("open {}; is the cluster (still) up?", path.display()))?;
        let entered = setns(file, CloneFlags::CLONE_NEWNET);
        entered.with_context(|| format!("enter {}; are you root?", self.name()))
    }

    /// Runs a command inside and returns what it prints; one that fails is an error. Stopped
    /// after 60 s.
    pub fn check(&self, argv: &[&str]) -> Result<String> {
        command::check(argv, &self.name(), None, || self.enter())
    }

    /// Runs `ip` commands inside, one a line, stopping at the first that fails.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = in_thread(|| {
            self.enter()?;
            command.spawn().context("start ip; is iproute2 installed?")
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes()).context("write to ip")?;
        }
        let output = child.wait_with_output().context("wait for ip")?;
        ensure!(
            output.status.success(),
            "ip in {}: {}\nof:\n{lines}",
            self.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Sets kernel parameters of the namespace, given as (`net/ipv4/ip_forward`, `1`).
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in values {
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("set {key} to {value} in {}", self.name()))?;
            }
            Ok(())
        })
    }

    /// The file that stands for it.
    pub fn path(&self) -> Result<PathBuf> {
        Ok(self.init()?.netns_path(&self.state, &self.role))
    }

    /// That file in the mount namespace where network namespaces are named.
    pub(crate) fn inner_path(&self) -> PathBuf {
        init::names(&self.state).join(&self.role)
    }

    fn init(&self) -> Result<Init> {
        Init::of(&self.state)
            .with_context(|| format!("cluster {:?} is not up (any more)", self.state.name()))
    }
}
