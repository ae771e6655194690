//! Structured logs on standard error: an event is a line, whatever others wrote into its texts.

use std::io::{self, Write};

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt as _};

use crate::printable::{printable, printable_json};

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
    subscriber(format, filter, io::stderr).init();
}

/// What writes the events that pass the filter, each as one line.
#[must_use]
pub fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    to: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let builder = builder
        .with_writer(Lines { format, to })
        // It would say so on the same standard error, and panic: on a full disk or without a
        // reader, lines are lost and nothing else.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => Box::new(builder.with_ansi(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

/// Makes what is written at once one line: tracing-subscriber writes each event whole, and of
/// others' texts it escapes neither line breaks nor marks of direction.
struct Lines<W> {
    format: LogFormat,
    to: W,
}

/// One event's.
struct Line<W> {
    format: LogFormat,
    to: W,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Lines<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line {
            format: self.format,
            to: self.to.make_writer(),
        }
    }
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let line = match self.format {
            LogFormat::Text => printable(text),
            LogFormat::Json => printable_json(text),
        };
        self.to.write_all((line + "\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{subscriber::with_default, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_others_wrote_into_it() {
        let forged = "a\n2026-01-02T03:04:05Z  INFO forged\r\u{1b}[2J\u{9b}31m\u{202e}b";
        for format in [LogFormat::Text, LogFormat::Json] {
            let log = Log::default();
            let to = log.clone();
            let filter = EnvFilter::new("info");
            with_default(subscriber(format, filter, move || to.clone()), || {
                warn!(object = forged, shown = %forged, debug = ?forged, "said: {forged}");
            });
            let bytes = log.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            assert_eq!(line, printable(line), "{format:?}");
            if format == LogFormat::Json {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(event["object"], forged, "the value is the same");
            }
        }
    }
}
