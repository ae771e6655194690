//! The host's listeners, read again when it matters.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::listeners::{self, Listener, Patience};

/// A listener that comes or goes is found within twice this time (the event loop
/// turns as often). Until then the
/// kernel's own rule (`socket`) already gives it its connections.
const SCAN_EVERY: Duration = Duration::from_secs(4);

/// The listeners as last read.
#[derive(Debug, Default)]
pub struct Sockets {
    found: Vec<Listener>,
    patience: Patience,
    scanned: Option<(Instant, u64)>,
    failure: Option<String>,
}

impl Sockets {
    /// The listeners. They are read anew if what Services ask for has changed
    /// (`revision`), or after [`SCAN_EVERY`].
    pub fn current(&mut self, revision: u64, now: Instant) -> &[Listener] {
        let fresh = self.scanned.is_some_and(|(at, scanned)| {
            scanned == revision && now.duration_since(at) < SCAN_EVERY
        });
        if !fresh {
            self.scan(now);
            self.scanned = Some((now, revision));
        }
        &self.found
    }

    fn scan(&mut self, now: Instant) {
        match listeners::scan() {
            Ok(found) => {
                if self.failure.take().is_some() {
                    info!("the host's sockets can be read again");
                }
                self.found = self
                    .patience
                    .settle(found, &listeners::ephemeral_ports(), now);
            }
            Err(error) => {
                let message = error.to_string();
                if self.failure.as_ref() != Some(&message) {
                    warn!("conflicts with listeners are not reported: {message}");
                }
                self.failure = Some(message);
            }
        }
    }
}
