//! Metrics that both programs have.

pub mod process;

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Gauge, IntGauge, Opts, Registry};

use crate::{client::Silence, heartbeat::Heartbeat, watch::WatchHealth};

/// When something last happened, in seconds since 1970; 0 until it has. Clones share it.
#[derive(Clone, Debug)]
pub struct LastTime(Gauge);

impl LastTime {
    /// The metric under that name.
    ///
    /// # Errors
    /// If the name is not valid or taken.
    pub fn new(registry: &Registry, name: &str, help: &str) -> prometheus::Result<Self> {
        let gauge = Gauge::new(name, help)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Self(gauge))
    }

    /// It happens now.
    pub fn note(&self) {
        // A clock before 1970 says nothing, as if it had not happened.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.0.set(now.unwrap_or_default().as_secs_f64());
    }

    /// The time as it is shown.
    #[must_use]
    pub fn get(&self) -> f64 {
        self.0.get()
    }
}

/// Adds the metric that is always 1 and names the version of the program.
///
/// # Errors
/// If the name is not valid or taken.
pub fn add_build_info(registry: &Registry, name: &str, version: &str) -> prometheus::Result<()> {
    let help = "Always 1; the version of the program is a label";
    let gauge = IntGauge::with_opts(Opts::new(name, help).const_label("version", version))?;
    gauge.set(1);
    registry.register(Box::new(gauge))
}

/// Adds what is known of the connection to the API server, by names that begin with `prefix`:
/// for how long it has not answered, and for how long each watch has been failing.
///
/// # Errors
/// If that was added before.
pub fn add_connection(
    registry: &Registry,
    prefix: &str,
    health: &WatchHealth,
    heard: &Heartbeat,
) -> prometheus::Result<()> {
    let name = |suffix: &str| format!("{prefix}_{suffix}");
    let silence = Silence::new(&name("api_server_silence_seconds"), heard.clone())?;
    registry.register(Box::new(silence))?;
    let failing = health.failing_seconds(&name("watch_failing_seconds"))?;
    registry.register(Box::new(failing))
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn text(registry: &Registry) -> String {
        TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    #[test]
    fn the_version_is_a_label() {
        let registry = Registry::new();
        add_build_info(&registry, "x_build_info", "1.2.3").unwrap();
        assert!(text(&registry).contains("\nx_build_info{version=\"1.2.3\"} 1\n"));
    }

    #[test]
    fn a_time_is_0_until_it_happens_and_then_that_of_the_clock() {
        let registry = Registry::new();
        let last = LastTime::new(&registry, "x_timestamp_seconds", "x").unwrap();
        assert!(text(&registry).contains("\nx_timestamp_seconds 0\n"));
        let before = SystemTime::now();
        last.note();
        let after = SystemTime::now();
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((seconds(before)..=seconds(after)).contains(&last.get()));
    }
}
