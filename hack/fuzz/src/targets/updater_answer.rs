//! What comes back from an updater on the wire: any bytes, from a real socket.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::Duration,
};

use highwire_api::external::spec::{Check, HttpUpdater};
use highwire_controller::external::{
    credentials::Credentials,
    updater::{Method, Updater, UpdaterError},
};
use serde_json::json;
use tokio::runtime;

use crate::plain::assert_plain;

const SECRET: &str = "s3cr3t-token";
/// Longer than any text of an error may be: its own words and 200 characters of the box's.
const LONGEST: usize = 600;

pub(super) fn run(input: &[u8]) {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else {
        return;
    };
    let Ok(at) = listener.local_addr() else {
        return;
    };
    let answer = input.to_vec();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut asked = [0; 4096];
        let length = stream.read(&mut asked).ok()?;
        stream.write_all(&answer).ok()?;
        Some(length)
    });
    let settings = HttpUpdater {
        url: format!("http://{at}/backends"),
        timeout_seconds: 5,
        ca_bundle: None,
        secret_ref: None,
        check: Check::None,
        resync_seconds: 300,
    };
    let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    let credentials = Credentials::Bearer(SECRET.to_owned());
    let sent = runtime.block_on(async {
        let updater = Updater::new(&settings, credentials)?;
        let body = json!({"backendName": "shop/web:80"});
        updater.send(&settings.url, Method::Post, &body).await
    });
    let _ = server.join();
    if let Err(error) = sent {
        let said = error.to_string();
        assert_plain("why an updater failed", &said);
        assert!(said.len() < LONGEST, "{said}");
        assert!(!said.contains(SECRET), "{said}");
        assert!(!matches!(error, UpdaterError::Timeout { .. }), "{said}");
    } else {
        assert!(
            is_success(input),
            "taken for done: {:?}",
            input.escape_ascii().to_string()
        );
    }
}

/// Whether the last status line is of a 2xx; those of 1xx come before it.
fn is_success(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let mut lines = text.lines();
    lines.any(|line| line.starts_with("HTTP/1.") && line.get(9..10) == Some("2"))
}
