//! A node's report, as the controller reads it.

use highwire_api::LoadBalancerNode;
use highwire_controller::facts::node::{AgentReady, Report};
use kube::core::DeserializeGuard;

use crate::plain::assert_plain;

pub(super) fn run(input: &[u8]) {
    let Ok(object) = serde_json::from_slice::<DeserializeGuard<LoadBalancerNode>>(input) else {
        return;
    };
    let report = Report::of(&object);
    assert!(Report::differing(Some(&report), Some(&report)).is_empty());
    let all = Report::differing(Some(&report), None);
    assert_eq!(all.len(), report.refused.len());
    for conflicts in report.refused.values() {
        assert!(conflicts.is_sorted());
        for conflict in conflicts {
            assert_plain("who has a port", &conflict.held_by);
        }
    }
    match &report.agent {
        AgentReady::NotReady(text) | AgentReady::Unreadable(text) => {
            assert_plain("why it is not ready", text);
        }
        _ => {}
    }
    assert_plain("its message", &report.shown.message);
}
