//! What this process knows of a Service besides what it is now.

use std::{sync::Arc, time::Instant};

use highwire_api::{Interpretation, ResourceVersion, ServiceSpec};

use crate::{facts::service::ServiceFacts, overwrites::Overwrites};

/// A Service and its history, as far as this process followed it.
#[derive(Clone, Debug)]
pub struct History {
    /// The Service as it is now.
    pub facts: Arc<ServiceFacts>,
    /// What a node must have observed to serve it as it is now. The first version this
    /// process saw, if it never saw a relevant change.
    pub changed: ResourceVersion,
    /// What it asked for before a value became invalid, while it is.
    last_valid: Option<ServiceSpec>,
    /// Whether it was edited since its addresses were last written.
    pub edited: bool,
    /// When it was created, until it has an address.
    pub waiting_since: Option<Instant>,
    /// Only of a leader, as the next one: whether another program writes its addresses.
    pub overwrites: Overwrites,
}

impl History {
    /// The history after a change to `facts`. `created` is the time, if the Service is new.
    #[must_use]
    pub fn after(old: Option<Self>, facts: Arc<ServiceFacts>, created: Option<Instant>) -> Self {
        let Some(old) = old.filter(|old| old.facts.uid == facts.uid) else {
            return Self {
                changed: facts.version,
                last_valid: None,
                edited: false,
                waiting_since: created,
                overwrites: Overwrites::default(),
                facts,
            };
        };
        let is_invalid = matches!(facts.asks, Interpretation::Invalid(_));
        let mut new = Self {
            last_valid: old.spec().filter(|_| is_invalid).cloned(),
            edited: old.edited || old.facts.asks != facts.asks,
            ..old
        };
        let is_relevant = !new.facts.needs_same_rules(&facts);
        if is_relevant {
            new.changed = facts.version;
        }
        if is_relevant || new.facts.adopted != facts.adopted {
            // Who asks for something else wants another try.
            new.overwrites = Overwrites::default();
        }
        Self { facts, ..new }
    }

    /// What it is to be served for: what it asks for, or asked for before a value became
    /// invalid.
    #[must_use]
    pub fn spec(&self) -> Option<&ServiceSpec> {
        match &self.facts.asks {
            Interpretation::Serve(spec) => Some(spec),
            Interpretation::Invalid(_) => self.last_valid.as_ref(),
            _ => None,
        }
    }

    /// Another controller led until now, and brought the addresses that are there.
    pub fn begin_to_lead(&mut self) {
        self.overwrites = Overwrites::default();
        if !self.facts.status.listed.ingress.is_empty() {
            self.waiting_since = None;
        }
    }
}
