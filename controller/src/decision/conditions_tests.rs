use highwire_api::{ClassPolicy, PortKey, Problem, Protocol};
use serde_json::json;

use super::*;
use crate::{
    decision::{eligibility::Ineligible, port_conflicts::Affected},
    facts::node::PortConflict,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A Service whose status is written as decided, second by second.
struct Case {
    service: ServiceFacts,
    second: i64,
}

impl Case {
    fn new() -> Self {
        let service = json!({"metadata": {}, "spec": {"type": "LoadBalancer"}});
        let service = serde_json::from_value(service).unwrap();
        Self {
            service: ServiceFacts::of(&service, ClassPolicy::DefaultAndOurs).unwrap(),
            second: 0,
        }
    }

    fn decide(&mut self, decision: &Decision) -> Difference {
        self.second += 1;
        let difference = Difference::between(&self.service, decision, at(self.second));
        let status = &mut self.service.status;
        status.ports_error = difference.ports_error.clone().or(status.ports_error.take());
        status.serving = difference.serving.clone().or(status.serving.take());
        difference
    }

    fn serving(&mut self, serving: Serving) -> Option<Condition> {
        let decision = Decision {
            serving: Some(serving),
            ..Decision::default()
        };
        self.decide(&decision).serving
    }

    fn conflicts(&mut self, nodes: &[&str], is_uncertain: bool) -> Option<Condition> {
        let conflict = PortConflict {
            port: PortKey::new(Protocol::Tcp, 80).unwrap(),
            held_by: "Service a/b".into(),
            reason: ConflictReason::HeldByService,
        };
        let affected = Affected {
            named: nodes.iter().map(|node| (*node).to_owned()).collect(),
            nodes: nodes.len(),
        };
        let certain = (!nodes.is_empty()).then_some((conflict, affected));
        let decision = Decision {
            conflicts: Some(PortConflicts {
                certain: certain.into_iter().collect(),
                is_uncertain,
            }),
            ..Decision::default()
        };
        self.decide(&decision).ports_error
    }
}

/// Status, reason and the second of the last transition.
fn says(condition: Option<Condition>) -> Option<(String, String, i64)> {
    let since = |condition: &Condition| condition.last_transition_time.0.as_second();
    condition.map(|it| (it.status.clone(), it.reason.clone(), since(&it)))
}

fn expected(status: &str, reason: &str, since: i64) -> Option<(String, String, i64)> {
    Some((status.to_owned(), reason.to_owned(), since))
}

#[test]
fn why_there_is_no_address_is_said_until_there_is_one() {
    let mut case = Case::new();
    assert_eq!(case.serving(Serving::Addresses), None, "never needed");
    assert_eq!(case.serving(Serving::NotOurs), None);
    assert_eq!(
        case.serving(Serving::PortsRefused),
        None,
        "the other condition says it"
    );
    let no_nodes = || Serving::NoAddress(NoAddress::NoNodes);
    assert_eq!(
        says(case.serving(no_nodes())),
        expected(FALSE, "NoNodes", 4)
    );
    assert_eq!(case.serving(no_nodes()), None);
    let problem = Problem::Unsupported {
        field: "spec.externalTrafficPolicy".into(),
        value: "Local".into(),
        remedy: "set something else".into(),
    };
    let unsupported = case
        .serving(Serving::Unsupported(vec![problem.clone()]))
        .unwrap();
    assert_eq!(unsupported.message, problem.to_string());
    assert_eq!(says(Some(unsupported)), expected(FALSE, "Unsupported", 4));
    assert_eq!(
        says(case.serving(Serving::PortsRefused)),
        expected(FALSE, "PortConflict", 4)
    );
    assert_eq!(
        says(case.serving(Serving::Addresses)),
        expected(TRUE, "Serving", 8)
    );
    let invalid = Serving::Invalid {
        problems: vec![problem],
        has_addresses: true,
    };
    assert_eq!(
        says(case.serving(invalid)),
        expected(TRUE, "InvalidSpec", 8)
    );
    assert_eq!(
        says(case.serving(Serving::NotOurs)),
        expected(FALSE, NOT_OURS, 10)
    );
}

#[test]
fn refused_ports_begin_as_true_and_end_as_false() {
    let mut case = Case::new();
    case.service.generation = Some(3);
    assert_eq!(case.conflicts(&[], false), None, "never needed");
    let first = case.conflicts(&["n1"], false);
    assert_eq!(first.as_ref().unwrap().observed_generation, Some(3));
    assert_eq!(says(first), expected(TRUE, "HeldByService", 2));
    assert_eq!(case.conflicts(&["n1"], false), None);
    case.service.generation = None;
    assert_eq!(
        case.conflicts(&["n1"], false),
        None,
        "nobody counts generations"
    );
    assert_eq!(
        says(case.conflicts(&["n1", "n2"], false)),
        expected(TRUE, "HeldByService", 2)
    );
    assert_eq!(refused_for(&case.service.status), Some("HeldByService"));
    assert_eq!(case.conflicts(&[], true), None, "it may still be refused");
    assert_eq!(
        says(case.conflicts(&[], false)),
        expected(FALSE, "NoPortConflicts", 7)
    );
    assert_eq!(case.conflicts(&[], true), None, "which begins nothing");
    assert_eq!(refused_for(&case.service.status), None);
}

#[test]
fn only_trouble_that_begins_waits() {
    let mut case = Case::new();
    let before = case.service.status.clone();
    let trouble = Decision {
        serving: Some(Serving::NoAddress(NoAddress::NoReadyNodes {
            nodes: vec![("n1".into(), Ineligible::NodeNotReady)],
        })),
        ..Decision::default()
    };
    assert!(case.decide(&trouble).begins_not_serving(&before));
    let before = case.service.status.clone();
    let over = Decision {
        serving: Some(Serving::Addresses),
        ..Decision::default()
    };
    assert!(!case.decide(&over).begins_not_serving(&before));
    let before = case.service.status.clone();
    assert!(
        !case.decide(&trouble).begins_not_serving(&before),
        "it is there already"
    );
}
