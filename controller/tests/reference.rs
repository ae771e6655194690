//! docs/reference.md lists every flag and every metric. It is written anew by
//! `HIGHWIRE_WRITE_REFERENCE=1 cargo test -p highwire-controller --test reference`.

use std::{collections::BTreeMap, env, fmt::Write, fs, path::Path};

use anyhow::{Context, Result, ensure};
use clap::{Arg, ArgAction, Command};
use highwire_runtime::{catalog::Described, client::Silence, heartbeat::Heartbeat};
use prometheus::Registry;

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

/// Those that were described, and those that are registered by other means and have values.
fn metrics(text: &mut String, title: &str, registry: &Registry, described: &[Described]) {
    let gathered = registry.gather();
    let gathered = gathered.iter().map(|family| Described {
        name: family.name().to_owned(),
        kind: format!("{:?}", family.get_field_type()).to_lowercase(),
        labels: Vec::new(),
        help: family.help().to_owned(),
    });
    let all: BTreeMap<String, Described> = gathered
        .chain(described.iter().cloned())
        .map(|it| (it.name.clone(), it))
        .collect();
    let _ = writeln!(text, "## Metrics of {title}\n");
    text.push_str("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for Described {
        name,
        kind,
        labels,
        help,
    } in all.into_values()
    {
        let labels = quoted(labels.iter().map(String::as_str));
        let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {} |", cell(&help));
    }
    text.push('\n');
}

/// What the programs themselves register when they start.
fn register_silence(registry: &Registry, name: &str) -> Result<()> {
    let silence = Silence::new(name, Heartbeat::default())?;
    Ok(registry.register(Box::new(silence))?)
}

fn generated() -> Result<String> {
    let mut text = String::new();
    let mut agent = highwire_agent::config::command();
    agent.build();
    flags(&mut text, &agent, "highwire-agent", "##");
    let mut controller = highwire_controller::config::command();
    controller.build();
    flags(&mut text, &controller, "highwire-controller", "##");
    let of_agent = highwire_agent::metrics::Metrics::new()?;
    let registry = &of_agent.registry;
    register_silence(registry, "highwire_agent_api_server_silence_seconds")?;
    metrics(&mut text, "the agent", registry, &of_agent.described);
    let of_controller = highwire_controller::metrics::Metrics::new()?;
    let registry = &of_controller.registry;
    register_silence(registry, "api_server_silence_seconds")?;
    metrics(
        &mut text,
        "the controller",
        registry,
        &of_controller.described,
    );
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
