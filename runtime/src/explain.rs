//! The command `explain` of both programs: it asks the one that runs on this host, and
//! prints what that answers at `/explain`.

use std::{fmt, io, net::SocketAddr, time::Duration};

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    http::{self, Answer, Limits},
    printable::{printable_json, printable_lines},
};

/// 10,000 Services are some 3 MB.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(30),
    bytes: 256 << 20,
};

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Output {
    fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    /// The answer of `/explain`.
    pub fn respond<T: fmt::Display + Serialize>(self, answer: &T) -> Response {
        match self {
            Self::Text => {
                let text = printable_lines(&answer.to_string());
                (text + "\n").into_response()
            }
            Self::Json => match serde_json::to_string_pretty(answer) {
                Ok(json) => {
                    let kind = [(header::CONTENT_TYPE, "application/json")];
                    (kind, printable_json(&json) + "\n").into_response()
                }
                Err(error) => {
                    let text = format!("cannot write the answer as JSON: {error}\n");
                    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
                }
            },
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// Nothing answers.
    #[error(
        "cannot ask {address}: {source}; does it run on this host, or in this Pod, with another --port?"
    )]
    NoAnswer {
        /// Where it was looked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// It says why it does not.
    #[error("{0}")]
    Refused(String),
}

/// Asks the program whose admin port this is for `about`, `key=value` with characters that a
/// URL takes as they are.
///
/// # Errors
/// If it does not answer, or answers with an error.
pub async fn explain(
    port: u16,
    output: Output,
    about: Option<&str>,
) -> Result<String, ExplainError> {
    let about = about.map_or_else(String::new, |about| format!("&{about}"));
    let path = format!("/explain?output={}{about}", output.as_str());
    let mut failure = None;
    // It listens on the loopback addresses of the families that the host has.
    for address in [
        SocketAddr::from(([127, 0, 0, 1], port)),
        SocketAddr::from(([0u16, 0, 0, 0, 0, 0, 0, 1], port)),
    ] {
        match http::get(address, &path, LIMITS).await {
            Ok(Answer { status: 200, body }) => return Ok(body),
            Ok(Answer { body, .. }) => {
                return Err(ExplainError::Refused(body.trim_end().to_owned()));
            }
            Err(source) => {
                failure.get_or_insert(ExplainError::NoAnswer { address, source });
            }
        }
    }
    Err(failure.unwrap_or_else(|| ExplainError::Refused("no address to ask".to_owned())))
}
