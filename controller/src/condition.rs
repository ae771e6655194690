//! The condition `LoadBalancerPortsError` of a Service (KEP-1435): True while a live
//! node refuses it a port, or no node can serve its ports as it asks; False once that
//! is over. A Service that was never refused anything does not have it.

use highwire_api::{Problem, node::ConflictReason};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Service,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

use crate::{
    notice_text::shortened,
    refusals::{Refusals, SEVERAL},
};

/// The type of the condition, a constant of the Kubernetes API.
pub(crate) const PORTS_ERROR: &str = "LoadBalancerPortsError";

const TRUE: &str = "True";
const FALSE: &str = "False";
const RESOLVED: &str = "NoPortConflicts";
/// The reason when no node can do what the Service asks for.
const UNSUPPORTED: &str = "Unsupported";

/// What the condition is to be about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finding<'a> {
    /// These nodes refuse it, or none does.
    Refusals(&'a Refusals),
    /// No node can do what it asks for. Never empty.
    Unsupported(&'a [Problem]),
}

/// The condition as a Service's status has it.
pub(crate) fn stated(service: &Service) -> Option<Condition> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|found| found.type_ == PORTS_ERROR);
    found.cloned()
}

/// Whether the condition says that a port is refused.
pub(crate) fn is_true(stated: Option<&Condition>) -> bool {
    stated.is_some_and(|stated| stated.status == TRUE)
}

/// What the condition should say, if that is not what it says.
///
/// While a node that may refuse the Service is neither proven live nor dead, a True
/// condition stays as it is.
pub(crate) fn amended(
    stated: Option<&Condition>,
    finding: Finding<'_>,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Condition> {
    let (status, reason, message) = match finding {
        Finding::Unsupported(problems) => {
            let problems: Vec<String> = problems.iter().map(Problem::to_string).collect();
            (TRUE, UNSUPPORTED, shortened(problems.join("; ")))
        }
        Finding::Refusals(refusals) => match (is_true(stated), refusals.is_empty()) {
            (true, _) if !refusals.is_certain() => return None,
            (false, true) => return None,
            (_, false) => (TRUE, refusals.reason(), refusals.message()),
            (true, true) => (FALSE, RESOLVED, "no node refuses a port".to_owned()),
        },
    };
    let unmoved = stated.filter(|stated| stated.status == status);
    let wanted = Condition {
        type_: PORTS_ERROR.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        // The API server (1.36) counts no generations of Services yet.
        observed_generation: generation
            .or_else(|| stated.and_then(|stated| stated.observed_generation)),
        last_transition_time: unmoved.map_or(Time(now), |same| same.last_transition_time.clone()),
    };
    (stated != Some(&wanted)).then_some(wanted)
}

/// The reasons a True condition of ours can have, for metrics.
pub(crate) const REASONS: [&str; 8] = {
    let mut reasons = [SEVERAL; 8];
    reasons[ConflictReason::ALL.len()] = UNSUPPORTED;
    let mut index = 0;
    while index < ConflictReason::ALL.len() {
        reasons[index] = ConflictReason::ALL[index].as_str();
        index += 1;
    }
    reasons
};

/// Which of [`REASONS`] a Service is refused a port for now.
pub(crate) fn reason(stated: Option<&Condition>) -> Option<&'static str> {
    let stated = stated.filter(|_| is_true(stated))?;
    REASONS.into_iter().find(|reason| *reason == stated.reason)
}

#[cfg(test)]
mod tests {
    use highwire_api::{PortKey, Protocol};

    use super::*;
    use crate::refusals::{Cause, Refusal};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn refusal() -> Refusal {
        Refusal {
            cause: Cause {
                port: PortKey::new(Protocol::Tcp, 80).unwrap(),
                held_by: "Service a/b".into(),
            },
            reason: ConflictReason::HeldByService,
        }
    }

    fn on(nodes: &[&str]) -> Refusals {
        let mut refusals = Refusals::default();
        nodes.iter().for_each(|node| refusals.add(node, &refusal()));
        refusals
    }

    fn amended(
        stated: Option<&Condition>,
        refusals: &Refusals,
        generation: Option<i64>,
        now: Timestamp,
    ) -> Option<Condition> {
        super::amended(stated, Finding::Refusals(refusals), generation, now)
    }

    #[test]
    fn what_no_node_can_do_is_explained_until_it_is_asked_no_more() {
        let problem = Problem::Unsupported {
            field: "spec.externalTrafficPolicy".into(),
            value: "Local".into(),
            remedy: "set something else".into(),
        };
        let finding = Finding::Unsupported(std::slice::from_ref(&problem));
        let told = super::amended(None, finding, None, at(1)).unwrap();
        assert_eq!(
            (told.status.as_str(), reason(Some(&told))),
            (TRUE, Some(UNSUPPORTED))
        );
        assert_eq!(told.message, problem.to_string());
        assert_eq!(super::amended(Some(&told), finding, None, at(2)), None);
        let over = amended(Some(&told), &on(&[]), None, at(3)).unwrap();
        assert_eq!(
            (over.status.as_str(), over.last_transition_time),
            (FALSE, Time(at(3)))
        );
    }

    #[test]
    fn it_comes_with_the_first_refusal_and_ends_as_false() {
        assert_eq!(amended(None, &on(&[]), None, at(1)), None, "never needed");
        let first = amended(None, &on(&["n1"]), Some(3), at(1)).unwrap();
        assert_eq!(
            (first.status.as_str(), first.reason.as_str()),
            (TRUE, "HeldByService")
        );
        assert_eq!(first.observed_generation, Some(3));
        assert_eq!(amended(Some(&first), &on(&["n1"]), Some(3), at(2)), None);

        let more = amended(Some(&first), &on(&["n1", "n2"]), Some(3), at(3)).unwrap();
        assert_eq!(more.last_transition_time, Time(at(1)));
        assert_eq!(reason(Some(&more)), Some("HeldByService"));

        let over = amended(Some(&more), &on(&[]), Some(3), at(4)).unwrap();
        assert_eq!(
            (over.status.as_str(), over.reason.as_str()),
            (FALSE, RESOLVED)
        );
        assert_eq!(over.last_transition_time, Time(at(4)));
        assert_eq!(amended(Some(&over), &on(&[]), Some(4), at(5)), None);
        assert_eq!(reason(Some(&over)), None);
    }

    #[test]
    fn what_is_doubtful_changes_nothing_and_begins_nothing() {
        let mut doubtful = on(&[]);
        doubtful.add_doubtful(&refusal());
        assert_eq!(amended(None, &doubtful, None, at(1)), None);
        let first = amended(None, &on(&["n1"]), None, at(1)).unwrap();
        assert_eq!(amended(Some(&first), &doubtful, None, at(2)), None);
    }

    #[test]
    fn a_generation_nobody_counts_is_no_reason_to_write() {
        let counted = amended(None, &on(&["n1"]), Some(3), at(1)).unwrap();
        assert_eq!(amended(Some(&counted), &on(&["n1"]), None, at(2)), None);
    }

    #[test]
    fn every_reason_is_a_label() {
        for reason in ConflictReason::ALL {
            assert!(REASONS.contains(&reason.as_str()));
        }
        assert!(REASONS.contains(&SEVERAL) && REASONS.contains(&UNSUPPORTED));
    }
}
