//! The difference between what a status says and what it should say.
//!
//! A Service that was never in trouble has no condition of ours, unless not all of its nodes
//! are listed: then `highwire.dev/Serving` is True and says so.

use highwire_api::{node::ConflictReason, ownership::IngressAuthor};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    decide::Decision,
    port_conflicts::PortConflicts,
    serving::{NoAddress, Serving},
    text,
};
use crate::facts::{
    ingress::{Ingress, Listed},
    service::{NOT_OURS, PORTS_ERROR, SERVING, ServiceFacts, ServiceStatus, is_true},
};

const TRUE: &str = "True";
const FALSE: &str = "False";

/// The reason of a condition that has more than one.
const SEVERAL: &str = "MultiplePortConflicts";

/// What a status should say otherwise than it does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// The addresses.
    pub ingress: Option<Ingress>,
    /// The condition [`PORTS_ERROR`].
    pub ports_error: Option<Condition>,
    /// The condition [`SERVING`].
    pub serving: Option<Condition>,
    /// The types of conditions that go.
    pub removed: Vec<&'static str>,
}

/// What the condition says: status, reason (one of a fixed set) and message.
pub type Says = (&'static str, &'static str, String);

impl Difference {
    /// The difference between the status of a Service and what was decided.
    #[must_use]
    pub fn between(service: &ServiceFacts, decision: &Decision, now: Timestamp) -> Self {
        let status = &service.status;
        let amend = |stated: Option<&Condition>, type_, says: Option<Says>| {
            says.and_then(|says| amended(stated, type_, says, service.generation, now))
        };
        let conflicts = decision.conflicts.as_ref();
        let ports_error = conflicts.and_then(|it| ports_error(status.ports_error.as_ref(), it));
        let serving = decision.serving.as_ref();
        let serving = serving.and_then(|it| serving_says(status.serving.as_ref(), it));
        Self {
            ingress: decision
                .ingress
                .clone()
                .filter(|ingress| !status.listed.says(ingress)),
            ports_error: amend(status.ports_error.as_ref(), PORTS_ERROR, ports_error),
            serving: amend(status.serving.as_ref(), SERVING, serving),
            removed: Vec::new(),
        }
    }

    /// What there is to remove at an uninstall: everything that Highwire wrote.
    #[must_use]
    pub fn removal(service: &ServiceFacts) -> Option<Self> {
        let is_ours = service.author == IngressAuthor::Highwire;
        let removed = service.our_conditions.clone();
        (is_ours || !removed.is_empty()).then(|| Self {
            ingress: is_ours.then(Ingress::default),
            removed,
            ..Self::default()
        })
    }

    /// The conditions.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.ports_error.iter().chain(&self.serving)
    }

    /// The status that it makes of the one before.
    #[must_use]
    pub fn applied_to(&self, before: &ServiceStatus) -> ServiceStatus {
        let (ports_error, serving) = (self.ports_error.as_ref(), self.serving.as_ref());
        ServiceStatus {
            listed: match self.ingress.clone() {
                Some(ingress) => Listed {
                    ingress,
                    exact: true,
                },
                None => before.listed.clone(),
            },
            ports_error: ports_error.or(before.ports_error.as_ref()).cloned(),
            serving: serving.or(before.serving.as_ref()).cloned(),
        }
    }

    /// Whether the condition [`PORTS_ERROR`] becomes True: other changes of it may go along
    /// with any write.
    #[must_use]
    pub fn begins_ports_error(&self, before: &ServiceStatus) -> bool {
        is_true(self.ports_error.as_ref()) && !is_true(before.ports_error.as_ref())
    }

    /// Whether the condition [`SERVING`] comes into being as False: other changes of it may
    /// go along with any write.
    #[must_use]
    pub fn begins_not_serving(&self, before: &ServiceStatus) -> bool {
        before.serving.is_none() && self.serving.as_ref().is_some_and(|it| it.status == FALSE)
    }
}

/// What [`PORTS_ERROR`] should say; `None`: what it says. While a node that may refuse the
/// Service is neither known to be alive nor dead, a True condition stays as it is.
fn ports_error(stated: Option<&Condition>, conflicts: &PortConflicts) -> Option<Says> {
    match (is_true(stated), conflicts.certain.is_empty()) {
        (true, _) if conflicts.is_uncertain => None,
        (false, true) => None,
        (_, false) => Some((TRUE, common_reason(conflicts), text::conflicts(conflicts))),
        (true, true) => Some((
            FALSE,
            "NoPortConflicts",
            "no node refuses a port".to_owned(),
        )),
    }
}

fn common_reason(conflicts: &PortConflicts) -> &'static str {
    let mut reasons = conflicts.certain.keys().map(|conflict| conflict.reason);
    match reasons.next() {
        Some(first) if reasons.all(|reason| reason == first) => first.as_str(),
        _ => SEVERAL,
    }
}

/// What [`SERVING`] should say; `None`: what it says.
fn serving_says(stated: Option<&Condition>, serving: &Serving) -> Option<Says> {
    Some(match serving {
        Serving::Invalid {
            problems,
            has_addresses: false,
        } => (FALSE, "InvalidSpec", text::problems(problems)),
        Serving::Invalid {
            problems,
            has_addresses: true,
        } => {
            let message = format!("it keeps its addresses; {}", text::problems(problems));
            (TRUE, "InvalidSpec", text::shortened(message))
        }
        Serving::External {
            trouble,
            message,
            has_addresses: false,
        } => (
            FALSE,
            trouble.as_str(),
            text::shortened(format!("Not advertised: {message}")),
        ),
        Serving::External {
            trouble, message, ..
        } => {
            let message = format!("it keeps its addresses; {message}");
            (TRUE, trouble.as_str(), text::shortened(message))
        }
        Serving::Unsupported(problems) => (FALSE, "Unsupported", text::problems(problems)),
        Serving::NoAddress(why) => {
            let message = text::shortened(format!("Not advertised: {why}"));
            (FALSE, no_address_reason(why), message)
        }
        Serving::Limited(limited) => (TRUE, "Limited", text::limited(*limited)),
        _ if stated.is_none() => return None,
        Serving::PortsRefused => (
            FALSE,
            "PortConflict",
            format!("see the condition {PORTS_ERROR}"),
        ),
        Serving::Addresses => (TRUE, "Serving", "it has addresses".to_owned()),
        Serving::NotOurs => {
            let message = "the Service is not, or no longer, for Highwire to serve";
            (FALSE, NOT_OURS, message.to_owned())
        }
    })
}

fn no_address_reason(why: &NoAddress) -> &'static str {
    match why {
        NoAddress::NoNodes => "NoNodes",
        NoAddress::SelectorMatchesNone { .. } => "NodeSelectorMatchesNone",
        NoAddress::NoReadyNodes { .. } => "NoReadyNodes",
    }
}

/// The condition, if that is not what is stated.
#[must_use]
pub fn amended(
    stated: Option<&Condition>,
    type_: &str,
    (status, reason, message): Says,
    generation: Option<i64>,
    now: Timestamp,
) -> Option<Condition> {
    let unmoved = stated.filter(|stated| stated.status == status);
    let wanted = Condition {
        type_: type_.to_owned(),
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

/// The reasons that [`PORTS_ERROR`] can have when it is True, for metrics.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    let one = ConflictReason::ALL.iter().map(|reason| reason.as_str());
    one.chain([SEVERAL])
}

/// Which of [`reasons`] a Service is refused a port for now.
#[must_use]
pub fn refused_for(status: &ServiceStatus) -> Option<&'static str> {
    let stated = status.ports_error.as_ref().filter(|it| is_true(Some(it)))?;
    reasons().find(|reason| *reason == stated.reason)
}

#[cfg(test)]
#[path = "conditions_tests.rs"]
mod tests;
