//! What a client asks of the API server, read from a request's method and path.

use std::fmt;

use http::Method;
use serde::{Deserialize, Serialize};

/// What is asked for, in the words of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// One object.
    Get,
    /// All objects, or those that a selector picks.
    List,
    /// Every change from now on.
    Watch,
    /// A new object.
    Create,
    /// An object is replaced.
    Update,
    /// Fields of an object are changed.
    Patch,
    /// An object, or several, is to be deleted.
    Delete,
    /// Not about objects: `/version`, `/readyz`.
    Other,
}

impl Verb {
    /// Those that change something.
    pub const WRITING: [Self; 4] = [Self::Create, Self::Update, Self::Patch, Self::Delete];
    /// Those that change nothing.
    pub const READING: [Self; 3] = [Self::Get, Self::List, Self::Watch];
}

/// A request, as far as rules distinguish requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is asked for.
    pub verb: Verb,
    /// Of which resource: `services`, or `services/status` of a subresource. Empty if it is
    /// about none.
    pub resource: String,
    /// The name of the object, if it is about one.
    pub name: Option<String>,
}

impl Asked {
    /// Reads a request.
    #[must_use]
    pub fn of(method: &Method, path: &str, query: &str) -> Self {
        let mut parts = path.trim_matches('/').split('/');
        let is_api = match parts.next() {
            Some("api") => parts.next().is_some(),
            Some("apis") => parts.next().is_some() && parts.next().is_some(),
            _ => false,
        };
        let mut rest: Vec<&str> = parts.collect();
        // A Namespace is an object too: `/api/v1/namespaces/NAME` is about itself.
        if rest.len() > 2 && rest[0] == "namespaces" {
            rest.drain(..2);
        }
        let resource = match rest.as_slice() {
            [] => String::new(),
            [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
            [resource, ..] => (*resource).to_owned(),
        };
        let name = rest.get(1).map(ToString::to_string);
        let watches = query
            .split('&')
            .any(|it| it == "watch=true" || it == "watch=1");
        let verb = match (method.as_str(), &name) {
            _ if !is_api || resource.is_empty() => Verb::Other,
            ("GET", None) if watches => Verb::Watch,
            ("GET", None) => Verb::List,
            ("GET", Some(_)) => Verb::Get,
            ("POST", _) => Verb::Create,
            ("PUT", _) => Verb::Update,
            ("PATCH", _) => Verb::Patch,
            ("DELETE", _) => Verb::Delete,
            _ => Verb::Other,
        };
        Self {
            verb,
            resource,
            name,
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or_default();
        write!(f, "{:?} {} {name}", self.verb, self.resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, uri: &str) -> String {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Asked::of(&method, path, query).to_string()
    }

    #[test]
    fn a_request_is_read_as_rbac_reads_it() {
        let services = "/api/v1/services?limit=100";
        assert_eq!(read("GET", services), "List services ");
        let watch = "/api/v1/services?&watch=true&timeoutSeconds=40";
        assert_eq!(read("GET", watch), "Watch services ");
        let status = "/api/v1/namespaces/shop/services/web/status?";
        assert_eq!(read("PATCH", status), "Patch services/status web");
        let lease = "/apis/coordination.k8s.io/v1/namespaces/a/leases";
        assert_eq!(
            read("GET", &format!("{lease}/agent-n1")),
            "Get leases agent-n1"
        );
        assert_eq!(read("POST", lease), "Create leases ");
        assert_eq!(read("PUT", &format!("{lease}/x")), "Update leases x");
        assert_eq!(read("GET", "/api/v1/namespaces/a"), "Get namespaces a");
        assert_eq!(read("GET", "/api/v1/namespaces"), "List namespaces ");
        let report = "/apis/highwire.dev/v1alpha1/loadbalancernodes/n1/status";
        assert_eq!(read("PATCH", report), "Patch loadbalancernodes/status n1");
        assert_eq!(read("GET", "/version"), "Other  ");
        assert_eq!(read("GET", "/api/v1"), "Other  ");
    }
}
