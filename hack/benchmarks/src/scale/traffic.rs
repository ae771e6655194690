//! Counts the requests that a client makes, by verb and resource.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Request};
use kube::Client;
use kube::client::Body;
use tower::service_fn;

/// How many requests were made; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic(Arc<Mutex<BTreeMap<String, usize>>>);

impl Traffic {
    /// The same client, whose requests are counted here.
    pub(super) fn counted(&self, client: Client) -> Client {
        let traffic = self.clone();
        let send = move |request: Request<Body>| {
            traffic.count(request.method(), request.uri().path());
            let client = client.clone();
            async move { client.send(request).await }
        };
        Client::new(service_fn(send), "default")
    }

    fn count(&self, method: &Method, path: &str) {
        if let Some(resource) = resource(path) {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(format!("{method} {resource}")).or_default() += 1;
        }
    }

    /// How many requests of a verb and resource, such as `PATCH services/status`, there were.
    pub(super) fn of(&self, what: &str) -> usize {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(what).copied().unwrap_or_default()
    }
}

/// The resource in a path of the API, with its subresource.
fn resource(path: &str) -> Option<String> {
    let mut parts = path.trim_matches('/').split('/').peekable();
    match parts.next()? {
        "api" => drop(parts.next()?),
        "apis" => drop((parts.next()?, parts.next()?)),
        _ => return None,
    }
    if parts.peek() == Some(&"namespaces") {
        parts.next();
        parts.next();
    }
    let (resource, _name) = (parts.next()?, parts.next());
    Some(match parts.next() {
        Some(subresource) => format!("{resource}/{subresource}"),
        None => resource.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_resource() {
        for (path, named) in [
            (
                "/api/v1/namespaces/a/services/b/status",
                Some("services/status"),
            ),
            (
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
                Some("leases"),
            ),
            (
                "/apis/highwire.dev/v1alpha1/loadbalancernodes/n/status",
                Some("loadbalancernodes/status"),
            ),
            ("/api/v1/nodes", Some("nodes")),
            ("/metrics", None),
        ] {
            assert_eq!(resource(path).as_deref(), named, "{path}");
        }
    }
}
