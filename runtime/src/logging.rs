//! Structured logs on standard error.

use tracing_subscriber::{EnvFilter, fmt};

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// kube logs every failed attempt, for which [`super::watch`] has one line.
const DEFAULT_FILTER: &str = "info,kube_client=off,kube_runtime=off";

/// Starts logging. The environment variable `RUST_LOG` is the filter (by default `info`,
/// without the lines of kube).
pub fn start(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would say so on the same standard error, and panic: on a full disk or without a
        // reader, lines are lost and nothing else.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
