//! Texts for errors of the API server, with the remedy where there is one. What it quotes of
//! others is escaped.

use kube::core::Status;

use crate::printable::printable;

/// Why a request failed and what to do about it.
#[must_use]
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => explain_status(status),
        other => with_sources(other),
    }
}

/// Why the API server refused a request and what to do about it.
#[must_use]
pub fn explain_status(status: &Status) -> String {
    let remedy = match status.code {
        401 => "; is the ServiceAccount token valid?",
        403 => "; was the RBAC of deploy/ applied?",
        404 => "; was all of deploy/ applied?",
        _ => "",
    };
    format!("{}{remedy}", printable(&status.message))
}

/// An error with its causes, which kube's own text leaves out.
#[must_use]
pub fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_quotes_is_escaped() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "status": "Failure", "code": 403, "reason": "Forbidden",
            "message": "no \u{202e}\nsuch",
        }))
        .unwrap();
        let text = explain(&kube::Error::Api(Box::new(status)));
        assert_eq!(
            text,
            "no \\u{202e}\\nsuch; was the RBAC of deploy/ applied?"
        );
        let io = std::io::Error::other("line\u{1b}[2J\n");
        assert_eq!(with_sources(&io), "line\\u{1b}[2J\\n");
    }
}
