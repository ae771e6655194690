//! What is written down about a cluster, under `/run/highwire/<name>/`.
//!
//! ```text
//! init.json           process 1: pid, start time (see init.rs)
//! netns/              empty here; in process 1's mounts, the network namespaces
//! cluster.json        what was asked for
//! kubeconfig          admin, through the relay: for people and tests on the host
//! pki/                certificates, keys, kubeconfigs of the components
//! etcd/               etcd's data
//! units/<unit>.json   every process: pid, start time, command line (see unit.rs)
//! log/<unit>.log      and what it said
//! pods/<ns>.<pod>.json   every Pod: namespace, addresses (see pod.rs)
//! counter-*           numbers handed out across processes
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where all clusters' state lives.
pub const ROOT: &str = "/run/highwire";

/// Cluster names are names of folders and of Kubernetes contexts.
pub fn check_name(name: &str) -> Result<()> {
    let fits = (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    ensure!(
        fits,
        "cluster name {name:?}: 1 to 32 of a-z and 0-9 are allowed"
    );
    Ok(())
}

/// The folder of one cluster.
#[derive(Clone, Debug)]
pub struct State {
    name: String,
    dir: PathBuf,
}

impl State {
    /// The state of the cluster of that name, which need not exist.
    pub fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            dir: Path::new(ROOT).join(name),
        })
    }

    /// Names of all clusters with state on this machine.
    pub fn list() -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(ROOT)
            .map(|entries| {
                entries
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .filter(|name| check_name(name).is_ok())
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path inside it.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.dir.join(inside)
    }

    /// Creates the folder with these folders in it, empty.
    pub fn create(&self, parts: &[&str]) -> Result<()> {
        for part in parts {
            let dir = self.path(part);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(())
    }

    /// Removes the folder and, when it was the last one, the root.
    pub fn remove(&self) -> Result<()> {
        // Under another name first: of two callers one does it.
        let leaving = self.dir.with_extension(format!("{}", std::process::id()));
        match fs::rename(&self.dir, &leaving) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            renamed => renamed
                .and_then(|()| fs::remove_dir_all(&leaving))
                .with_context(|| format!("remove {}", self.dir.display()))?,
        }
        // Fails while other clusters are up, which is right.
        fs::remove_dir(ROOT).ok();
        Ok(())
    }

    /// Takes the next number of a counter shared by all processes, from 0 on.
    pub fn next(&self, counter: &str) -> Result<u64> {
        let path = self.path(format!("counter-{counter}"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        file.lock().context("lock a counter")?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let number: u64 = text.trim().parse().unwrap_or(0);
        file.rewind()?;
        file.set_len(0)?;
        write!(file, "{}", number + 1)?;
        Ok(number)
    }
}

/// Serialises changes to one cluster (`up` and `down` at once).
pub fn lock(name: &str) -> Result<File> {
    use std::os::unix::fs::MetadataExt;
    check_name(name)?;
    let path = lock_path(name);
    loop {
        let file = File::create(&path).with_context(|| format!("create {path}; are you root?"))?;
        file.lock().with_context(|| format!("lock {path}"))?;
        // Whoever held it may have removed it while we waited; then it locks nothing.
        let ours = file.metadata()?.ino();
        if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
            return Ok(file);
        }
    }
}

/// Removes the lock's file; call while holding it, last of all.
pub fn unlock(name: &str, held: File) {
    fs::remove_file(lock_path(name)).ok();
    drop(held);
}

/// Not inside [`ROOT`], which is removed with the last cluster.
fn lock_path(name: &str) -> String {
    format!("/run/highwire-{name}.lock")
}

/// Reads a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

/// Writes a JSON file so that a reader sees the old or the new one, never half.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    write_private(path, &text)
}

/// Writes a file only root can read, atomically.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_added_extension("new");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}
