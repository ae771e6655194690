//! Processes that outlive who started them.
//!
//! A unit is a process with a record: name, command line, pid and the pid's start
//! time, so that a pid the kernel has given to somebody else meanwhile is never
//! signalled. Units run in sessions of their own (Ctrl-C does not reach them) with
//! an environment of their own (nothing of the caller's leaks in), and end with
//! process 1 of their laboratory ([`crate::lab::init`]).

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::lab::init::in_thread;
use crate::lab::netns::Netns;
use crate::lab::place::Place;
use crate::lab::process;
use crate::lab::state::{State, read_json, write_json};
use crate::lab::wait::{is_slow, scaled};

/// Where processes find programs.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spec {
    /// Name, unique in the cluster: `etcd`, `kube-proxy-n1`.
    pub name: String,
    /// Where it runs.
    pub place: Place,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its whole environment but PATH.
    pub env: Vec<(String, String)>,
}

impl Spec {
    /// A process of that name and program in that namespace.
    pub fn new(name: impl Into<String>, netns: &Netns, argv: Vec<String>) -> Self {
        Self {
            name: name.into(),
            place: Place::Netns(netns.role().to_owned()),
            argv,
            env: Vec::new(),
        }
    }

    /// The same with a variable in its environment.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    spec: Spec,
    pid: i32,
    start_time: u64,
}

/// A process of a cluster: running, ended, or never started.
#[derive(Clone, Debug)]
pub struct Unit {
    state: State,
    name: String,
}

impl Unit {
    /// The unit of that name.
    pub fn new(state: &State, name: impl Into<String>) -> Self {
        Self {
            state: state.clone(),
            name: name.into(),
        }
    }

    /// All units of a cluster that have a record.
    pub fn list(state: &State) -> Vec<Self> {
        let mut names: Vec<String> = fs::read_dir(state.path("units"))
            .map(|entries| {
                entries
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
            .into_iter()
            .map(|name| Self::new(state, name))
            .collect()
    }

    /// Starts a process and writes it down. One of that name must not be running.
    pub fn spawn(state: &State, spec: Spec) -> Result<Self> {
        let unit = Self::new(state, &spec.name);
        ensure!(!unit.is_running(), "{} is running already", spec.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(unit.log_path())
            .with_context(|| format!("open {}", unit.log_path().display()))?;
        // setsid and setpriv replace themselves: the pid is the program's own.
        let mut command = Command::new("setsid");
        command
            .args(spec.place.runner())
            .args(&spec.argv)
            .env_clear()
            .env("PATH", PATH)
            // Go programs collect garbage more rarely where the processor is slow.
            .envs(is_slow().then_some(("GOGC", "400")))
            .envs(spec.env.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = in_thread(|| {
            spec.place.enter(state)?;
            let started = command.spawn();
            started.with_context(|| format!("start {}", spec.name))
        })?;
        let (pid, start_time) =
            process::started(&child).with_context(|| format!("start {}", unit.name))?;
        write_json(
            &unit.record_path(),
            &Record {
                spec,
                pid,
                start_time,
            },
        )?;
        Ok(unit)
    }

    /// Starts it again with the command line of last time.
    pub fn start_again(&self) -> Result<()> {
        let record = self
            .record()
            .with_context(|| format!("{} never ran", self.name))?;
        Self::spawn(&self.state, record.spec).map(drop)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pid, while it runs.
    pub fn pid(&self) -> Option<i32> {
        let record = self.record()?;
        process::runs(record.pid, record.start_time).then_some(record.pid)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Resident memory in KiB, while it runs.
    pub fn rss_kib(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("send {signal} to {}", self.name)),
        }
    }

    /// Asks it to end (SIGTERM) and waits; one that does not within `limit` is
    /// killed, which is an error.
    pub fn stop(&self, limit: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait_gone(limit) {
            return Ok(());
        }
        self.kill()?;
        bail!(
            "{} did not end within {limit:?} of SIGTERM:\n{}",
            self.name,
            self.tail(20)
        );
    }

    /// Ends it at once (SIGKILL) and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        ensure!(
            self.wait_gone(Duration::from_secs(10)),
            "{} survives SIGKILL",
            self.name
        );
        Ok(())
    }

    /// Kills it and forgets that it ever was.
    pub fn remove(&self) -> Result<()> {
        self.kill()?;
        fs::remove_file(self.record_path()).ok();
        fs::remove_file(self.log_path()).ok();
        Ok(())
    }

    /// Where it writes to.
    pub fn log_path(&self) -> PathBuf {
        self.state.path(format!("log/{}.log", self.name))
    }

    /// All it has written (the last MiB).
    pub fn log(&self) -> String {
        end_of(&self.log_path())
    }

    /// The last lines it has written, under a headline, for error messages.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log_path(), lines)
    }

    /// Fails with its last words if it has ended.
    pub fn check_running(&self) -> Result<()> {
        ensure!(
            self.is_running(),
            "{} has ended\n{}",
            self.name,
            self.tail(20)
        );
        Ok(())
    }

    fn wait_gone(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + scaled(limit);
        while self.is_running() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    fn record(&self) -> Option<Record> {
        read_json(&self.record_path()).ok()
    }

    fn record_path(&self) -> PathBuf {
        self.state.path(format!("units/{}.json", self.name))
    }
}

/// The last lines of a log, under a headline, for error messages.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = end_of(log);
    let all: Vec<&str> = text.lines().collect();
    let tail = all[all.len().saturating_sub(lines)..].join("\n");
    format!("--- last lines of {} ---\n{tail}", log.display())
}

/// The last MiB of a log.
fn end_of(log: &Path) -> String {
    const MOST: u64 = 1 << 20;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
