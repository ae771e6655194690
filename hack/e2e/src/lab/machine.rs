//! Computers of namespaces: what runs on one sees its own processes, mounts, host name and
//! cgroups besides its own network. When its process 1 ends, all of it ends, as in a power
//! cut; its disk stays until the laboratory goes. `machine.sh` boots it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::command;
use crate::lab::netns::Netns;
use crate::lab::place::{Place, machine_pid, pid_file};
use crate::lab::state::State;
use crate::lab::unit::{Spec, Unit};

const SCRIPT: &str = include_str!("machine.sh");
/// How long it may take to boot, and its cgroups to be empty.
const LIMIT: Duration = Duration::from_secs(20);

/// A computer, switched on or off. Its role is that of its network namespace.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    role: String,
}

impl Machine {
    /// The one in that network namespace.
    pub fn of(netns: &Netns) -> Self {
        Self {
            state: netns.state().clone(),
            role: netns.role().to_owned(),
        }
    }

    /// Switches it on. Its network namespace must be there.
    pub fn boot(&self) -> Result<()> {
        let file = pid_file(&self.state, &self.role);
        let folder = file.parent().context("a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::remove_file(&file).ok();
        let argv = ["bash", "-c", SCRIPT, "machine", &self.role]
            .map(str::to_owned)
            .into_iter()
            .chain([self.state.dir().display().to_string(), self.cgroup()])
            .collect();
        let spec = Spec {
            name: self.unit().name().to_owned(),
            place: Place::Netns(self.role.clone()),
            argv,
            env: Vec::new(),
        };
        let unit = Unit::spawn(&self.state, spec)?;
        let deadline = Instant::now() + LIMIT;
        while !file.exists() {
            unit.check_running()?;
            ensure!(Instant::now() < deadline, "{}", unit.tail(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Cuts its power: every process on it ends at once.
    pub fn power_off(&self) -> Result<()> {
        // Its process 1 ends with the unit, and with that all others.
        fs::remove_file(pid_file(&self.state, &self.role)).ok();
        self.unit().kill()?;
        remove_cgroups(&self.cgroup())
    }

    /// Where processes run that are to run on it.
    pub fn place(&self) -> Place {
        Place::Machine(self.role.clone())
    }

    /// The folder that outlives it.
    pub fn folder(&self) -> PathBuf {
        self.state.path("machines").join(&self.role)
    }

    /// What it has written over the host's files, which outlives it.
    pub fn disk(&self) -> PathBuf {
        self.folder().join("disk")
    }

    /// A file of its own, as the host finds it: of its `/proc`, for example.
    pub fn file(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let pid = machine_pid(&self.state, &self.role)?;
        let path = path.as_ref();
        let path = path.strip_prefix("/").unwrap_or(path);
        Ok(PathBuf::from(format!("/proc/{pid}/root")).join(path))
    }

    /// Runs a command on it and returns what it prints; one that fails is an error. Stopped
    /// after 60 s.
    pub fn check(&self, argv: &[&str]) -> Result<String> {
        let place = self.place();
        command::check(argv, &self.role, place.runner(), || {
            place.enter(&self.state)
        })
    }

    fn unit(&self) -> Unit {
        Unit::new(&self.state, format!("machine-{}", self.role))
    }

    fn cgroup(&self) -> String {
        format!("{}{}", prefix(&self.state), self.role)
    }
}

/// Removes the cgroups of all machines of a laboratory whose processes have ended.
pub(crate) fn remove_all_cgroups(state: &State) -> Result<()> {
    let prefix = prefix(state);
    let mut names = Vec::new();
    for hierarchy in hierarchies() {
        let entries = fs::read_dir(&hierarchy).into_iter().flatten().flatten();
        let found = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.extend(found.filter(|name| name.starts_with(&prefix)));
    }
    names.sort();
    names.dedup();
    names.iter().try_for_each(|name| remove_cgroups(name))
}

fn prefix(state: &State) -> String {
    format!("highwire-{}-", state.name())
}

/// The cgroup file systems of the host: one of version 2, or several.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    if root.join("cgroup.procs").exists() {
        return vec![root];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.map(|entry| entry.path());
    folders
        .filter(|folder| folder.join("cgroup.procs").exists())
        .collect()
}

/// Removes a cgroup with all below it in every hierarchy.
fn remove_cgroups(name: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    for hierarchy in hierarchies() {
        let folder = hierarchy.join(name);
        // A process that was killed stays in it for another moment.
        while let Err(error) = remove_tree(&folder) {
            ensure!(
                Instant::now() < deadline,
                "remove cgroup {}: {error}",
                folder.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// `rmdir` of the folders alone: the files of a cgroup cannot be removed, and go with it.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
