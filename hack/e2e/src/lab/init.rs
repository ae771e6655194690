//! Process 1 of a laboratory: everything in it ends with this one process.
//!
//! It is the first process of a PID namespace, in a mount namespace where the network
//! namespaces have their names. When it ends, however it does, the kernel kills all
//! processes of its PID namespace (`pid_namespaces(7)`), and the mounts and network
//! namespaces go with the last of them. It ends as soon as the process that holds its
//! [`Lifeline`] does, by SIGKILL too.
//!
//! `/proc` stays the host's: processes find themselves in it (`/proc/self`), and pids read
//! the same for everybody.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::lab::process;
use crate::lab::state::{State, read_json, write_json};

/// Waits for the word to stay; without it, ends when its input does.
const PROGRAM: &str = "read -r word; [ \"$word\" = stay ] && exec sleep infinity";

/// Process 1 of a laboratory that was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Init {
    pid: i32,
    start_time: u64,
}

/// The laboratory ends when this is dropped, or when the process that has it ends.
#[must_use = "the laboratory ends with it"]
pub struct Lifeline(ChildStdin);

impl Lifeline {
    /// Lets the laboratory outlive this process, until somebody ends it by name.
    pub fn detach(mut self) -> Result<()> {
        writeln!(self.0, "stay").context("speak to process 1 of the cluster")
    }
}

impl Init {
    /// Starts it and writes it down.
    pub fn start(state: &State) -> Result<Lifeline> {
        let names = names(state);
        fs::create_dir_all(&names).with_context(|| format!("create {}", names.display()))?;
        let child = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
                .context("make a PID and a mount namespace; are you root?")?;
            let nothing = None::<&str>;
            mount(
                nothing,
                "/",
                nothing,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                nothing,
            )
            .context("keep mounts to oneself")?;
            mount(
                Some("tmpfs"),
                &names,
                Some("tmpfs"),
                MsFlags::empty(),
                nothing,
            )
            .with_context(|| format!("mount on {}", names.display()))?;
            // A session of its own: Ctrl-C does not reach it.
            Command::new("setsid")
                .args(["sh", "-c", PROGRAM])
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("start process 1")
        })?;
        let (pid, start_time) = process::started(&child).context("start process 1")?;
        let input = child.stdin.context("no pipe to process 1")?;
        write_json(&record(state), &Self { pid, start_time })?;
        Ok(Lifeline(input))
    }

    /// That of a laboratory, if it runs.
    pub fn of(state: &State) -> Option<Self> {
        let init: Self = read_json(&record(state)).ok()?;
        process::runs(init.pid, init.start_time).then_some(init)
    }

    /// Whether a laboratory was started and has ended without having been removed.
    pub fn is_gone(state: &State) -> bool {
        record(state).exists() && Self::of(state).is_none()
    }

    /// Ends everything in the laboratory at once.
    pub fn kill(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).ok();
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        process::collect();
        process::runs(self.pid, self.start_time)
    }

    /// The file that stands for a network namespace, as the host sees it.
    pub fn netns_path(&self, state: &State, name: &str) -> PathBuf {
        let inside = names(state).join(name);
        let inside = inside.strip_prefix("/").unwrap_or(&inside);
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(inside)
    }

    /// Runs `work` in the mount namespace, where network namespaces are named.
    pub(crate) fn in_mounts<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.open("mnt")?;
        in_thread(|| {
            // A thread changes its mount namespace alone only if it shares no folder.
            unshare(CloneFlags::CLONE_FS).context("leave the other threads' folder")?;
            setns(&namespace, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")?;
            work()
        })
    }

    /// Makes the processes that the calling thread starts from now on end with this one.
    pub(crate) fn adopt(&self) -> Result<()> {
        setns(self.open("pid")?, CloneFlags::CLONE_NEWPID).context("enter the PID namespace")
    }

    fn open(&self, kind: &str) -> Result<File> {
        let path = format!("/proc/{}/ns/{kind}", self.pid);
        File::open(&path).with_context(|| format!("open {path}; has the cluster ended?"))
    }
}

/// The folder inside the mount namespace where network namespaces are named.
pub(crate) fn names(state: &State) -> PathBuf {
    state.path("netns")
}

fn record(state: &State) -> PathBuf {
    state.path("init.json")
}

/// Runs `work` on a thread of its own, for what concerns the calling thread alone.
pub(crate) fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    match std::thread::scope(|scope| scope.spawn(work).join()) {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
