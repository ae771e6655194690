//! The names this program goes by.

/// Field manager of our writes, by which [`crate::index`] tells later that an
/// ingress is our work. Changing it orphans what is written.
pub(crate) const FIELD_MANAGER: &str = "highwire-controller";

/// `reportingController` of our Events.
pub(crate) const REPORTER: &str = "highwire.dev/controller";
