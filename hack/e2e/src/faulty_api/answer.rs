//! Answers that refuse, in the words of kube-apiserver.

use std::time::Duration;

use http::{Response, StatusCode, header};
use serde_json::json;

use crate::faulty_api::request::{Asked, Verb};
use crate::faulty_api::rule::Refusal;

/// A body that is no JSON: a page as a load balancer in between serves it.
pub(super) const PAGE: &str = "<html><head><title>It works!</title></head></html>\n";

/// The event that ends a watch whose version is too old, as a line.
pub(super) fn gone_event() -> String {
    let object = status(410, "Expired", "too old resource version: 1 (2)");
    format!("{}\n", json!({ "type": "ERROR", "object": object }))
}

/// The status code of a refusal, and how it is said.
pub(super) fn refusal(refusal: Refusal, asked: &Asked) -> Response<String> {
    let Asked { resource, name, .. } = asked;
    let of_object = match name {
        Some(name) => format!("{resource} \"{name}\""),
        None => resource.clone(),
    };
    let verb = format!("{:?}", asked.verb).to_lowercase();
    let (code, reason, message) = match refusal {
        Refusal::TooManyRequests { retry_after } => {
            let text = "Too many requests, please try again later.\n";
            let wait = Duration::from_secs(retry_after.into()).as_secs();
            return text_answer(StatusCode::TOO_MANY_REQUESTS, text, Some(wait));
        }
        Refusal::NotFound => {
            return text_answer(StatusCode::NOT_FOUND, "404 page not found\n", None);
        }
        Refusal::InternalError => {
            let cause = "Internal error occurred: etcdserver: request timed out";
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                cause.to_owned(),
            )
        }
        Refusal::Unauthorized => (
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "Unauthorized".to_owned(),
        ),
        Refusal::Forbidden => (
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("{of_object} is forbidden: the user cannot {verb} resource \"{resource}\""),
        ),
        Refusal::Conflict if asked.verb == Verb::Create => (
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{of_object} already exists"),
        ),
        Refusal::Conflict => (
            StatusCode::CONFLICT,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {of_object}: the object has been modified; \
                 please apply your changes to the latest version and try again"
            ),
        ),
        Refusal::Gone => {
            let text = "The provided resource version is too old.";
            (StatusCode::GONE, "Expired", text.to_owned())
        }
    };
    let body = status(code.as_u16(), reason, &message);
    answer(code, "application/json", body.to_string(), None)
}

fn status(code: u16, reason: &str, message: &str) -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn text_answer(code: StatusCode, text: &str, retry_after: Option<u64>) -> Response<String> {
    answer(
        code,
        "text/plain; charset=utf-8",
        text.to_owned(),
        retry_after,
    )
}

/// An answer with that body.
pub(super) fn answer(
    code: StatusCode,
    kind: &'static str,
    body: String,
    retry_after: Option<u64>,
) -> Response<String> {
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn a_refusal_names_what_was_asked_for() {
        let path = "/api/v1/namespaces/shop/services/web/status";
        let asked = Asked::of(&Method::PATCH, path, "");
        let forbidden = refusal(Refusal::Forbidden, &asked);
        assert_eq!(forbidden.status(), 403);
        assert!(
            forbidden
                .body()
                .contains("services/status \\\"web\\\" is forbidden")
        );
        let throttled = refusal(Refusal::TooManyRequests { retry_after: 3 }, &asked);
        assert_eq!(throttled.headers()[header::RETRY_AFTER], "3");
        assert!(gone_event().ends_with("}\n"));
    }
}
