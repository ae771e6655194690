//! Requests, connections and bytes through a node, by Highwire and by what else could carry
//! them.

use anyhow::Result;
use highwire_e2e::Cluster;

use crate::Effort;
use crate::output::counts::Counts;
use crate::output::document::Document;

/// Measures the data path.
pub(crate) async fn measure(
    cluster: &Cluster,
    _effort: Effort,
    _counts: &mut Counts,
) -> Result<Document> {
    let mode = cluster.config().proxy_modes.as_str();
    Ok(Document::new(&format!("data-path-{mode}"), "Data path"))
}
