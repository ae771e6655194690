//! The names this program goes by.

/// `reportingController` of our Events.
pub(crate) const REPORTER: &str = "highwire.dev/controller";
