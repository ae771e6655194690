//! Anything, fed to what reads the words of others: users' objects, agents' reports, the
//! kernel's netlink, nft's JSON, updaters' answers. Each target is a function that panics if a
//! law is broken.
//!
//! `cargo test -p highwire-fuzz` runs every file of `corpus/` and mutations of it, always the
//! same; `hack/fuzz/run` searches, guided by what code is reached.

pub mod bytes;
pub mod mutate;
pub mod plain;
pub mod surfaces;
pub mod targets;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Something that reads the words of others.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also that of its folder in `corpus/`.
    pub name: &'static str,
    /// Feeds it. Panics if a law is broken.
    pub run: fn(&[u8]),
    /// Whether one input takes milliseconds: a whole agent or controller, or a connection.
    pub is_slow: bool,
}

impl Target {
    /// The inputs it begins with, by name.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn corpus(&self) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let files = fs::read_dir(folder.join(self.name))?;
        let mut paths = files
            .map(|file| Ok(file?.path()))
            .collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        let read = |path: PathBuf| fs::read(&path).map(|bytes| (path, bytes));
        paths.into_iter().map(read).collect()
    }
}
