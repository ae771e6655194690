//! Network namespaces: make, enter, remove.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Seconds after which a command run in a namespace is stopped.
const COMMAND_LIMIT: &str = "30";

/// A named network namespace (`ip netns`), which may or may not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Netns {
    /// The namespace of that name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        fs::exists(self.path()).unwrap_or(false)
    }

    /// Creates it with loopback up. Of two callers at once only one succeeds.
    pub fn create(&self) -> Result<()> {
        run(&mut ip(&["netns", "add", &self.name]))?;
        // Link-local addresses work at once instead of after a second or two.
        self.sysctl(&[("net/ipv6/conf/default/accept_dad", "0")])?;
        self.ip_batch("link set lo up")
    }

    /// Deletes it; one that is gone already is fine.
    pub fn delete(&self) -> Result<()> {
        match run(&mut ip(&["netns", "del", &self.name])) {
            Err(error) if self.exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// All namespaces whose name begins with `prefix`.
    pub fn list(prefix: &str) -> Vec<Self> {
        let mut names: Vec<String> = fs::read_dir("/run/netns")
            .map(|entries| {
                entries
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .filter(|name| name.starts_with(prefix))
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names.into_iter().map(Self::new).collect()
    }

    /// Runs `work` on a thread of its own inside the namespace and returns its
    /// value. Sockets opened there stay in the namespace after it returns.
    ///
    /// Blocks the caller. Panics if the namespace cannot be entered (a bug of the
    /// test, not a thing to assert on) and passes a panic of `work` on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        let outcome =
            std::thread::scope(|scope| scope.spawn(|| enter(&path).map(|()| work())).join());
        match outcome {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("{error:#}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a command inside and collects what it says. Stopped after 30 s.
    /// Only a command that cannot be started is an error.
    pub fn command(&self, argv: &[&str]) -> Result<Output> {
        ensure!(
            self.exists(),
            "network namespace {} does not exist",
            self.name
        );
        let output = Command::new("timeout")
            .args([COMMAND_LIMIT, "ip", "netns", "exec", &self.name])
            .args(argv)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {argv:?} in {}", self.name))?;
        Ok(Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Like [`Netns::command`], but a failing command is an error; returns its output.
    pub fn check(&self, argv: &[&str]) -> Result<String> {
        let output = self.command(argv)?;
        if !output.success {
            bail!("{argv:?} in {}: {}", self.name, output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// Runs `ip` commands inside, one a line, stopping at the first that fails.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut child = ip(&["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes()).context("write to ip")?;
        }
        let output = child.wait_with_output().context("wait for ip")?;
        ensure!(
            output.status.success(),
            "ip in {}: {}\nof:\n{lines}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Sets kernel parameters of the namespace, given as (`net/ipv4/ip_forward`, `1`).
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in values {
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("set {key} to {value} in {}", self.name))?;
            }
            Ok(())
        })
    }

    /// Processes that live in it.
    pub fn pids(&self) -> Vec<i32> {
        ip(&["netns", "pids", &self.name])
            .output()
            .map(|output| {
                String::from_utf8_lossy(&output.stdout)
                    .lines()
                    .filter_map(|line| line.trim().parse().ok())
                    .collect()
            })
            .unwrap_or_default()
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

/// Moves the calling thread into the namespace file `path`.
pub(crate) fn enter(path: &str) -> Result<()> {
    let file =
        fs::File::open(path).with_context(|| format!("open {path}; is the cluster (still) up?"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}; are you root?"))
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}; is iproute2 installed?"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
