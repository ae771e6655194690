//! A real browser, without a window.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::lab::http::http_send;
use crate::lab::netns::Netns;

/// The page at `url` once it is loaded and its scripts have run for a second, as HTML.
pub fn load(netns: &Netns, url: &str) -> Result<String> {
    let home = tempfile::tempdir()?;
    let profile = format!("--user-data-dir={}", home.path().display());
    netns.check(&[
        "chromium-headless-shell",
        // It runs as root here.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        &profile,
        // The clock of the page, which jumps when there is nothing to wait for.
        "--virtual-time-budget=1000",
        "--dump-dom",
        url,
    ])
}

/// The same without its scripts: saved as a file, which has none beside it. (The browser prints
/// no page when scripts are switched off.)
pub fn load_without_scripts(netns: &Netns, server: SocketAddr, path: &str) -> Result<String> {
    let accept = [("Accept", "text/html")];
    let limit = Duration::from_secs(5);
    let page = netns.run(|| http_send(server, ("GET", path), &accept, "", limit))?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("status.html");
    fs::write(&file, page.body)?;
    load(netns, &format!("file://{}", file.display()))
}
