//! The name of a Service.

use std::{fmt, str::FromStr, sync::Arc};

use k8s_openapi::api::core::v1::Service;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Service's namespace and name, written `namespace/name`.
// Clones share the text: every decision names each Service several times.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
// Names have at most 63 and 253 characters.
#[schemars(with = "String", extend("maxLength" = 317, "pattern" = "^[^/]+/[^/]+$"))]
pub struct ServiceKey {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// The Service's name.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// The key of a Service object.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        Self {
            namespace: service
                .metadata
                .namespace
                .as_deref()
                .unwrap_or_default()
                .into(),
            name: service.metadata.name.as_deref().unwrap_or_default().into(),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> Self {
        key.to_string()
    }
}

impl FromStr for ServiceKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self {
                namespace: namespace.into(),
                name: name.into(),
            }),
            _ => Err(format!("{text:?} is not namespace/name")),
        }
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
