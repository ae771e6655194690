//! Objects in files, as kubectl reads them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::handle::Cluster;

/// The objects of a file, or of a folder as `kubectl apply -f` takes it. A path that is not
/// absolute begins at the checkout's root.
pub fn objects(cluster: &Cluster, path: &Path) -> Result<Vec<Value>> {
    let path = path.to_str().context("not UTF-8")?;
    let read = ["create", "--dry-run=client", "--validate=false", "-ojson"];
    let printed = cluster.kubectl(&[&read[..], &["-f", path]].concat())?;
    let objects = serde_json::Deserializer::from_str(&printed).into_iter();
    let objects: Vec<Value> = objects.collect::<Result<_, _>>().context(printed.clone())?;
    Ok(objects)
}

/// Writes objects to a file of that folder, for kubectl.
pub fn write(folder: &Path, objects: &[Value]) -> Result<PathBuf> {
    let path = folder.join("objects.json");
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    std::fs::write(&path, list.to_string())?;
    Ok(path)
}
