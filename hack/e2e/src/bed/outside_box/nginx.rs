//! nginx on a box: streams from the files of a folder, loaded on request.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::bed::outside_box::unit;
use crate::lab::netns::Netns;
use crate::lab::unit::{Spec, Unit};
use crate::lab::wait::try_wait_for;

/// Names the folder that `hack/nginx` prints.
const NGINX: &str = "HIGHWIRE_NGINX";
/// How long nginx may take to start, and to end.
const LIMIT: Duration = Duration::from_secs(10);

/// nginx on a box, running or not.
pub struct Nginx {
    netns: Netns,
    folder: PathBuf,
}

impl Nginx {
    /// That of the box in this namespace.
    pub(super) fn at(netns: &Netns) -> Self {
        Self {
            netns: netns.clone(),
            folder: netns.state().path(netns.role()),
        }
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Writes its configuration. It has no stream yet.
    pub(super) fn set_up(&self) -> Result<()> {
        let streams = self.streams();
        fs::create_dir_all(&streams).with_context(|| format!("create {}", streams.display()))?;
        let module = unpacked()?.join("usr/lib/nginx/modules/ngx_stream_module.so");
        let text = format!(
            "load_module {};\n\
             user root; daemon off; worker_processes 1;\n\
             pid nginx.pid; lock_file nginx.lock; error_log stderr warn;\n\
             events {{ worker_connections 1024; }}\n\
             stream {{ include {}/*.conf; }}\n",
            module.display(),
            streams.display()
        );
        let path = self.configuration();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Starts it; it serves the streams that there are.
    pub async fn start(&self) -> Result<()> {
        let pid = self.folder.join("nginx.pid");
        fs::remove_file(&pid).ok();
        let unit = Unit::spawn(
            self.netns.state(),
            Spec::new(self.netns.role(), &self.netns, self.command(&[])?),
        )?;
        // Written once it listens and heeds signals.
        let started = try_wait_for("nginx to start", LIMIT, || async {
            pid.exists() || !unit.is_running()
        });
        started.await.with_context(|| unit.tail(20))?;
        unit.check_running()
    }

    /// Ends it at once, with its connections.
    pub fn stop(&self) -> Result<()> {
        self.unit().stop(LIMIT)
    }

    /// Loads the streams, if nginx likes all of them; one that is wrong keeps all as they
    /// were. Returns before nginx has done so.
    pub fn reload(&self) -> Result<()> {
        let test = self.command(&["-t"])?;
        let test: Vec<&str> = test.iter().map(String::as_str).collect();
        self.netns.check(&test)?;
        self.unit().signal(Signal::SIGHUP)
    }

    /// The process: its pid and log.
    pub fn unit(&self) -> Unit {
        unit(&self.netns)
    }

    /// The folder of the streams.
    pub fn streams(&self) -> PathBuf {
        self.folder.join("streams")
    }

    /// What is written down for a backend.
    pub fn stream(&self, backend: &str) -> Option<String> {
        fs::read_to_string(self.stream_file(backend)).ok()
    }

    /// The backends for which something is written down, sorted.
    pub fn backends(&self) -> Vec<String> {
        let entries = fs::read_dir(self.streams()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names
            .filter_map(|name| Some(name.strip_suffix(".conf")?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// Removes what is written down for all backends.
    pub fn forget_streams(&self) -> Result<()> {
        for backend in self.backends() {
            let path = self.stream_file(&backend);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.with_context(|| format!("remove {}", path.display()))?,
            }
        }
        Ok(())
    }

    /// Ends it and removes its files.
    pub(super) fn remove(&self) -> Result<()> {
        // Its workers end with it only if it is asked to.
        let stopped = self.stop();
        self.unit().remove()?;
        fs::remove_dir_all(&self.folder).ok();
        stopped
    }

    /// The file of a backend, in that folder whatever its name is.
    pub(super) fn stream_file(&self, backend: &str) -> PathBuf {
        let name = backend.rsplit('/').next().unwrap_or(backend);
        self.streams().join(format!("{name}.conf"))
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("nginx.conf")
    }

    fn command(&self, more: &[&str]) -> Result<Vec<String>> {
        let path = |path: PathBuf| path.display().to_string();
        let mut argv = vec![path(unpacked()?.join("usr/sbin/nginx"))];
        argv.extend(["-p".to_owned(), path(self.folder.clone())]);
        argv.extend(["-c".to_owned(), path(self.configuration())]);
        argv.extend(["-e", "stderr"].iter().chain(more).map(ToString::to_string));
        Ok(argv)
    }
}

fn unpacked() -> Result<PathBuf> {
    let folder = std::env::var_os(NGINX).map(PathBuf::from);
    folder.with_context(|| {
        format!("{NGINX} is not set: hack/test sets it; by hand, {NGINX}=$(hack/nginx)")
    })
}
