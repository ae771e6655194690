//! What the index keeps of a Service.

use std::time::Instant;

use highwire_api::{
    ClassPolicy, Interpretation, Problem, ResourceVersion, ServiceSpec,
    service::{TrafficPolicy, interpret},
};
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};

use crate::{
    condition::{self, PORTS_ERROR},
    ingress::Listed,
    names::FIELD_MANAGER,
};

/// A Service object, read and pruned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceView {
    /// A Service deleted and created anew has another one.
    pub(crate) uid: String,
    /// The version of the object.
    pub(crate) version: ResourceVersion,
    /// What the Service asks for.
    pub(crate) asks: Interpretation,
    /// What its status advertises.
    pub(crate) listed: Listed,
    /// Whether the ingress in its status is our work, by the API server's books.
    pub(crate) written_by_us: bool,
    /// Its condition `LoadBalancerPortsError`.
    pub(crate) condition: Option<Condition>,
    /// Whether that is our work.
    pub(crate) explained_by_us: bool,
    /// The generation of its spec, if the API server counts them.
    pub(crate) generation: Option<i64>,
}

impl ServiceView {
    /// Reads a Service object.
    pub(crate) fn of(service: &Service, policy: ClassPolicy) -> Self {
        Self {
            uid: service.metadata.uid.clone().unwrap_or_default(),
            version: ResourceVersion::of(&service.metadata).unwrap_or_default(),
            asks: interpret(service, policy),
            listed: Listed::of(service),
            written_by_us: is_ours(service, "/f:status/f:loadBalancer/f:ingress"),
            condition: condition::stated(service),
            explained_by_us: is_ours(
                service,
                &format!("/f:status/f:conditions/k:{{\"type\":\"{PORTS_ERROR}\"}}"),
            ),
            generation: service.metadata.generation,
        }
    }
}

impl ServiceView {
    /// Whether it still says what we once said of it. An ingress that is another
    /// controller's means that the Service is its business now.
    fn is_left_behind(&self) -> bool {
        if self.listed.is_empty() {
            self.explained_by_us && condition::is_true(self.condition.as_ref())
        } else {
            self.written_by_us
        }
    }
}

/// `metadata.managedFields` says who wrote a field last. It survives restarts and
/// changes of leader, and it moves to whoever writes another value.
fn is_ours(service: &Service, field: &str) -> bool {
    let managers = service.metadata.managed_fields.iter().flatten();
    managers
        .filter(|entry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER)
                && entry.subresource.as_deref() == Some("status")
        })
        .filter_map(|entry| entry.fields_v1.as_ref())
        .any(|fields| fields.0.pointer(field).is_some())
}

/// What a Service asks of us, with what is known from before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asks {
    /// Serve it. Goes to `Frozen` when a value no longer parses.
    Serve(ServiceSpec),
    /// A value does not parse now; this is what it asked for before. Nodes go on
    /// with that, so whoever is listed stays, but nobody is added: an agent that
    /// started since does not know what it asked for before.
    Frozen(ServiceSpec, Vec<Problem>),
    /// A value does not parse, and what it asked for before is not known.
    Unreadable(Vec<Problem>),
    /// It asks for something we don't do.
    Refused(Vec<Problem>),
    /// It waits for its ClusterIP.
    Pending,
    /// Not ours any more, but its ingress or its condition is our work.
    Abandoned,
}

/// A Service and its history as far as it matters.
#[derive(Clone, Debug)]
pub(crate) struct ServiceRecord {
    /// See [`ServiceView::uid`].
    pub(crate) uid: String,
    /// See [`ServiceView::version`].
    pub(crate) version: ResourceVersion,
    /// What it asks of us.
    pub(crate) asks: Asks,
    /// What its status advertises.
    pub(crate) listed: Listed,
    /// Its condition `LoadBalancerPortsError`.
    pub(crate) condition: Option<Condition>,
    /// See [`ServiceView::generation`].
    pub(crate) generation: Option<i64>,
    /// What a node must have observed to serve it as it is now. The first version
    /// this process saw if it never saw a relevant change.
    pub(crate) changed: ResourceVersion,
    /// When this process saw it created, until it has an address.
    pub(crate) waiting_since: Option<Instant>,
}

impl ServiceRecord {
    /// The record after `view`, or `None` if the Service is none of our business.
    /// `created` is when the Service came to be, if that is what happened.
    pub(crate) fn after(
        old: Option<&Self>,
        view: ServiceView,
        created: Option<Instant>,
    ) -> Option<Self> {
        let old = old.filter(|old| old.uid == view.uid);
        let before = old.map(|old| &old.asks);
        let asks = match view.asks {
            Interpretation::Serve(spec) => Asks::Serve(spec),
            Interpretation::Invalid(problems) => match before {
                Some(Asks::Serve(spec) | Asks::Frozen(spec, _)) => {
                    Asks::Frozen(spec.clone(), problems)
                }
                _ => Asks::Unreadable(problems),
            },
            Interpretation::Unsupported(problems) => Asks::Refused(problems),
            Interpretation::Pending => Asks::Pending,
            Interpretation::NotOurs if view.is_left_behind() => Asks::Abandoned,
            Interpretation::NotOurs => return None,
        };
        let unchanged = old.filter(|old| needs_same_rules(&old.asks, &asks));
        Some(Self {
            changed: unchanged.map_or(view.version, |old| old.changed),
            waiting_since: old.map_or(created, |old| old.waiting_since),
            uid: view.uid,
            version: view.version,
            asks,
            listed: view.listed,
            condition: view.condition,
            generation: view.generation,
        })
    }

    /// Whether only nodes with a ready endpoint may be listed.
    pub(crate) fn needs_endpoints(&self) -> bool {
        match &self.asks {
            Asks::Serve(spec) | Asks::Frozen(spec, _) => {
                spec.external_policy == TrafficPolicy::Local
            }
            Asks::Unreadable(_) | Asks::Refused(_) | Asks::Pending | Asks::Abandoned => false,
        }
    }

    /// What is wrong with the Service.
    pub(crate) fn problems(&self) -> &[Problem] {
        match &self.asks {
            Asks::Frozen(_, problems) | Asks::Unreadable(problems) | Asks::Refused(problems) => {
                problems
            }
            Asks::Serve(_) | Asks::Pending | Asks::Abandoned => &[],
        }
    }

    /// What it asks for that we don't do; never empty.
    pub(crate) fn unsupported(&self) -> Option<&[Problem]> {
        match &self.asks {
            Asks::Refused(problems) => Some(problems),
            _ => None,
        }
    }

    /// The name of the state, for metrics.
    pub(crate) fn state(&self) -> &'static str {
        match &self.asks {
            Asks::Serve(_) if self.listed.ingress.is_empty() => "unserved",
            Asks::Serve(_) => "served",
            Asks::Frozen(..) | Asks::Unreadable(_) => "invalid",
            Asks::Refused(_) => "unsupported",
            Asks::Pending => "pending",
            Asks::Abandoned => "abandoned",
        }
    }

    /// The states [`Self::state`] can give.
    pub(crate) const STATES: [&str; 6] = [
        "served",
        "unserved",
        "invalid",
        "unsupported",
        "pending",
        "abandoned",
    ];
}

/// Whether what a node has in its kernel for one is right for the other too. The
/// type of address is no matter of the kernel: a node answers on all it has.
fn needs_same_rules(one: &Asks, other: &Asks) -> bool {
    match (one, other) {
        (Asks::Serve(one), Asks::Serve(other)) => {
            let as_other = ServiceSpec {
                address_type: other.address_type,
                ..one.clone()
            };
            as_other == *other
        }
        // Nobody needs to have seen these; but a move from or to `Serve` is a change.
        (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}
