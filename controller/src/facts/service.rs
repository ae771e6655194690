//! Service → fact: what it asks for, and what its status says.

use highwire_api::{
    ClassPolicy, Family, Interpretation, ResourceVersion, ServiceSpec,
    external::SessionAffinity,
    names::EXTERNAL_LOAD_BALANCER_ANNOTATION,
    ownership::{IngressAuthor, is_adopted, is_condition_ours},
    service::{TrafficPolicy, interpret, interpret_external, primary_family},
};
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};

use super::ingress::Listed;

/// The type of the condition about refused ports, a constant of the Kubernetes API
/// (KEP-1435).
pub const PORTS_ERROR: &str = "LoadBalancerPortsError";

/// The type of the condition about addresses.
pub const SERVING: &str = "highwire.dev/Serving";

/// The reason of [`SERVING`] for a Service that is not ours any more.
pub const NOT_OURS: &str = "NotOurs";

/// What the status of a Service says, as far as we write it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceStatus {
    /// What it advertises.
    pub listed: Listed,
    /// Its condition [`PORTS_ERROR`].
    pub ports_error: Option<Condition>,
    /// Its condition [`SERVING`].
    pub serving: Option<Condition>,
}

impl ServiceStatus {
    /// Reads the status of a Service.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        let status = service.status.as_ref();
        let stated = status.and_then(|status| status.conditions.as_deref());
        let condition = |type_| {
            let mut stated = stated.into_iter().flatten();
            stated.find(|found| found.type_ == type_).cloned()
        };
        Self {
            listed: Listed::of(service),
            ports_error: condition(PORTS_ERROR),
            serving: condition(SERVING),
        }
    }

    /// Whether it says the same, at whatever time a condition changed.
    #[must_use]
    pub fn says_same(&self, other: &Self) -> bool {
        let says = |condition: &Option<Condition>| {
            let condition = condition.clone()?;
            Some((condition.status, condition.reason, condition.message))
        };
        self.listed == other.listed
            && says(&self.ports_error) == says(&other.ports_error)
            && says(&self.serving) == says(&other.serving)
    }
}

/// Whether the condition is True.
#[must_use]
pub fn is_true(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|condition| condition.status == "True")
}

/// Which load balancer serves a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balancer {
    /// The nodes themselves.
    #[default]
    Nodes,
    /// A box outside the cluster.
    External {
        /// The name of the ExternalLoadBalancer that the Service asks for; without one, the
        /// default.
        wanted: Option<String>,
        /// Whether a client keeps its Pod.
        affinity: SessionAffinity,
    },
}

/// What matters of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    /// A Service deleted and created anew has another one.
    pub uid: String,
    /// The version of the object.
    pub version: ResourceVersion,
    /// The generation of its spec, if the API server counts them.
    pub generation: Option<i64>,
    /// What it asks for.
    pub asks: Interpretation,
    /// Which load balancer serves it.
    pub balancer: Balancer,
    /// What its status says.
    pub status: ServiceStatus,
    /// The types of the conditions in its status that Highwire wrote.
    pub our_conditions: Vec<&'static str>,
    /// Whether a condition of ours says something about it as a Service of ours.
    pub has_our_conditions: bool,
    /// The family whose addresses come first in its status.
    pub primary: Family,
    /// Who wrote the addresses there.
    pub author: IngressAuthor,
    /// Whether a person has handed it over to us.
    pub adopted: bool,
}

impl ServiceFacts {
    /// Reads a Service; `None` if it is not ours and its status has nothing of ours.
    #[must_use]
    pub fn of(service: &Service, policy: ClassPolicy) -> Option<Self> {
        let status = ServiceStatus::of(service);
        let stated = [
            (PORTS_ERROR, &status.ports_error),
            (SERVING, &status.serving),
        ];
        let ours = stated
            .into_iter()
            .filter(|(type_, condition)| condition.is_some() && is_condition_ours(service, type_));
        let our_conditions: Vec<_> = ours.map(|(type_, _)| type_).collect();
        let serving = status.serving.as_ref();
        let (asks, balancer) = match interpret_external(service) {
            Interpretation::NotOurs => (interpret(service, policy), Balancer::Nodes),
            asks => {
                let annotations = service.metadata.annotations.as_ref();
                let wanted = annotations.and_then(|it| it.get(EXTERNAL_LOAD_BALANCER_ANNOTATION));
                let spec = service.spec.as_ref();
                let affinity = match spec.and_then(|spec| spec.session_affinity.as_deref()) {
                    Some("ClientIP") => SessionAffinity::ClientIp,
                    _ => SessionAffinity::None,
                };
                let wanted = wanted.cloned();
                (asks, Balancer::External { wanted, affinity })
            }
        };
        let facts = Self {
            uid: service.metadata.uid.clone().unwrap_or_default(),
            version: ResourceVersion::of(&service.metadata).unwrap_or_default(),
            generation: service.metadata.generation,
            asks,
            balancer,
            has_our_conditions: is_true(status.ports_error.as_ref())
                && our_conditions.contains(&PORTS_ERROR)
                || serving.is_some_and(|serving| serving.reason != NOT_OURS),
            our_conditions,
            status,
            primary: primary_family(service),
            author: IngressAuthor::of(service),
            adopted: is_adopted(service),
        };
        let has_ours = facts.author == IngressAuthor::Highwire
            || facts.has_our_conditions
            || !facts.our_conditions.is_empty();
        (facts.asks != Interpretation::NotOurs || has_ours).then_some(facts)
    }

    /// Whether a box outside the cluster serves it.
    #[must_use]
    pub fn is_external(&self) -> bool {
        matches!(self.balancer, Balancer::External { .. })
    }

    /// Whether what a node's kernel has for these facts is right for the others too. The
    /// type of address and the number of nodes do not matter to the kernel: a node answers
    /// on all its addresses, advertised or not.
    #[must_use]
    pub fn needs_same_rules(&self, other: &Self) -> bool {
        match (&self.asks, &other.asks) {
            (Interpretation::Serve(one), Interpretation::Serve(other)) => {
                let as_other = ServiceSpec {
                    address_type: other.address_type,
                    max_addresses: other.max_addresses,
                    ..one.clone()
                };
                as_other == *other
            }
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }

    /// The name of its state, for metrics; `None` if it is no more concern of ours.
    #[must_use]
    pub fn state(&self) -> Option<&'static str> {
        let is_ours = self.has_our_conditions || self.author == IngressAuthor::Highwire;
        Some(match &self.asks {
            Interpretation::Serve(_) if self.status.listed.ingress.is_empty() => "unserved",
            Interpretation::Serve(_) => "served",
            Interpretation::Invalid(_) => "invalid",
            Interpretation::Unsupported(_) => "unsupported",
            Interpretation::Pending => "pending",
            Interpretation::NotOurs if is_ours => "abandoned",
            Interpretation::NotOurs => return None,
            Interpretation::ManagedElsewhere(_) => "managed_elsewhere",
        })
    }

    /// The states [`Self::state`] can give.
    pub const STATES: [&str; 7] = [
        "served",
        "unserved",
        "invalid",
        "unsupported",
        "pending",
        "abandoned",
        "managed_elsewhere",
    ];
}

/// Whether only nodes with a ready endpoint may be listed.
#[must_use]
pub fn needs_endpoints(spec: &ServiceSpec) -> bool {
    spec.external_policy == TrafficPolicy::Local
}
