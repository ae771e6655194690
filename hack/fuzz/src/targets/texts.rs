//! Any text where others may write any: annotations, conditions, conflicts, Leases, what the
//! API server and nft say, beside names as long as the API server lets them be. It goes through
//! controller and agent to all places where people and programs read it.

use std::{io, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use highwire_agent::table::nft::NftError;
use highwire_runtime::errors::{explain_status, with_sources};
use kube::core::Status;
use serde::Deserialize;
use serde_json::Value;

use super::{cluster, plan};
use crate::{plain::assert_plain, surfaces};

/// The objects that each program knows, with this where a text goes.
const OBJECTS: &str = include_str!("texts.json");
const MARK: &str = "TEXT";
/// Between two texts of an input.
const BREAK: char = '\u{1e}';

#[derive(Deserialize)]
struct Objects {
    controller: Vec<Value>,
    agent: Value,
}

pub(super) fn run(input: &[u8]) {
    let input = String::from_utf8_lossy(input);
    let texts: Vec<&str> = input.split(BREAK).collect();
    let mut objects: Objects = serde_json::from_str(OBJECTS).expect("texts.json is what it is");
    let mut texts_in_turn = texts.iter().copied().cycle();
    for object in &mut objects.controller {
        fill(object, &mut texts_in_turn);
    }
    surfaces::logging_is_plain(|| cluster::lead(&objects.controller));
    fill(&mut objects.agent, &mut texts_in_turn);
    for words in objects.agent["leftOut"]
        .as_object_mut()
        .into_iter()
        .flatten()
    {
        // They are never those of others, but those of an error.
        *words.1 = said_by_nft(words.1.as_str().unwrap_or_default()).into();
    }
    plan::run(objects.agent.to_string().as_bytes());
    for text in texts {
        said_by_nft(text);
        assert_plain("an I/O error", &with_sources(&io::Error::other(text)));
        let status = Status::failure(text, "Forbidden").with_code(403);
        assert_plain("the API server's answer", &explain_status(&status));
    }
}

/// Puts the texts, in turn, where the mark is.
fn fill<'a>(value: &mut Value, texts: &mut impl Iterator<Item = &'a str>) {
    match value {
        Value::String(text) if text.contains(MARK) => {
            *text = text.replace(MARK, texts.next().unwrap_or_default());
        }
        Value::Array(values) => values.iter_mut().for_each(|it| fill(it, texts)),
        Value::Object(fields) => fields.values_mut().for_each(|it| fill(it, texts)),
        _ => {}
    }
}

fn said_by_nft(text: &str) -> String {
    let error = NftError::of("apply", ExitStatus::from_raw(1 << 8), text.as_bytes());
    let said = error.to_string();
    assert_plain("nft's error", &said);
    said
}
