//! Our conditions of a Service, which say for as long as it is so what an Event says
//! once:
//!
//! - `LoadBalancerPortsError` (KEP-1435): True while a live node refuses it a port; False
//!   once that is over.
//! - `highwire.dev/Serving`: False while it has no address, with the reason; True once it
//!   has some again.
//!
//! A Service that was never in trouble has neither, unless not all of its nodes are listed:
//! then `highwire.dev/Serving` is True and says so.

use highwire_api::{Problem, names::MAX_ADDRESSES_ANNOTATION, node::ConflictReason};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Service,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

use crate::{
    absence::Shortage,
    desired::Limited,
    notice_text::shortened,
    refusals::{Refusals, SEVERAL},
};

/// The type of the condition that speaks of refused ports, a constant of the Kubernetes
/// API.
pub(crate) const PORTS_ERROR: &str = "LoadBalancerPortsError";

/// The type of the condition that says why there is no address.
pub(crate) const SERVING: &str = "highwire.dev/Serving";

const TRUE: &str = "True";
const FALSE: &str = "False";
const RESOLVED: &str = "NoPortConflicts";
const HAS_ADDRESSES: &str = "Serving";
const NOT_OURS: &str = "NotOurs";

/// What a condition should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    status: &'static str,
    /// One of a fixed set.
    reason: &'static str,
    message: String,
}

/// Whether a Service has addresses, or why not.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Footing<'a> {
    /// It has some.
    Serving,
    /// It has as many as it may have.
    Limited(Limited),
    /// No node serves it.
    Short(&'a Shortage),
    /// What it asks for cannot be read. Never empty.
    Invalid(&'a [Problem]),
    /// What it asks for is not done. Never empty.
    Unsupported(&'a [Problem]),
    /// It is not, or no longer, ours to serve.
    NotOurs,
}

/// A condition of that type as a Service's status has it.
pub(crate) fn stated(service: &Service, type_: &str) -> Option<Condition> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|found| found.type_ == type_)
        .cloned()
}

/// Whether the condition is True.
pub(crate) fn is_true(stated: Option<&Condition>) -> bool {
    stated.is_some_and(|stated| stated.status == TRUE)
}

/// What [`PORTS_ERROR`] should say; `None`: what it says.
///
/// While a node that may refuse the Service is neither proven live nor dead, a True
/// condition stays as it is.
pub(crate) fn ports_error(stated: Option<&Condition>, refusals: &Refusals) -> Option<Words> {
    let (status, reason, message) = match (is_true(stated), refusals.is_empty()) {
        (true, _) if !refusals.is_certain() => return None,
        (false, true) => return None,
        (_, false) => (TRUE, refusals.reason(), refusals.message()),
        (true, true) => (FALSE, RESOLVED, "no node refuses a port".to_owned()),
    };
    Some(Words {
        status,
        reason,
        message,
    })
}

/// What [`SERVING`] should say; `None`: what it says. It begins as False, or with the
/// limit only.
pub(crate) fn serving(stated: Option<&Condition>, footing: Footing<'_>) -> Option<Words> {
    let told = |problems: &[Problem]| {
        let problems: Vec<String> = problems.iter().map(Problem::to_string).collect();
        shortened(problems.join("; "))
    };
    let (status, reason, message) = match footing {
        Footing::Invalid(problems) => (FALSE, "InvalidSpec", told(problems)),
        Footing::Unsupported(problems) => (FALSE, "Unsupported", told(problems)),
        Footing::Short(shortage) if let Some(kind) = shortage.to_tell() => (
            FALSE,
            kind.reason(),
            shortened(format!("Not advertised: {shortage}")),
        ),
        // How many nodes are ready changes too often for the status.
        Footing::Limited(limited) => (
            TRUE,
            "Limited",
            format!(
                "advertised at {} nodes, the most that the annotation \
                 {MAX_ADDRESSES_ANNOTATION} or the controller's --max-addresses allows; more are \
                 ready",
                limited.advertised
            ),
        ),
        _ if stated.is_none() => return None,
        Footing::Short(_) => (
            FALSE,
            "PortConflict",
            format!("see the condition {PORTS_ERROR}"),
        ),
        Footing::Serving => (TRUE, HAS_ADDRESSES, "it has addresses".to_owned()),
        Footing::NotOurs => (
            FALSE,
            NOT_OURS,
            "the Service is not, or no longer, for Highwire to serve".to_owned(),
        ),
    };
    Some(Words {
        status,
        reason,
        message,
    })
}

/// Whether [`SERVING`] says something of a Service that is not ours.
pub(crate) fn is_claimed(stated: Option<&Condition>) -> bool {
    stated.is_some_and(|stated| stated.reason != NOT_OURS)
}

/// The condition with these words, if that is not what is stated.
pub(crate) fn amended(
    stated: Option<&Condition>,
    type_: &str,
    words: Words,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Condition> {
    let unmoved = stated.filter(|stated| stated.status == words.status);
    let wanted = Condition {
        type_: type_.to_owned(),
        status: words.status.to_owned(),
        reason: words.reason.to_owned(),
        message: words.message,
        // The API server (1.36) counts no generations of Services yet.
        observed_generation: generation
            .or_else(|| stated.and_then(|stated| stated.observed_generation)),
        last_transition_time: unmoved.map_or(Time(now), |same| same.last_transition_time.clone()),
    };
    (stated != Some(&wanted)).then_some(wanted)
}

/// The reasons that [`PORTS_ERROR`] can have when it is True, for metrics.
pub(crate) const REASONS: [&str; ConflictReason::ALL.len() + 1] = {
    let mut reasons = [SEVERAL; ConflictReason::ALL.len() + 1];
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
    use crate::{
        absence::Absence,
        refusals::{Cause, Refusal},
    };

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
        let words = ports_error(stated, refusals)?;
        super::amended(stated, PORTS_ERROR, words, generation, now)
    }

    fn explained(
        stated: Option<&Condition>,
        footing: Footing<'_>,
        now: Timestamp,
    ) -> Option<Condition> {
        super::amended(stated, SERVING, serving(stated, footing)?, None, now)
    }

    #[test]
    fn why_there_is_no_address_is_said_until_there_is_one() {
        assert_eq!(
            explained(None, Footing::Serving, at(1)),
            None,
            "never needed"
        );
        assert_eq!(explained(None, Footing::NotOurs, at(1)), None);
        let shortage = Shortage::NoOptedIn;
        let short = explained(None, Footing::Short(&shortage), at(1)).unwrap();
        assert_eq!(
            (short.status.as_str(), short.reason.as_str()),
            (FALSE, "NoNodes")
        );
        let problem = Problem::Unsupported {
            field: "spec.externalTrafficPolicy".into(),
            value: "Local".into(),
            remedy: "set something else".into(),
        };
        let problems = std::slice::from_ref(&problem);
        let finding = Footing::Unsupported(problems);
        let told = explained(Some(&short), finding, at(2)).unwrap();
        assert_eq!(
            (told.reason.as_str(), &told.message),
            ("Unsupported", &problem.to_string())
        );
        assert_eq!(
            told.last_transition_time,
            Time(at(1)),
            "False all the while"
        );
        assert_eq!(explained(Some(&told), finding, at(3)), None);
        let over = explained(Some(&told), Footing::Serving, at(4)).unwrap();
        assert_eq!(
            (over.status.as_str(), over.reason.as_str()),
            (TRUE, "Serving")
        );
        assert_eq!(over.last_transition_time, Time(at(4)));
        let left = explained(Some(&over), Footing::NotOurs, at(5)).unwrap();
        assert!(left.status == FALSE && is_claimed(Some(&over)) && !is_claimed(Some(&left)));
    }

    #[test]
    fn taken_ports_are_the_other_conditions_business() {
        let conflicts = Shortage::NoneReady {
            absent: vec![("n1".into(), Absence::Conflict("80/TCP is held".into()))],
        };
        let footing = Footing::Short(&conflicts);
        assert_eq!(explained(None, footing, at(1)), None);
        let before = explained(None, Footing::Short(&Shortage::NoOptedIn), at(1)).unwrap();
        let after = explained(Some(&before), footing, at(2)).unwrap();
        assert_eq!(
            (after.status.as_str(), after.reason.as_str()),
            (FALSE, "PortConflict")
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
        assert!(REASONS.contains(&SEVERAL));
    }
}
