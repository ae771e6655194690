//! What kustomize makes of `deploy/` and `hack/overlays/` is what hack/manifests prints, object by
//! object, and a real API server takes it. Here, since the cluster has a kubectl.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use highwire_e2e::{Cluster, Programs as _, checkout, cluster_test, highwire, manifests};
use k8s_openapi::api::core::v1::PodSpec;
use macro_rules_attribute::apply;
use serde_json::{Value, json};

/// Objects by kind, namespace and name.
type Objects = BTreeMap<String, Value>;

fn by_name(objects: Vec<Value>) -> Result<Objects> {
    let count = objects.len();
    let named: Objects = objects
        .into_iter()
        .map(|object| {
            let metadata = &object["metadata"];
            let name = format!(
                "{} {} {}",
                object["kind"], metadata["namespace"], metadata["name"]
            );
            (name, object)
        })
        .collect();
    ensure!(named.len() == count, "two objects of one name");
    Ok(named)
}

fn read(cluster: &Cluster, text: &str) -> Result<Objects> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("objects.yaml");
    fs::write(&file, text)?;
    by_name(manifests::objects(cluster, &file)?)
}

fn kustomized(cluster: &Cluster, folder: &str) -> Result<Objects> {
    read(cluster, &cluster.kubectl(&["kustomize", folder])?)
}

/// What hack/manifests prints.
fn printed(cluster: &Cluster, arguments: &[&str]) -> Result<Objects> {
    let script = checkout().join("hack/manifests");
    let output = Command::new(script).args(arguments).output()?;
    ensure!(output.status.success(), "{output:?}");
    read(cluster, &String::from_utf8(output.stdout)?)
}

/// Says which objects differ, and how.
fn same(found: &Objects, wanted: &Objects) -> Result<()> {
    ensure!(
        found.keys().eq(wanted.keys()),
        "{:?} and not {:?}",
        found.keys(),
        wanted.keys()
    );
    for (name, object) in wanted {
        let other = &found[name];
        ensure!(other == object, "{name}: {other:#} and not {object:#}");
    }
    ensure!(wanted.len() > 20, "only {} objects", wanted.len());
    Ok(())
}

/// Validated as a real write, with all admission, and not stored.
fn accepted(cluster: &Cluster, objects: &Objects) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut objects: Vec<Value> = objects.values().cloned().collect();
    // A namespace that is not stored has no objects: the cluster's own has to do.
    for object in &mut objects {
        if let Some(namespace) = object.pointer_mut("/metadata/namespace") {
            *namespace = json!("highwire-system");
        }
    }
    let file = manifests::write(folder.path(), &objects)?;
    let file = file.to_str().context("not UTF-8")?;
    let options = ["--server-side", "--force-conflicts", "--dry-run=server"];
    let said = cluster.kubectl(&[&["apply"], &options[..], &["-f", file]].concat())?;
    ensure!(said.lines().count() == objects.len(), "{said}");
    Ok(())
}

async fn cluster() -> Result<Cluster> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    Ok(cluster)
}

#[apply(cluster_test)]
async fn apply_and_kustomize_read_the_same_of_deploy() -> Result<()> {
    let cluster = cluster().await?;
    // `apply -f deploy` skips the file without an extension, and the folders.
    let applied = by_name(manifests::objects(&cluster, Path::new("deploy"))?)?;
    same(&kustomized(&cluster, "deploy")?, &applied)?;
    same(&printed(&cluster, &[])?, &applied)
}

#[apply(cluster_test)]
async fn an_overlay_is_what_hack_manifests_prints() -> Result<()> {
    let cluster = cluster().await?;
    for (overlay, arguments) in [
        (
            "registry",
            &["--registry", "registry.example/team", "--tag", "v2"][..],
        ),
        ("namespace", &["--namespace", "edge"]),
        ("default-class", &["--default-class=false"]),
    ] {
        let made = kustomized(&cluster, &format!("hack/overlays/{overlay}")).context(overlay)?;
        same(&made, &printed(&cluster, arguments)?).context(overlay)?;
        accepted(&cluster, &made).context(overlay)?;
    }
    Ok(())
}

/// docs/kustomize.md: put what each overlay has beside `resources` into one file.
#[apply(cluster_test)]
async fn overlays_can_be_put_into_one() -> Result<()> {
    let cluster = cluster().await?;
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    fs::create_dir(root.join("deploy"))?;
    for entry in fs::read_dir(checkout().join("deploy"))? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().context("no name")?;
            fs::copy(&path, root.join("deploy").join(name))?;
        }
    }
    let mut text = "resources: [../deploy]\n".to_owned();
    let mut patches = "patches:\n".to_owned();
    for overlay in ["registry", "namespace", "default-class"] {
        let file = checkout().join("hack/overlays").join(overlay);
        let overlay = fs::read_to_string(file.join("kustomization.yaml"))?;
        for section in sections(&overlay) {
            if let Some(list) = section.strip_prefix("patches:\n") {
                patches += list;
            } else if !section.starts_with("resources:") {
                text += section;
            }
        }
    }
    fs::create_dir(root.join("all"))?;
    fs::write(root.join("all/kustomization.yaml"), text + &patches)?;
    let all = root.join("all");
    let made = kustomized(&cluster, all.to_str().context("not UTF-8")?)?;
    let wanted = printed(
        &cluster,
        &[
            "--registry=registry.example/team",
            "--tag=v2",
            "--namespace=edge",
            "--default-class=false",
        ],
    )?;
    same(&made, &wanted)
}

/// The fields of a kustomization, each with all of its lines.
fn sections(text: &str) -> impl Iterator<Item = &str> {
    let starts: Vec<usize> = std::iter::once(0)
        .chain(text.match_indices('\n').map(|(at, _)| at + 1))
        .filter(|at| text[*at..].starts_with(|first: char| first.is_ascii_lowercase()))
        .collect();
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([text.len()]).collect();
    starts
        .into_iter()
        .zip(ends)
        .map(|(start, end)| &text[start..end])
        .filter(|section| !section.starts_with("apiVersion:") && !section.starts_with("kind:"))
}

#[apply(cluster_test)]
async fn an_overlay_adds_flags_that_the_programs_know() -> Result<()> {
    let cluster = cluster().await?;
    let plain = kustomized(&cluster, "deploy")?;
    let mut made = kustomized(&cluster, "hack/overlays/flags")?;
    accepted(&cluster, &made)?;
    let template = "/spec/template/spec";
    for (kind, binary, added) in [
        ("DaemonSet", cluster.agent("n1")?.binary(), 2),
        ("Deployment", cluster.controller("c1")?.binary(), 1),
    ] {
        let (name, object) = made
            .iter_mut()
            .find(|(name, _)| name.contains(kind))
            .context(kind)?;
        let spec: PodSpec =
            serde_json::from_value(object.pointer(template).context("no template")?.clone())?;
        let arguments = spec.containers[0].args.clone().context("no arguments")?;
        let known = Command::new(binary)
            .args(&arguments)
            .arg("--version")
            .output()?;
        ensure!(known.status.success(), "{arguments:?}: {known:?}");
        ensure!(arguments[0] == "--log-format=json" && arguments.len() == 1 + added);
        // Nothing else differs.
        let before = plain[name].pointer(template).context("no template")?;
        let after = object.pointer_mut(template).context("no template")?;
        after["containers"][0]["args"] = before["containers"][0]["args"].clone();
    }
    same(&made, &plain)
}
