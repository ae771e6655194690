//! Resource versions as ordered numbers.

use std::{fmt, num::ParseIntError, str::FromStr};

/// A `metadata.resourceVersion`, comparable within one resource type.
///
/// Resource versions of one type are ordered integers by contract since
/// Kubernetes 1.35 (KEP-5504), and were in practice before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion(pub u64);

impl ResourceVersion {
    /// The version of an object; `None` if it has none or it is no integer.
    #[must_use]
    pub fn of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Self> {
        meta.resource_version.as_deref()?.parse().ok()
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ResourceVersion {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_number_and_not_by_text() {
        let nine: ResourceVersion = "9".parse().unwrap();
        let ten: ResourceVersion = "10".parse().unwrap();
        assert!(nine < ten);
        assert!("abc".parse::<ResourceVersion>().is_err());
    }
}
