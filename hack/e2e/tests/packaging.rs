//! What `hack/manifests` makes of `deploy/`, and what a release would do.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use highwire_e2e::checkout;

/// What a script of hack/ prints, and whether it succeeded.
fn run(script: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(checkout().join("hack").join(script))
        .args(arguments)
        .output()
        .with_context(|| format!("hack/{script}"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

/// The lines of hack/manifests that these arguments change, without indentation: before and
/// after.
fn changed(arguments: &[&str]) -> Result<(Vec<String>, Vec<String>)> {
    let (_, plain) = run("manifests", &[])?;
    let (done, text) = run("manifests", arguments)?;
    ensure!(done, "{text}");
    let mut new = text.lines().peekable();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for line in plain.lines() {
        // An added line stands before one that stays.
        while new.peek().is_some_and(|it| it.contains("--default-class")) {
            after.extend(new.next().map(|it| it.trim().to_owned()));
        }
        let now = new.next().context("lines are missing")?;
        if now != line {
            before.push(line.trim().to_owned());
            after.push(now.trim().to_owned());
        }
    }
    ensure!(new.next().is_none(), "there are lines too many");
    Ok((before, after))
}

#[test]
fn manifests_without_arguments_are_deploy() -> Result<()> {
    let (done, text) = run("manifests", &[])?;
    ensure!(done, "{text}");
    let mut files: Vec<_> = std::fs::read_dir(checkout().join("deploy"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    // What is in folders is applied by hand.
    files.retain(|path| path.is_file());
    files.sort();
    let mut wanted = String::new();
    for file in files {
        wanted += "---\n";
        wanted += &std::fs::read_to_string(file)?;
    }
    ensure!(text == wanted);
    Ok(())
}

#[test]
fn manifests_name_another_registry_and_tag() -> Result<()> {
    let (before, after) = changed(&["--registry", "registry.example:5000/team", "--tag=v2"])?;
    let version = env!("CARGO_PKG_VERSION");
    ensure!(
        before
            == ["agent", "controller"]
                .map(|it| format!("image: localhost/highwire-{it}:{version}")),
        "{before:?}"
    );
    ensure!(
        after
            == [
                "image: registry.example:5000/team/highwire-agent:v2",
                "image: registry.example:5000/team/highwire-controller:v2",
            ],
        "{after:?}"
    );
    Ok(())
}

#[test]
fn manifests_name_another_namespace_everywhere() -> Result<()> {
    let (before, after) = changed(&["--namespace", "edge"])?;
    let renamed: Vec<_> = before
        .iter()
        .map(|line| line.replace("highwire-system", "edge"))
        .collect();
    ensure!(after == renamed, "{after:?}");
    let (_, text) = run("manifests", &["--namespace", "edge"])?;
    ensure!(!text.contains("highwire-system"));
    ensure!(text.contains("system:serviceaccounts:edge"));
    Ok(())
}

#[test]
fn manifests_leave_services_without_a_class_to_others() -> Result<()> {
    let (before, after) = changed(&["--default-class=false"])?;
    ensure!(before.is_empty(), "{before:?}");
    ensure!(after == ["- --default-class=false"; 2], "{after:?}");
    Ok(())
}

#[test]
fn manifests_refuse_what_is_no_name() -> Result<()> {
    for arguments in [
        &["--namespace", "a b"][..],
        &["--registry", "x|y"],
        &["--tag", ""],
        &["--tag"],
        &["--default-class=maybe"],
        &["--unknown"],
    ] {
        let (done, text) = run("manifests", arguments)?;
        ensure!(!done, "{arguments:?}: {text}");
        ensure!(text.starts_with("manifests: "), "{arguments:?}: {text}");
    }
    Ok(())
}

/// Everything but images, in a clone: this checkout stays as it is.
#[test]
fn a_release_names_one_version_everywhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("out");
    let at = output.to_str().context("not UTF-8")?;
    let registry = ["--registry", "registry.example/team"];
    let options = [
        &["99.1.0", "--dry-run", "--no-images", "--output", at][..],
        &registry,
    ]
    .concat();
    let (done, text) = run("release", &options)?;
    ensure!(done, "{text}");
    let read = |name: &str| std::fs::read_to_string(output.join(name));
    let manifests = read("highwire-99.1.0.yaml")?;
    for program in ["agent", "controller"] {
        let image = format!("image: registry.example/team/highwire-{program}:99.1.0\n");
        ensure!(manifests.contains(&image), "no {image}");
    }
    ensure!(read("CHANGES.md")?.contains("- "), "no changes are listed");
    ensure!(read("SHA256SUMS")?.lines().count() == 2);
    let (done, text) = run("release", &options)?;
    ensure!(!done && text.contains("exists already"), "{text}");
    Ok(())
}

#[test]
fn a_release_needs_a_version_and_a_registry() -> Result<()> {
    for arguments in [&["v1", "--registry", "r"][..], &["1.0.0"], &[]] {
        let (done, text) = run("release", arguments)?;
        ensure!(!done && text.starts_with("release: "), "{text}");
    }
    Ok(())
}
