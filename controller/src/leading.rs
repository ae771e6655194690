//! What only the leader does: whether a Service's status is to be written now, and what it
//! should say. No I/O.

use std::time::{Duration, Instant};

use highwire_api::{Interpretation, Problem, ServiceKey};

use crate::{
    decision::{
        conditions::Difference,
        decide::{Cluster, decide},
        eligibility::Silence,
    },
    events::{Happened, ServiceEvent, happened},
    facts::service::ServiceFacts,
    history::History,
    liveness::Now,
    overwrites::Verdict,
    queue::{Part, Queue},
    status_write::StatusWrite,
};

/// How long the conflicts that nodes report are collected.
const COLLECT: Duration = Duration::from_millis(400);

/// What this controller is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// To be ready to lead.
    #[default]
    Follow,
    /// To write statuses.
    Lead,
    /// To remove what Highwire wrote: it is being uninstalled.
    Leave,
}

/// What only a leader has. A new one starts from nothing: everything it must know is in the
/// objects.
#[derive(Debug, Default)]
pub(crate) struct Leading {
    /// The Services to decide about.
    pub(crate) queue: Queue,
    /// What it is to do.
    pub(crate) role: Role,
    /// Whether the API server says that we have no right to write.
    pub(crate) is_forbidden: bool,
}

/// What is to be made known.
#[derive(Debug, Default)]
pub struct News {
    /// The Events to be sent.
    pub events: Vec<ServiceEvent>,
    /// How long new Services had to wait for their first address.
    pub waited: Vec<Duration>,
}

impl Leading {
    /// What is to be written now; if nothing, the queue knows when to decide again.
    pub(crate) fn consider(
        &mut self,
        key: &ServiceKey,
        service: &mut History,
        cluster: &Cluster<'_>,
        news: &mut News,
        now: Now,
    ) -> Option<StatusWrite> {
        if self.role == Role::Leave {
            let Some(difference) = Difference::removal(&service.facts) else {
                self.queue.wait(key, None);
                return None;
            };
            return Some(StatusWrite::new(
                key,
                &service.facts,
                difference,
                Vec::new(),
            ));
        }
        let mut due = |part, differs, delay| self.queue.due(key, part, differs, delay, now.instant);
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now.instant);
        let mut decision = decide(key, service, cluster, Silence::ProvesNothing);
        let mut hold = due(Part::Empty, decision.is_held, cluster.policy.empty_hold);
        if is_due(hold) {
            decision = decide(key, service, cluster, Silence::IsAbsence);
            hold = None;
        }
        let facts = &*service.facts;
        let mut difference = Difference::between(facts, &decision, now.wall);
        let ports_at = due(Part::PortsError, difference.ports_error.is_some(), COLLECT);
        let delay = decision.serving.as_ref().map_or(COLLECT, |serving| {
            serving.delay(facts.status.serving.is_none())
        });
        let serving_at = due(Part::Serving, difference.serving.is_some(), delay);
        let verdict = match difference.ingress {
            Some(_) => service.overwrites.verdict(facts, now.instant),
            None => Verdict::Write,
        };
        let is_ours = verdict == Verdict::Write;
        if let Verdict::GiveUp(problem) = verdict {
            let id = facts.version.to_string();
            news.events.push(event(key, facts, &problem, id));
        }
        if !is_ours || !(difference.ingress.is_some() || is_due(ports_at) || is_due(serving_at)) {
            let next = [hold, ports_at, serving_at].into_iter().flatten().min();
            self.queue.wait(key, next.filter(|_| is_ours));
            return None;
        }
        // What passes within a moment is not written; everything else goes along.
        if !is_due(ports_at) && difference.begins_ports_error(&facts.status) {
            difference.ports_error = None;
        }
        if !is_due(serving_at) && difference.begins_not_serving(&facts.status) {
            difference.serving = None;
        }
        let news = happened(&facts.status, &difference, &decision, service.edited);
        Some(StatusWrite::new(key, facts, difference, news))
    }

    /// That another program wrote the addresses of a Service. Nothing is written there
    /// that would remember this, so it is one Event per Service, also after a change of leader.
    pub(crate) fn other_manager(
        &self,
        key: &ServiceKey,
        service: &ServiceFacts,
    ) -> Option<ServiceEvent> {
        let Interpretation::ManagedElsewhere(manager) = &service.asks else {
            return None;
        };
        let manager = manager.clone();
        let problem = Problem::ManagedElsewhere { manager };
        let event = event(key, service, &problem, service.uid.clone());
        (self.role == Role::Lead).then_some(event)
    }
}

fn event(key: &ServiceKey, service: &ServiceFacts, problem: &Problem, id: String) -> ServiceEvent {
    ServiceEvent {
        key: key.clone(),
        uid: service.uid.clone(),
        happened: Happened::problem(problem),
        id,
    }
}
