//! The host's listeners, read again when it matters.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use highwire_api::{PortKey, ServiceKey};

use super::{
    hold_down::{Held, HoldDown},
    listeners::{self, Ephemeral, Listener, Patience},
};

/// A listener that comes or goes is found within twice this time (the event loop
/// turns as often). Until then the
/// kernel's own rule (`socket`) already gives it its connections.
const SCAN_EVERY: Duration = Duration::from_secs(4);

/// The listeners as last read, and those of late.
#[derive(Debug)]
pub struct Sockets {
    found: Vec<Listener>,
    held: Vec<Held>,
    hold_down: HoldDown,
    patience: Patience,
    scanned: Option<(Instant, u64)>,
    failure: Option<String>,
}

impl Sockets {
    /// Nothing is read yet. Who leaves keeps its port for `hold`.
    #[must_use]
    pub fn new(hold: Duration) -> Self {
        Self {
            found: Vec::new(),
            held: Vec::new(),
            hold_down: HoldDown::new(hold),
            patience: Patience::default(),
            scanned: None,
            failure: None,
        }
    }

    /// The listeners, and those that are gone and keep their ports. They are read anew if what Services ask for has changed
    /// (`revision`), or after [`SCAN_EVERY`].
    pub fn current(&mut self, revision: u64, now: Instant) -> (&[Listener], &[Held]) {
        let fresh = self.scanned.is_some_and(|(at, scanned)| {
            scanned == revision && now.duration_since(at) < SCAN_EVERY
        });
        if !fresh {
            self.scan(now);
            self.scanned = Some((now, revision));
        }
        (&self.found, &self.held)
    }

    /// Takes in which Services are served on ports that have a listener, because it is
    /// their own Pods'.
    pub fn note(&mut self, beside: &BTreeMap<PortKey, BTreeSet<ServiceKey>>) {
        self.hold_down.note(beside);
    }

    fn scan(&mut self, now: Instant) {
        match listeners::scan() {
            Ok(found) => {
                if self.failure.take().is_some() {
                    info!("the host's sockets can be read again");
                }
                let ephemeral = Ephemeral::of_host();
                self.found = self.patience.settle(found, &ephemeral, now);
                // A client that is gone holds nothing.
                let servers = self
                    .found
                    .iter()
                    .filter(|one| !ephemeral.may_be_clients(one));
                self.held = self.hold_down.update(servers, now);
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
