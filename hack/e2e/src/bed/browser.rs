//! A real browser, without a window.

use anyhow::Result;

use crate::lab::netns::Netns;

/// How a page is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scripts {
    /// As in most browsers.
    On,
    /// As in a browser whose owner switched them off.
    Off,
}

/// The page at `url` once it is loaded and its scripts have run for a second, as HTML.
pub fn load(netns: &Netns, url: &str, scripts: Scripts) -> Result<String> {
    let home = tempfile::tempdir()?;
    let profile = format!("--user-data-dir={}", home.path().display());
    let mut argv = vec![
        "chromium-headless-shell",
        // It runs as root here.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        &profile,
        // The clock of the page, which jumps when there is nothing to wait for.
        "--virtual-time-budget=1000",
    ];
    if scripts == Scripts::Off {
        argv.push("--blink-settings=scriptEnabled=false");
    }
    argv.extend(["--dump-dom", url]);
    netns.check(&argv)
}
