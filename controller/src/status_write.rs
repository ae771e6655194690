//! A write of a Service's status: what is decided on one side and carried out on the other.

use std::collections::{BTreeMap, VecDeque};

use highwire_api::{Family, ResourceVersion, ServiceKey};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use crate::{
    decision::conditions::Difference,
    events::Happened,
    facts::service::{ServiceFacts, ServiceStatus},
};

/// A status to be written, if the Service is still as it was when this was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    /// The Service.
    pub key: ServiceKey,
    /// Its UID.
    pub uid: String,
    /// The version of the Service that was decided about.
    pub version: ResourceVersion,
    /// The family whose addresses come first.
    pub primary: Family,
    /// What is to be written.
    pub difference: Difference,
    /// What the status says then.
    pub after: ServiceStatus,
    /// What is to be said when it is carried out.
    pub news: Vec<Happened>,
}

/// How a write ended, as far as its answer says.
#[derive(Debug)]
pub enum WriteResult {
    /// The Service as it is now.
    Written(Box<Service>),
    /// The Service had changed, maybe by this write, if it was sent twice. The watch brings
    /// the change and with it the next try.
    Conflict,
    /// The Service is gone.
    Gone,
    /// We have no right to write any more. Try again later.
    Forbidden,
    /// Try again later; it may have been carried out all the same.
    Failed,
}

impl StatusWrite {
    /// A write of that difference.
    #[must_use]
    pub fn new(
        key: &ServiceKey,
        facts: &ServiceFacts,
        difference: Difference,
        news: Vec<Happened>,
    ) -> Self {
        Self {
            key: key.clone(),
            uid: facts.uid.clone(),
            version: facts.version,
            primary: facts.primary,
            after: difference.applied_to(&facts.status),
            difference,
            news,
        }
    }

    /// A strategic merge patch: it replaces the ingress as a whole, and of the conditions,
    /// a list by type, only ours, so that those of others and whatever else is in the
    /// status stay. With UID and version, so that it only changes the version that was decided about.
    #[must_use]
    pub fn patch(&self) -> Value {
        let mut status = json!({});
        if let Some(ingress) = &self.difference.ingress {
            let entries = ingress.to_api(self.primary);
            let entries = (!entries.is_empty()).then_some(entries);
            status["loadBalancer"] = json!({ "ingress": entries });
        }
        let stated = self
            .difference
            .conditions()
            .map(|condition| json!(condition));
        let removed = self.difference.removed.iter();
        let removed = removed.map(|type_| json!({ "type": type_, "$patch": "delete" }));
        let conditions: Vec<Value> = stated.chain(removed).collect();
        if !conditions.is_empty() {
            status["conditions"] = json!(conditions);
        }
        json!({
            "metadata": { "uid": self.uid, "resourceVersion": self.version.to_string() },
            "status": status,
        })
    }
}

/// How many writes to one version of a Service are kept.
const MOST: usize = 8;

/// The writes of which it was not seen yet whether they were carried out, the last one of
/// each Service first.
#[derive(Debug, Default)]
pub struct Begun(BTreeMap<ServiceKey, VecDeque<StatusWrite>>);

impl Begun {
    /// A write begins.
    pub fn begin(&mut self, write: StatusWrite) {
        let begun = self.0.entry(write.key.clone()).or_default();
        begun.truncate(MOST - 1);
        begun.push_front(write);
    }

    /// The Service is seen like this, by the watch or in the answer to a write, which may
    /// be lost. Returns the write that made it so: of those to one version, one at most is
    /// carried out.
    pub fn carried_out(&mut self, service: &Service) -> Option<StatusWrite> {
        let key = ServiceKey::of(service);
        let version = ResourceVersion::of(&service.metadata)?;
        let begun = self.0.get(&key)?;
        if begun.iter().any(|write| write.version >= version) {
            return None;
        }
        let (status, uid) = (ServiceStatus::of(service), service.metadata.uid.as_ref());
        let mut begun = self.0.remove(&key)?.into_iter();
        begun.find(|write| Some(&write.uid) == uid && write.after.says_same(&status))
    }

    /// The Service is gone.
    pub fn forget(&mut self, key: &ServiceKey) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::*;
    use crate::{
        decision::conditions::Difference,
        facts::{
            ingress::Ingress,
            service::{PORTS_ERROR, ServiceStatus},
        },
    };

    #[test]
    fn a_patch_holds_what_was_decided_about_and_only_what_differs() {
        let mut write = StatusWrite {
            key: "shop/web".parse().unwrap(),
            uid: "u1".into(),
            version: ResourceVersion(7),
            primary: Family::V4,
            difference: Difference {
                ingress: Some(Ingress::default()),
                ..Difference::default()
            },
            after: ServiceStatus::default(),
            news: Vec::new(),
        };
        let decided_about = json!({"uid": "u1", "resourceVersion": "7"});
        assert_eq!(
            write.patch(),
            json!({"metadata": decided_about, "status": {"loadBalancer": {"ingress": null}}})
        );
        let condition: Condition = serde_json::from_value(json!({
            "type": PORTS_ERROR, "status": "True", "reason": "HostPort", "message": "m",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }))
        .unwrap();
        write.difference.ports_error = Some(condition.clone());
        assert_eq!(write.patch()["status"]["conditions"], json!([condition]));
        write.difference.ingress = None;
        assert_eq!(write.patch()["status"], json!({"conditions": [condition]}));
        write.difference = Difference {
            removed: vec![PORTS_ERROR],
            ..Difference::default()
        };
        let removed = json!([{"type": PORTS_ERROR, "$patch": "delete"}]);
        assert_eq!(write.patch()["status"], json!({"conditions": removed}));
    }
}
