//! Errors of the API server in words, with the remedy where there is one.

use highwire_api::runtime::watch::with_sources;

/// What failed and what to do about it.
pub(crate) fn explain(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else {
        return with_sources(error);
    };
    let remedy = match status.code {
        401 => "; is the ServiceAccount token valid?",
        403 => "; was the RBAC of deploy/ applied?",
        404 => "; was the namespace of deploy/ applied?",
        _ => "",
    };
    format!("{}{remedy}", status.message)
}
