//! Lease → fact.

use std::time::Duration;

use highwire_api::{
    ResourceVersion,
    names::{AGENT_LEASE_DURATION, OBSERVED_VERSION_ANNOTATION, REPORT_VERSION_ANNOTATION},
};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

/// What matters of a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFacts {
    /// Who holds it, if anybody does.
    pub holder: Option<String>,
    /// When it was renewed, by the clock of its holder.
    pub renewed: Option<Timestamp>,
    /// How long a renewal is good for.
    pub duration: Duration,
    /// The version up to which every Service event is in the node's kernel.
    pub observed: Option<ResourceVersion>,
    /// The version of the report that goes with `observed`; `None` of an agent that does
    /// not say.
    pub report: Option<ResourceVersion>,
}

impl LeaseFacts {
    /// Reads a Lease.
    #[must_use]
    pub fn of(lease: &Lease) -> Self {
        let spec = lease.spec.as_ref();
        let seconds = spec
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0);
        let annotations = lease.metadata.annotations.as_ref();
        let version = |name| annotations?.get(name)?.parse().ok();
        let holder = spec.and_then(|spec| spec.holder_identity.clone());
        Self {
            holder: holder.filter(|name| !name.is_empty()),
            renewed: spec
                .and_then(|spec| spec.renew_time.as_ref())
                .map(|time| time.0),
            duration: seconds.map_or(AGENT_LEASE_DURATION, Duration::from_secs),
            observed: version(OBSERVED_VERSION_ANNOTATION),
            report: version(REPORT_VERSION_ANNOTATION),
        }
    }
}
