//! What kube-proxy says of itself: its metrics and its health.

use highwire_agent::facts::service_proxy::{Syncs, health::Health};
use highwire_api::Family;

use crate::plain::assert_plain;

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(syncs) = Syncs::parse(&text) {
        for family in Family::ALL {
            let _ = (
                syncs.queued(family),
                syncs.last(family),
                syncs.spent(family),
            );
        }
    }
    if let Some(failing) = Health::parse(&text).and_then(|health| health.failing()) {
        assert_plain("why kube-proxy fails", &failing.to_string());
    }
}
