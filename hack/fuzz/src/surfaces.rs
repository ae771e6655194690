//! The laws about what people and programs read: logs, metrics, `explain`, the status page.

use std::{
    fmt::Display,
    io::{self, Write},
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{body::to_bytes, response::Response};
use futures::executor::block_on;
use highwire_runtime::{
    explain::Output,
    logging::{LogFormat, subscriber},
};
use html5gum::{Error, Token, Tokenizer};
use prometheus::{Registry, TextEncoder};
use serde::Serialize;
use serde_json::Value;
use tracing::subscriber::with_default;
use tracing_subscriber::EnvFilter;

use crate::plain::{assert_plain, assert_plain_lines};

/// What a page is made of: its tags with their attributes, and its texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Each opening tag with its attributes, and each closing one, in order.
    pub tags: Vec<(String, Vec<(String, String)>)>,
    /// The text between two tags, as a reader sees it.
    pub texts: Vec<String>,
    /// What is not as the standard has it.
    pub errors: Vec<Error>,
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs it and checks what it logs: in both formats, each event is one line that is plain.
/// It has to do the same each time.
pub fn logging_is_plain(mut run: impl FnMut()) {
    let lines = [LogFormat::Text, LogFormat::Json].map(|format| {
        let log = Log::default();
        let to = log.clone();
        let filter = EnvFilter::new("debug");
        with_default(subscriber(format, filter, move || to.clone()), &mut run);
        let mut bytes = log.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&mem::take(&mut *bytes)).into_owned();
        assert_plain_lines("the log", &text);
        if format == LogFormat::Json {
            for line in text.lines() {
                let event = serde_json::from_str::<Value>(line);
                assert!(event.is_ok_and(|it| it.is_object()), "no event: {line}");
            }
        }
        text.lines().count()
    });
    // JSON itself escapes line breaks.
    assert_eq!(lines[0], lines[1], "a line of the log that is no event");
}

/// Checks that the metrics, as they are scraped, are lines of which each is a sample or a
/// comment, and plain.
pub fn check_metrics(registry: &Registry) {
    let text = TextEncoder::new().encode_to_string(&registry.gather());
    let Ok(text) = text else {
        panic!("the metrics cannot be encoded: {text:?}");
    };
    for line in text.lines() {
        assert_plain("a metric", line);
        assert!(is_sample(line), "no sample: {line:?}");
    }
}

/// Whether a line is one of Prometheus' text format, with labels that need no escapes.
fn is_sample(line: &str) -> bool {
    let is_name = |text: &str| {
        let mut characters = text.chars();
        characters.all(|c| c.is_ascii_alphanumeric() || c == '_') && !text.is_empty()
    };
    if let Some(comment) = line.strip_prefix("# ") {
        let mut words = comment.split(' ');
        let is_comment = words
            .next()
            .is_some_and(|it| ["HELP", "TYPE"].contains(&it));
        return is_comment && words.next().is_some_and(is_name);
    }
    let Some((what, value)) = line.rsplit_once(' ') else {
        return false;
    };
    let (name, labels) = match what.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')),
        None => (what, Some("")),
    };
    let is_label = |pair: &str| {
        let pair = pair.split_once("=\"");
        pair.is_some_and(|(name, value)| {
            let value = value.strip_suffix('"');
            is_name(name) && value.is_some_and(|it| !it.contains(['"', '\\']))
        })
    };
    let are_labels = |labels: &str| labels.is_empty() || labels.split(',').all(is_label);
    is_name(name) && labels.is_some_and(are_labels) && value.parse::<f64>().is_ok()
}

/// Checks what `/explain` answers, as text and as JSON.
pub fn check_explained(answer: &(impl Display + Serialize)) {
    let text = body(Output::Text.respond(answer));
    assert_plain_lines("an explanation", &text);
    let json = body(Output::Json.respond(answer));
    assert_plain_lines("an explanation as JSON", &json);
    let value = serde_json::from_str::<Value>(&json);
    assert_eq!(value.ok(), serde_json::to_value(answer).ok(), "as JSON");
}

/// Checks the text of a page, and returns what it is made of.
pub fn check_page(response: Response) -> Page {
    let page = page(response);
    assert_eq!(page.errors, [], "no HTML");
    for (tag, attributes) in &page.tags {
        for (name, value) in attributes {
            assert_plain("an attribute", name);
            assert_plain(&format!("{name} of {tag}"), value);
        }
    }
    for text in &page.texts {
        assert_plain_lines("the page", text);
    }
    page
}

/// What a page is made of, as a browser reads it.
pub fn page(response: Response) -> Page {
    let html = body(response);
    let mut page = Page::default();
    for token in Tokenizer::new(&html) {
        let Ok(token) = token;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match token {
            Token::StartTag(tag) => {
                let attributes = tag.attributes.iter();
                let attributes = attributes.map(|(name, value)| (text(name), text(value)));
                page.tags.push((text(&tag.name), attributes.collect()));
            }
            Token::EndTag(tag) => page
                .tags
                .push((format!("/{}", text(&tag.name)), Vec::new())),
            Token::String(string) => page.texts.push(text(&string)),
            Token::Comment(comment) => panic!("a comment: {:?}", text(&comment)),
            Token::Doctype(_) => {}
            Token::Error(error) => page.errors.push(error.value),
        }
    }
    page
}

fn body(response: Response) -> String {
    let bytes = block_on(to_bytes(response.into_body(), usize::MAX));
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}
