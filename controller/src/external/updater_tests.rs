//! Against real TCP servers on 127.0.0.1, with TLS by certificates made for each test.

use std::process::Command;

use highwire_api::external::spec::Check;
use proptest::prelude::*;
use serde_json::json;
use tokio::time::timeout;

use super::*;
use authority::{Authority, named};
use server::{Answer, Lb, answer, header, ok};

#[path = "updater_tests/authority.rs"]
mod authority;
#[path = "updater_tests/server.rs"]
mod server;
#[path = "updater_tests/tls.rs"]
mod tls;

/// After this long a test has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "hidden-Secret+/=";

fn settings(url: &str) -> HttpUpdater {
    HttpUpdater {
        url: url.to_owned(),
        timeout_seconds: 30,
        ca_bundle: None,
        secret_ref: None,
        check: Check::None,
        resync_seconds: 300,
    }
}

fn token() -> Credentials {
    Credentials::Bearer(SECRET.to_owned())
}

async fn post(settings: &HttpUpdater, credentials: Credentials) -> Result<(), UpdaterError> {
    let updater = Updater::new(settings, credentials)?;
    send(&updater, &settings.url).await
}

async fn send(updater: &Updater, url: &str) -> Result<(), UpdaterError> {
    let body = json!({"backendName": "default/web:80"});
    timeout(PATIENCE, updater.send(url, Method::Post, &body))
        .await
        .unwrap()
}

/// The error of one request to a box that answers so.
async fn error_of(answer: Vec<u8>) -> UpdaterError {
    let lb = Lb::start(Answer::Bytes(answer)).await;
    post(&settings(&lb.url()), token()).await.unwrap_err()
}

// --- Answers.

#[tokio::test]
async fn a_2xx_is_success_whatever_the_body_is() {
    for bytes in [
        ok(r#"{"err": "ignored"}"#),
        answer(
            "201 Created",
            "Content-Type: application/json\r\n",
            b"{\xff\0not json",
        ),
        answer("204 No Content", "", ""),
        // It announces more than it sends.
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_vec(),
    ] {
        let lb = Lb::start(Answer::Bytes(bytes)).await;
        let updater = Updater::new(&settings(&lb.url()), Credentials::None).unwrap();
        let (url, body) = (lb.url(), json!({"backendName": "a"}));
        for method in [Method::Post, Method::Delete] {
            let sent = updater.send(&url, method, &body);
            assert_eq!(timeout(PATIENCE, sent).await.unwrap(), Ok(()));
        }
        let [post, delete] = lb.seen().try_into().unwrap();
        assert!(
            post.head.starts_with("POST /api/v1/lb HTTP/1.1\r\n"),
            "{post:?}"
        );
        assert!(
            delete.head.starts_with("DELETE /api/v1/lb HTTP/1.1\r\n"),
            "{delete:?}"
        );
        for request in [post, delete] {
            assert_eq!(request.body, r#"{"backendName":"a"}"#);
            assert_eq!(
                header(&request.head, "content-type"),
                Some("application/json")
            );
            assert_eq!(header(&request.head, "authorization"), None);
        }
    }
}

#[tokio::test]
async fn what_the_box_says_is_shown_escaped_and_cut() {
    let long = "é".repeat(300);
    let cut = format!("the updater answered 500: {}…", "é".repeat(199));
    for (body, expected) in [
        (
            r#"{"err": "disk full"}"#.to_owned(),
            "the updater answered 500: disk full",
        ),
        (
            r#"{"err": "two\nlines\u001b[31m"}"#.to_owned(),
            r"the updater answered 500: two\nlines\u{1b}[31m",
        ),
        (r#"{"err": ""}"#.to_owned(), "the updater answered 500"),
        (
            r#"{"err": 5}"#.to_owned(),
            r#"the updater answered 500: {"err": 5}"#,
        ),
        (
            "\r\n <html>it's \x1b[31m\x07\u{202e}</html>\r\n<p>".to_owned(),
            r"the updater answered 500: <html>it's \u{1b}[31m\u{7}\u{202e}</html>",
        ),
        (String::new(), "the updater answered 500"),
        (long, cut.as_str()),
        (
            format!(r#"{{"err": "bad token {SECRET}"}}"#),
            "the updater answered 500: bad token ***",
        ),
    ] {
        let error = error_of(answer("500 Internal Server Error", "", body)).await;
        assert_eq!(error.to_string(), expected);
        assert!(!error.is_unauthorized());
    }
}

#[tokio::test]
async fn a_status_says_whether_the_credentials_are_wrong() {
    for (status, unauthorized) in [(400, false), (401, true), (403, true), (404, false)] {
        let error = error_of(answer(&format!("{status} No"), "", "no")).await;
        let message = "no".to_owned();
        assert_eq!(error, UpdaterError::Refused { status, message });
        assert_eq!(error.is_unauthorized(), unauthorized, "{status}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Lb::start(Answer::Bytes(ok(""))).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}\r\n", elsewhere.url());
        let error = error_of(answer(&format!("{status} Moved"), &location, "")).await;
        assert_eq!(error, UpdaterError::Redirect { status });
        let text = error.to_string();
        assert!(
            text.contains("with a Location, and redirects are not followed"),
            "{text}"
        );
        assert!(!text.contains(&elsewhere.address.to_string()), "{text}");
    }
    assert_eq!(elsewhere.seen().len(), 0);
    let error = error_of(answer("304 Not Modified", "", "")).await;
    assert_eq!(error.to_string(), "the updater answered 304");
}

#[tokio::test]
async fn an_answer_is_not_read_whole() {
    const HUGE: usize = 64 * 1024 * 1024;
    for (status, success) in [("200 OK", true), ("500 Oh", false)] {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {HUGE}\r\n\r\n");
        let mut lb = Lb::start(Answer::Flood(head.into_bytes(), HUGE)).await;
        let result = post(&settings(&lb.url()), Credentials::None).await;
        assert_eq!(result.is_ok(), success, "{result:?}");
        let written = timeout(PATIENCE, lb.floods.recv()).await.unwrap().unwrap();
        assert!(written < HUGE, "{written} bytes were taken");
    }
}

// --- No answer.

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    let silent = Lb::start(Answer::Bytes(Vec::new())).await;
    for url in [silent.url(), silent.https()] {
        let settings = HttpUpdater {
            timeout_seconds: 1,
            ..settings(&url)
        };
        let error = post(&settings, token()).await.unwrap_err();
        let place = url.trim_end_matches("/api/v1/lb");
        let expected = format!("the updater at {place} did not answer within 1 s");
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn an_error_counts_though_its_body_breaks_off() {
    let half = b"HTTP/1.1 503 Oh\r\nContent-Length: 100\r\n\r\nbusy".to_vec();
    let lb = Lb::start(Answer::Bytes(half)).await;
    let settings = HttpUpdater {
        timeout_seconds: 1,
        ..settings(&lb.url())
    };
    let error = post(&settings, token()).await.unwrap_err();
    assert_eq!(error.to_string(), "the updater answered 503: busy");
}

#[tokio::test]
async fn nothing_is_sent_twice() {
    let lb = Lb::start(Answer::CloseAfterFirst).await;
    let updater = Updater::new(&settings(&lb.url()), token()).unwrap();
    assert_eq!(send(&updater, &lb.url()).await, Ok(()));
    let error = send(&updater, &lb.url()).await.unwrap_err();
    assert!(matches!(error, UpdaterError::Broken { .. }), "{error:?}");
    assert_eq!(lb.seen().len(), 2);
}

#[tokio::test]
async fn what_is_not_http_is_named() {
    let error = error_of(b"220 mail.example ESMTP\r\n".to_vec()).await;
    let text = error.to_string();
    assert!(
        text.contains("gave no valid answer: invalid HTTP version"),
        "{text}"
    );
}

#[tokio::test]
async fn an_error_names_the_place_without_user_and_query() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let updater = Updater::new(&settings(&format!("http://{address}")), token()).unwrap();
    let url = format!("http://admin:{SECRET}@{address}/lb?key={SECRET}#{SECRET}");
    let url = url.replace("+/", "");
    let error = send(&updater, &url).await.unwrap_err();
    let expected = format!("cannot connect to the updater at http://{address}: connection refused");
    assert_eq!(error.to_string(), expected);
    assert!(!format!("{error:?} {updater:?}").contains("hidden"));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named() {
    let error = post(&settings("http://box.invalid:3000/"), token())
        .await
        .unwrap_err();
    let text = error.to_string();
    let start = "cannot connect to the updater at http://box.invalid:3000: ";
    assert!(text.starts_with(start) && text.contains("lookup"), "{text}");
}

#[test]
fn proxies_of_the_environment_are_not_used() {
    let closed = "http://127.0.0.1:1";
    let tests = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "external::updater::tests::a_2xx_is_success_whatever_the_body_is",
        ])
        .envs(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, closed)))
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&tests.stdout);
    assert!(
        tests.status.success() && output.contains("1 passed"),
        "{output}"
    );
}

// --- Credentials.

#[tokio::test]
async fn a_header_goes_to_the_own_place_only() {
    let lb = Lb::start(Answer::Bytes(ok(""))).await;
    let other = Lb::start(Answer::Bytes(ok(""))).await;
    let basic = |user: &str, password: &str| Credentials::Basic {
        user: user.to_owned(),
        password: password.to_owned(),
    };
    for (credentials, expected) in [
        (token(), format!("Bearer {SECRET}")),
        (
            basic("Aladdin", "open sesame"),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned(),
        ),
        (basic("", "é:"), "Basic OsOpOg==".to_owned()),
    ] {
        let updater = Updater::new(&settings(&lb.url()), credentials).unwrap();
        // The place counts, not the path; and a user in the URL is not used.
        let own = format!("http://user:{0}@{1}/old?x=y", "password", lb.address);
        let another = format!("http://user:password@{}/api/v1/lb", other.address);
        for url in [lb.url(), own, other.url(), another] {
            assert_eq!(send(&updater, &url).await, Ok(()));
        }
        for request in lb.seen().iter().rev().take(2) {
            assert_eq!(
                header(&request.head, "authorization"),
                Some(expected.as_str())
            );
        }
    }
    assert_eq!((lb.seen().len(), other.seen().len()), (6, 6));
    for request in other.seen() {
        assert_eq!(header(&request.head, "authorization"), None);
    }
}

#[tokio::test]
async fn another_scheme_is_another_place() {
    let plain = Lb::start(Answer::Bytes(ok(""))).await;
    let updater = Updater::new(&settings(&plain.https()), token()).unwrap();
    assert_eq!(send(&updater, &plain.url()).await, Ok(()));
    assert_eq!(header(&plain.seen()[0].head, "authorization"), None);
}

// --- Settings.

#[test]
fn settings_that_cannot_be_used_are_refused_with_a_remedy() {
    let good = settings("https://lb.example:3000/api/v1/lb");
    assert!(Updater::new(&good, Credentials::None).is_ok());
    for url in [
        "",
        "lb:3000",
        "ftp://lb",
        "http://",
        "unix:/run",
        "https://user@lb",
        "http://a:hidden@lb",
    ] {
        let error = Updater::new(&settings(url), token()).unwrap_err();
        assert!(matches!(error, UpdaterError::Url(_)), "{url}: {error:?}");
        assert!(error.to_string().contains(": write "), "{error}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
    let broken = "-----BEGIN CERTIFICATE-----\naGlkZGVu\n-----END CERTIFICATE-----\n";
    for bundle in ["", "rubbish", broken, "-----BEGIN CERTIFICATE-----\nhidden"] {
        let settings = HttpUpdater {
            ca_bundle: Some(bundle.to_owned()),
            ..good.clone()
        };
        let error = Updater::new(&settings, Credentials::None).unwrap_err();
        assert_eq!(error, UpdaterError::CaBundle, "{bundle}");
    }

    let authority = Authority::new("ours");
    let (certificate, key) = authority.sign(&named("controller"));
    let (_, other) = authority.sign(&named("controller"));
    for (certificate, key, expected) in [
        ("", key.as_str(), "tls.crt cannot be read"),
        (broken, key.as_str(), "do not belong together"),
        (key.as_str(), key.as_str(), "tls.crt cannot be read"),
        (certificate.as_str(), "hidden", "tls.key cannot be read"),
        (
            certificate.as_str(),
            certificate.as_str(),
            "tls.key cannot be read",
        ),
        (
            certificate.as_str(),
            other.as_str(),
            "do not belong together",
        ),
    ] {
        let credentials = Credentials::Certificate {
            certificate_pem: certificate.as_bytes().to_vec(),
            key_pem: key.as_bytes().to_vec(),
        };
        let error = Updater::new(&good, credentials).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(expected) && text.contains(": write "),
            "{text}"
        );
        assert!(!format!("{text} {error:?}").contains("hidden"), "{text}");
    }
}

#[test]
fn nothing_shows_a_secret() {
    for credentials in [
        token(),
        Credentials::Basic {
            user: SECRET.to_owned(),
            password: SECRET.to_owned(),
        },
    ] {
        let updater = Updater::new(&settings("http://lb:3000/path?key=x"), credentials).unwrap();
        assert_eq!(format!("{updater:?}"), "Updater(http://lb:3000)");
        // The header that was sent, repeated by the box.
        let header = updater.authorization.as_ref().unwrap().to_str().unwrap();
        let sent = header.split_once(' ').unwrap().1;
        let shown = message(format!("bad {sent} {SECRET}").as_bytes(), &updater.secrets);
        assert_eq!(shown, "bad *** ***");
        assert!(!format!("{:?}", updater.authorization).contains(sent));
    }
}

proptest! {
    /// Whatever a box answers, what is shown of it is short and can be printed.
    #[test]
    fn any_answer_can_be_shown(body: Vec<u8>, err: String) {
        let json = json!({ "err": err }).to_string().into_bytes();
        for body in [body, err.into_bytes(), json] {
            let shown = message(&body, &[]);
            prop_assert!(shown.chars().count() <= 200);
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}
