//! docs/reference.md lists every flag and every metric. It is written anew by
//! `HIGHWIRE_WRITE_REFERENCE=1 cargo test -p highwire-controller --test reference`.

use std::{collections::BTreeSet, env, fmt::Write, fs, iter, path::Path};

use anyhow::{Context, Result, ensure};
use clap::{Arg, ArgAction, Command};
use highwire_controller::metrics::Sending;
use highwire_runtime::{heartbeat::Heartbeat, watch::WatchHealth};
use prometheus::{
    IntCounter, Registry,
    proto::{LabelPair, Metric},
};

const BEGIN: &str = "<!-- what follows is generated -->\n";
const WRITE: &str = "HIGHWIRE_WRITE_REFERENCE";

/// A cell of a table, in one line.
fn cell(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

/// Backticks around each of them.
fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

/// What is to be written after the flag.
fn value(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        return quoted(possible.iter().map(clap::builder::PossibleValue::get_name));
    }
    let names = arg.get_value_names().unwrap_or_default();
    quoted(names.iter().map(AsRef::as_ref))
}

/// What holds without the flag.
fn default(arg: &Arg) -> String {
    let variable = arg.get_env().map(|name| format!("${}", name.display()));
    let values = arg.get_default_values().iter();
    let values = values.map(|value| value.display().to_string());
    let all: Vec<String> = variable.into_iter().chain(values).collect();
    let sources: Vec<String> = all.iter().map(|it| format!("`{it}`")).collect();
    match (sources.is_empty(), arg.is_required_set()) {
        (true, true) => "required".to_owned(),
        (false, true) => format!("{}; required", sources.join(", else ")),
        (_, false) => sources.join(", else "),
    }
}

fn row(arg: &Arg) -> String {
    let name = match arg.get_long() {
        Some(long) => match arg.get_short() {
            Some(short) => format!("`-{short}`, `--{long}`"),
            None => format!("`--{long}`"),
        },
        None => value(arg),
    };
    let value = if arg.is_positional() {
        String::new()
    } else {
        value(arg)
    };
    let help = arg.get_long_help().or(arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    format!(
        "| {name} | {value} | {} | {} |\n",
        cell(&default(arg)),
        cell(&help)
    )
}

fn flags(text: &mut String, command: &Command, path: &str, level: &str) {
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let _ = writeln!(text, "{level} {path}\n\n{}.\n", about.trim_end_matches('.'));
    let is_own = |arg: &&Arg| {
        let prints = [
            ArgAction::Help,
            ArgAction::HelpShort,
            ArgAction::HelpLong,
            ArgAction::Version,
        ];
        let action = arg.get_action();
        !arg.is_hide_set()
            && !prints
                .iter()
                .any(|it| format!("{it:?}") == format!("{action:?}"))
    };
    let rows: String = command.get_arguments().filter(is_own).map(row).collect();
    if !rows.is_empty() {
        text.push_str("| flag | value | default | meaning |\n|---|---|---|---|\n");
        text.push_str(&rows);
        text.push('\n');
    }
    let own = |it: &&Command| !it.is_hide_set() && it.get_name() != "help";
    for command in command.get_subcommands().filter(own) {
        flags(
            text,
            command,
            &format!("{path} {}", command.get_name()),
            "###",
        );
    }
}

/// The metrics that are registered and have a value.
fn metrics(text: &mut String, title: &str, registry: &Registry) {
    let _ = writeln!(text, "## Metrics of {title}\n");
    text.push_str("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for family in registry.gather() {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let labels = family.get_metric().first().map(Metric::get_label);
        let labels = quoted(labels.unwrap_or_default().iter().map(LabelPair::name));
        let (name, help) = (family.name(), cell(family.help()));
        let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
    }
    text.push('\n');
}

/// The agent's metrics, each with a value: a registry shows no others.
fn of_agent() -> Result<Registry> {
    let metrics = highwire_agent::metrics::Metrics::new()?;
    let health = WatchHealth::new(metrics.watch_errors.clone());
    health.begins("Service");
    metrics.add_connection(&health, &Heartbeat::default())?;
    metrics.drift_checks.with_label_values(&["same"]);
    metrics.show_conflicts(&[]);
    metrics.applied("replace", 0, None, 0.0);
    metrics.udp_swept(true);
    is_complete(&metrics.registry, "agent", "highwire_agent_")?;
    Ok(metrics.registry)
}

/// The controller's.
fn of_controller() -> Result<Registry> {
    let metrics = highwire_controller::metrics::Metrics::new()?;
    let health = WatchHealth::new(metrics.watch_errors.clone());
    health.begins("Service");
    metrics.add_connection(&health, &Heartbeat::default())?;
    metrics.event("NoReadyNodes", Sending::Sent);
    metrics.states(iter::empty(), iter::empty());
    metrics.conflicts(iter::empty());
    is_complete(&metrics.registry, "controller", "highwire_controller_")?;
    Ok(metrics.registry)
}

/// Fails if something is registered that has no value. A registry does not say what is in it, but
/// refuses another metric of that name; names are words in the package's metrics.rs.
fn is_complete(registry: &Registry, package: &str, prefix: &str) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(package);
    let source = fs::read_to_string(source.join("src/metrics.rs"))?;
    let shown: Vec<String> = registry
        .gather()
        .iter()
        .map(|it| it.name().to_owned())
        .collect();
    let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let words: BTreeSet<&str> = source.split('"').filter(is_name).collect();
    for word in words.into_iter().filter(|word| !word.is_empty()) {
        let name = format!("{prefix}{}", word.trim_start_matches(prefix));
        let other = IntCounter::new(&name, "another meaning")?;
        let is_shown = shown.contains(&name);
        let is_free = registry.register(Box::new(other.clone())).is_ok();
        if is_free {
            registry.unregister(Box::new(other))?;
        }
        ensure!(
            is_shown || is_free,
            "the metric {word} of the {package} has no value, so its meaning is not known; give \
             it one in this test"
        );
    }
    Ok(())
}

fn generated() -> Result<String> {
    let mut text = String::new();
    let mut agent = highwire_agent::config::command();
    agent.build();
    flags(&mut text, &agent, "highwire-agent", "##");
    let mut controller = highwire_controller::config::command();
    controller.build();
    flags(&mut text, &controller, "highwire-controller", "##");
    metrics(&mut text, "the agent", &of_agent()?);
    metrics(&mut text, "the controller", &of_controller()?);
    Ok(text.trim_end().to_owned() + "\n")
}

#[test]
fn the_reference_has_every_flag_and_metric() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let text = fs::read_to_string(&path)?;
    let parts = text.split_once(BEGIN);
    let (head, found) = parts.context("docs/reference.md has no marker")?;
    let wanted = format!("\n{}", generated()?);
    if env::var_os(WRITE).is_some() {
        return Ok(fs::write(&path, format!("{head}{BEGIN}{wanted}"))?);
    }
    ensure!(
        found == wanted,
        "docs/reference.md is not what the programs have; write it anew with \
         `{WRITE}=1 cargo test -p highwire-controller --test reference`"
    );
    Ok(())
}
