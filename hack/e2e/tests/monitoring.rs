//! The alerts as Prometheus' own tools see them, and that alerts, documents and Pods fit
//! together. `mixed/monitoring.rs` has a real Prometheus scrape real programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use highwire_e2e::checkout;
use highwire_e2e::prometheus::{Target, documented_configuration, plain_rules, program};

/// When each alert fires.
const CASES: &str = include_str!("monitoring/alerts.yaml");

fn read(path: &str) -> Result<String> {
    fs::read_to_string(checkout().join(path)).with_context(|| path.to_owned())
}

fn promtool(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut promtool = Command::new(program("promtool")?);
    let output = promtool.current_dir(folder).args(arguments).output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// The names of all alerts.
fn alerts() -> Result<Vec<String>> {
    let rules = plain_rules()?;
    let lines = rules.lines().map(str::trim);
    let names = lines.filter_map(|line| line.strip_prefix("- alert: "));
    let names: Vec<String> = names.map(str::to_owned).collect();
    ensure!(names.len() > 5, "{names:?}");
    Ok(names)
}

#[test]
fn prometheus_accepts_the_plain_rules() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("rules.yaml"), plain_rules()?)?;
    promtool(folder.path(), &["check", "rules", "rules.yaml"])
}

#[test]
fn each_alert_fires_when_it_should_and_only_then() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("rules.yaml"), plain_rules()?)?;
    fs::write(folder.path().join("alerts.yaml"), CASES)?;
    promtool(folder.path(), &["test", "rules", "alerts.yaml"])?;
    for alert in alerts()? {
        let fires = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"");
        ensure!(CASES.contains(&fires), "no case in which {alert} fires");
    }
    Ok(())
}

#[test]
fn each_alert_has_words_and_a_section_to_turn_to() -> Result<()> {
    let (rules, document) = (plain_rules()?, read("docs/monitoring.md")?);
    for alert in alerts()? {
        let rule = rules.split("- alert: ").find(|rule| {
            let name = rule.lines().next();
            name == Some(alert.as_str())
        });
        let rule = rule.context("no rule")?;
        let runbook = format!("runbook: docs/monitoring.md#{}\n", alert.to_lowercase());
        for part in [
            "severity: ",
            "for: ",
            "summary: ",
            "description: ",
            &runbook,
        ] {
            ensure!(rule.contains(part), "{alert} has no {part}");
        }
        let heading = format!("\n### {alert}\n");
        let section = document.split_once(&heading);
        let (_, section) = section.with_context(|| format!("no section {alert}"))?;
        let section = section.split("\n### ").next().unwrap_or_default();
        for part in ["**Means:**", "**Users notice:**", "**Look at:**", "**Do:**"] {
            ensure!(section.contains(part), "{alert} does not say {part}");
        }
        let row = format!("| [{alert}](#{}) |", alert.to_lowercase());
        ensure!(document.contains(&row), "no row of {alert}");
    }
    Ok(())
}

#[test]
fn prometheus_accepts_the_documented_configuration() -> Result<()> {
    let configuration = documented_configuration(&[Target {
        address: "192.0.2.11:9807".parse()?,
        component: "agent",
        pod: "highwire-agent-x".to_owned(),
        node: "n1".to_owned(),
    }])?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("prometheus.yaml"), configuration)?;
    fs::write(folder.path().join("highwire.rules.yaml"), plain_rules()?)?;
    promtool(folder.path(), &["check", "config", "prometheus.yaml"])
}

/// The labels, the port's name and its number are the same in all three.
#[test]
fn pod_monitors_and_annotations_fit_the_pods() -> Result<()> {
    let monitors = read("deploy/monitoring/podmonitor.yaml")?;
    for (component, file, port) in [
        ("agent", "deploy/30-agent-daemonset.yaml", 9807),
        ("controller", "deploy/31-controller-deployment.yaml", 9808),
    ] {
        let pods = read(file)?;
        let labels = format!(
            "matchLabels:\n      app.kubernetes.io/name: highwire\n      \
             app.kubernetes.io/component: {component}\n"
        );
        ensure!(pods.contains(&labels), "{file} has other labels");
        ensure!(monitors.contains(&labels), "no PodMonitor of {component}");
        let named = format!("- name: admin\n              containerPort: {port}\n");
        ensure!(pods.contains(&named), "{file}: {named}");
        let annotated = format!("prometheus.io/port: \"{port}\"\n");
        ensure!(pods.contains(&annotated), "{file}: {annotated}");
    }
    let (monitored, all) = (
        monitors.matches("- port: admin\n").count(),
        monitors.matches("kind: PodMonitor\n").count(),
    );
    ensure!((monitored, all) == (2, 2));
    Ok(())
}
