//! What the kernel sends no news of, so that it is read again and again: sockets and
//! sysctls.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{
    listener_history::{ListenerHistory, Listeners},
    listeners,
    sysctls::Sysctls,
};

/// How long what was read is good. A listener that comes or goes is found within twice this
/// time (the agent's loop runs as often); until then the kernel's own rule (`socket`)
/// already gives it its connections.
pub const PERIOD: Duration = Duration::from_secs(4);

/// Sockets and sysctls as last read.
#[derive(Debug)]
pub struct Host {
    /// The listeners that count.
    pub listeners: Listeners,
    /// The sysctls.
    pub sysctls: Sysctls,
    /// Whence `listeners`.
    pub history: ListenerHistory,
    /// When, and at which revision of the Services.
    read: Option<(Instant, u64)>,
    failure: Option<String>,
}

impl Host {
    /// Nothing is read yet. A listener that is gone keeps its port for `hold_down`.
    #[must_use]
    pub fn new(hold_down: Duration) -> Self {
        Self {
            listeners: Listeners::default(),
            sysctls: Sysctls::default(),
            history: ListenerHistory::new(hold_down),
            read: None,
            failure: None,
        }
    }

    /// Reads anew if what Services ask for has changed (`revision`), or after [`PERIOD`].
    /// Says whether anything has changed.
    pub fn read_if_due(&mut self, revision: u64, now: Instant) -> bool {
        let is_good = |(at, read)| read == revision && now.duration_since(at) < PERIOD;
        if self.read.is_some_and(is_good) {
            return false;
        }
        self.read = Some((now, revision));
        let sysctls = Sysctls::read();
        let listeners = match listeners::scan() {
            Ok(found) => {
                if self.failure.take().is_some() {
                    info!("the host's sockets can be read again");
                }
                self.history.update(found, &sysctls.ephemeral, now)
            }
            Err(error) => {
                let message = error.to_string();
                if self.failure.as_ref() != Some(&message) {
                    warn!("conflicts with listeners are not reported: {message}");
                }
                self.failure = Some(message);
                self.listeners.clone()
            }
        };
        let changed = listeners != self.listeners || sysctls != self.sysctls;
        (self.listeners, self.sysctls) = (listeners, sysctls);
        changed
    }
}
