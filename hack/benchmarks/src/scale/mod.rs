//! Many nodes and many Services.

use anyhow::Result;
use highwire_e2e::Cluster;

use crate::Effort;
use crate::output::counts::Counts;
use crate::output::document::Document;

/// Measures what grows with nodes and Services.
pub(crate) async fn measure(
    _cluster: &Cluster,
    _effort: Effort,
    _counts: &mut Counts,
) -> Result<Document> {
    Ok(Document::new("scale", "Scale"))
}
