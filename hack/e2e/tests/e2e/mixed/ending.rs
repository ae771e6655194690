//! A cluster ends with the process that started it, however that ends, and nothing of it
//! is left: no process, no namespace, no mount.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::lab::init::Init;
use highwire_e2e::lab::state::State;
use highwire_e2e::{Cluster, Netns, cluster_test, lifecycle, wait_for};
use macro_rules_attribute::apply;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// For a cluster with Highwire to be there beside others.
const UP: Duration = Duration::from_secs(120);
/// For the kernel to end it.
const GONE: Duration = Duration::from_secs(20);

/// What a cluster has in the kernel: `pid:[…]`, `mnt:[…]` and all of its `net:[…]`.
struct Namespaces(BTreeSet<String>);

impl Namespaces {
    fn of(state: &State) -> Result<Self> {
        let init = Init::of(state).context("it does not run")?;
        let mut found = BTreeSet::new();
        for kind in ["pid", "mnt"] {
            found.insert(link(&format!("/proc/{}/ns/{kind}", init.pid()))?);
        }
        for role in ["fabric", "cp", "client", "n1", "n2"] {
            let own = || link("/proc/thread-self/ns/net");
            found.insert(Netns::of(state, role).run(own)?);
        }
        ensure!(found.len() == 7, "{found:?}");
        Ok(Self(found))
    }

    /// Processes that are in one of them, and those that have one of them mounted.
    fn users(&self) -> Vec<String> {
        let mut users = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let process = entry.path();
            for kind in ["pid", "mnt", "net"] {
                match link(&format!("{}/ns/{kind}", process.display())) {
                    Ok(namespace) if self.0.contains(&namespace) => {
                        users.push(format!("{} in {namespace}", process.display()));
                    }
                    _ => {}
                }
            }
            // What is mounted from a namespace's file shows the namespace as its root.
            let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            let mounted = mounts
                .split_whitespace()
                .find(|word| self.0.contains(*word));
            users.extend(mounted.map(|mounted| format!("{} has {mounted}", process.display())));
        }
        users
    }
}

/// The process in a line of [`Namespaces::users`].
fn process(user: &str) -> &str {
    user.split(' ').next().unwrap_or(user)
}

fn link(path: &str) -> Result<String> {
    let target = fs::read_link(path).with_context(|| format!("read {path}"))?;
    Ok(target.display().to_string())
}

/// `hack/cluster run` with a command that would run forever and says its pid.
fn run(shared: &Cluster, state: &State) -> Result<Child> {
    let config = shared.config();
    let say = format!("echo $$ > {}; exec sleep infinity", said(state).display());
    Command::new(config.tools.join("highwire-cluster"))
        .args(["--name", state.name(), "run", "--nodes=2", "--controlplane"])
        .arg(&config.controlplane)
        .args(["--", "sh", "-c", &say])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start highwire-cluster")
}

fn said(state: &State) -> std::path::PathBuf {
    state.path("command-pid")
}

#[apply(cluster_test)]
async fn nothing_is_left_of_a_cluster_whose_owner_ends() -> Result<()> {
    let shared = Cluster::attach().await?;
    for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM] {
        let state = State::new(&format!("{}end", shared.config().name))?;
        let mut owner = run(&shared, &state)?;
        let command = wait_for("the command to run", UP, || async {
            let pid = fs::read_to_string(said(&state))?;
            anyhow::Ok(pid.trim().parse::<i32>()?)
        })
        .await;
        let namespaces = Namespaces::of(&state)?;
        let users = namespaces.users();
        ensure!(users.len() > 10, "they are not seen: {users:?}");
        // The kernel gives the numbers of namespaces that are gone to new ones at once, such as
        // those of other tests: a process that came later is none of this cluster's.
        let users: BTreeSet<String> = users.iter().map(|user| process(user).to_owned()).collect();

        kill(Pid::from_raw(i32::try_from(owner.id())?), signal)?;
        let status = owner.wait()?;
        ensure!(!status.success(), "{signal}: {status}");
        wait_for(
            &format!("nothing to be left after {signal}"),
            GONE,
            || async {
                let mut left = namespaces.users();
                left.retain(|user| users.contains(process(user)));
                if fs::exists(format!("/proc/{command}"))? {
                    left.push(format!("the command, pid {command}"));
                }
                ensure!(left.is_empty(), "{left:#?}");
                anyhow::Ok(())
            },
        )
        .await;
        // Nobody was there to remove the records; whoever starts a cluster next does.
        ensure!(
            state.dir().exists() == (signal == Signal::SIGKILL),
            "{signal}"
        );
        lifecycle::sweep()?;
        ensure!(!state.dir().exists(), "{signal}: {}", state.dir().display());
    }
    Ok(())
}
