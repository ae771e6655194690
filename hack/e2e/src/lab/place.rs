//! Where in a laboratory a process runs, and how a thread gets there.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use crate::lab::init::Init;
use crate::lab::netns::Netns;
use crate::lab::state::State;

/// Joins the cgroups of the machine it is run in, then becomes its arguments. Made by
/// `machine.sh`.
const JOIN: &str = "/run/machine/join";

/// Where a process runs. All of them end with the laboratory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub enum Place {
    /// On the host.
    #[default]
    Host,
    /// In the network namespace of that role.
    Netns(String),
    /// In the machine of that role: its namespaces, mounts and cgroups.
    Machine(String),
}

impl Place {
    /// Moves the calling thread there, as far as concerns the processes that it starts from
    /// now on. It must share no folder with other threads afterwards, so it needs to be a
    /// thread of its own.
    pub(crate) fn enter(&self, state: &State) -> Result<()> {
        match self {
            Self::Host => init(state)?.adopt(),
            Self::Netns(role) => {
                init(state)?.adopt()?;
                Netns::of(state, role).enter()
            }
            Self::Machine(role) => {
                Netns::of(state, role).enter()?;
                enter_machine(machine_pid(state, role)?)
                    .with_context(|| format!("enter machine {role}; is it switched on?"))
            }
        }
    }

    /// The program there that must become each command, once the thread has entered.
    pub(crate) fn runner(&self) -> Option<&'static str> {
        matches!(self, Self::Machine(_)).then_some(JOIN)
    }
}

/// Where a machine writes down its process 1, as the host counts.
pub(crate) fn pid_file(state: &State, role: &str) -> PathBuf {
    state.path("machines").join(role).join("pid")
}

/// Process 1 of a machine, as the host counts.
pub(crate) fn machine_pid(state: &State, role: &str) -> Result<i32> {
    let path = pid_file(state, role);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("read {}; is {role} switched on?", path.display()))?;
    text.trim().parse().context("a pid")
}

fn init(state: &State) -> Result<Init> {
    Init::of(state).context("the cluster has ended")
}

fn enter_machine(pid: i32) -> Result<()> {
    let kinds = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // All are opened before /proc becomes the machine's.
    let open = |(kind, flag)| Ok((File::open(format!("/proc/{pid}/ns/{kind}"))?, flag));
    let opened: Vec<(File, CloneFlags)> = kinds
        .into_iter()
        .map(open)
        .collect::<std::io::Result<_>>()?;
    unshare(CloneFlags::CLONE_FS)?;
    for (namespace, flag) in opened {
        setns(namespace, flag)?;
    }
    Ok(())
}
