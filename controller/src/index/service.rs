//! What the index keeps of a Service.

use std::time::Instant;

use highwire_api::{
    ClassPolicy, Family, Interpretation, Problem, ResourceVersion, ServiceSpec,
    ownership::{IngressAuthor, is_adopted, is_condition_ours},
    service::{TrafficPolicy, interpret, primary_family},
};
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};

use crate::{
    absence::Shortage,
    condition::{self, Footing, PORTS_ERROR, SERVING},
    desired::Limited,
    ingress::Listed,
    schedule::Rank,
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
    /// The family that comes first there.
    pub(crate) primary: Family,
    /// Who wrote that, by the API server's books.
    pub(crate) author: IngressAuthor,
    /// Whether a person has handed it over to us.
    pub(crate) adopted: bool,
    /// Its condition `LoadBalancerPortsError`.
    pub(crate) condition: Option<Condition>,
    /// Whether that is our work.
    pub(crate) explained_by_us: bool,
    /// Its condition `highwire.dev/Serving`.
    pub(crate) serving: Option<Condition>,
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
            primary: primary_family(service),
            author: IngressAuthor::of(service),
            adopted: is_adopted(service),
            condition: condition::stated(service, PORTS_ERROR),
            explained_by_us: is_condition_ours(service, PORTS_ERROR),
            serving: condition::stated(service, SERVING),
            generation: service.metadata.generation,
        }
    }
}

impl ServiceView {
    /// Whether it still says what we once said of it. An ingress that is another
    /// controller's means that the Service is its business now.
    fn is_left_behind(&self) -> bool {
        match self.author {
            IngressAuthor::Nobody => self.is_explained(),
            IngressAuthor::Highwire => true,
            IngressAuthor::Other(_) => false,
        }
    }

    /// Whether a condition of ours stands there that says it is ours.
    fn is_explained(&self) -> bool {
        self.explained_by_us && condition::is_true(self.condition.as_ref())
            || condition::is_claimed(self.serving.as_ref())
    }
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
    /// Another program wrote its addresses, so nothing is written there.
    Elsewhere {
        /// That, in words; one problem.
        problem: [Problem; 1],
        /// Whether a condition of ours still stands there, from the time before.
        explained: bool,
    },
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
    /// The family that comes first there.
    pub(crate) primary: Family,
    /// See [`ServiceView::author`].
    pub(crate) author: IngressAuthor,
    /// See [`ServiceView::adopted`].
    pub(crate) adopted: bool,
    /// Its condition `LoadBalancerPortsError`.
    pub(crate) condition: Option<Condition>,
    /// Its condition `highwire.dev/Serving`.
    pub(crate) serving: Option<Condition>,
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
        let (explained, left_behind) = (view.is_explained(), view.is_left_behind());
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
            Interpretation::ManagedElsewhere(manager) => Asks::Elsewhere {
                problem: [Problem::ManagedElsewhere { manager }],
                explained,
            },
            Interpretation::NotOurs if left_behind => Asks::Abandoned,
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
            primary: view.primary,
            author: view.author,
            adopted: view.adopted,
            condition: view.condition,
            serving: view.serving,
            generation: view.generation,
        })
    }

    /// How much its next write matters.
    pub(crate) fn rank(&self) -> Rank {
        // Who has waited long enough to say why waits like all others.
        if self.waiting_since.is_some() && self.serving.is_none() {
            Rank::First
        } else {
            Rank::Refresh
        }
    }

    /// Whether only nodes with a ready endpoint may be listed.
    pub(crate) fn needs_endpoints(&self) -> bool {
        match &self.asks {
            Asks::Serve(spec) | Asks::Frozen(spec, _) => {
                spec.external_policy == TrafficPolicy::Local
            }
            Asks::Unreadable(_)
            | Asks::Refused(_)
            | Asks::Pending
            | Asks::Abandoned
            | Asks::Elsewhere { .. } => false,
        }
    }

    /// What is wrong with the Service.
    pub(crate) fn problems(&self) -> &[Problem] {
        match &self.asks {
            Asks::Frozen(_, problems) | Asks::Unreadable(problems) | Asks::Refused(problems) => {
                problems
            }
            Asks::Elsewhere { problem, .. } => problem,
            Asks::Serve(_) | Asks::Pending | Asks::Abandoned => &[],
        }
    }

    /// Whether it has addresses, if `listed` is what it has, or why not; `None` if that
    /// is not known yet.
    pub(crate) fn footing<'a>(
        &'a self,
        listed: bool,
        limited: Option<Limited>,
        shortage: Option<&'a Shortage>,
    ) -> Option<Footing<'a>> {
        Some(match (&self.asks, shortage) {
            (Asks::Abandoned | Asks::Elsewhere { .. }, _) => Footing::NotOurs,
            _ if listed => limited.map_or(Footing::Serving, Footing::Limited),
            (Asks::Frozen(_, problems) | Asks::Unreadable(problems), _) => {
                Footing::Invalid(problems)
            }
            (Asks::Refused(problems), _) => Footing::Unsupported(problems),
            (Asks::Serve(_), Some(shortage)) => Footing::Short(shortage),
            (Asks::Serve(_) | Asks::Pending, _) => return None,
        })
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
            Asks::Elsewhere { .. } => "managed_elsewhere",
        }
    }

    /// The states [`Self::state`] can give.
    pub(crate) const STATES: [&str; 7] = [
        "served",
        "unserved",
        "invalid",
        "unsupported",
        "pending",
        "abandoned",
        "managed_elsewhere",
    ];
}

/// Whether what a node has in its kernel for one is right for the other too. The
/// type of address and the number of nodes are no matter of the kernel: a node answers
/// on all it has, advertised or not.
fn needs_same_rules(one: &Asks, other: &Asks) -> bool {
    match (one, other) {
        (Asks::Serve(one), Asks::Serve(other)) => {
            let as_other = ServiceSpec {
                address_type: other.address_type,
                max_addresses: other.max_addresses,
                ..one.clone()
            };
            as_other == *other
        }
        // Nobody needs to have seen these; but a move from or to `Serve` is a change.
        (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}
