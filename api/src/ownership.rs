//! Which program wrote a part of a Service, by `metadata.managedFields` (Server-Side
//! Apply, KEP-555).
//!
//! The API server keeps them, so they survive restarts and leader changes. A field belongs
//! to the program that last changed its value.

use std::fmt;

use k8s_openapi::api::core::v1::Service;

use crate::{
    advertised::ingress_of,
    names::{ADOPT_ANNOTATION, FIELD_MANAGER},
};

/// The name under which a program writes to the API server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Manager(String);

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who wrote the addresses in `status.loadBalancer.ingress` last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngressAuthor {
    /// There are none.
    Nobody,
    /// Our controller.
    Highwire,
    /// Another program.
    Other(Manager),
}

impl IngressAuthor {
    /// Reads a Service.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        if ingress_of(service).is_empty() {
            return Self::Nobody;
        }
        let path = ["f:status", "f:loadBalancer", "f:ingress"];
        let mut managers = managers_of(service, &path).peekable();
        let first = managers.peek().copied().unwrap_or("an unknown program");
        let first = Manager(first.to_owned());
        if managers.any(|manager| manager == FIELD_MANAGER) {
            Self::Highwire
        } else {
            Self::Other(first)
        }
    }
}

/// Whether the Service was handed over to Highwire (`highwire.dev/adopt: "true"`).
#[must_use]
pub fn is_adopted(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.get(ADOPT_ANNOTATION).is_some_and(|text| text == "true"))
}

/// Whether Highwire wrote the condition of that type in the Service's status.
#[must_use]
pub fn is_condition_ours(service: &Service, type_: &str) -> bool {
    let entry = format!("k:{{\"type\":\"{type_}\"}}");
    managers_of(service, &["f:status", "f:conditions", &entry])
        .any(|manager| manager == FIELD_MANAGER)
}

/// The programs that wrote the field at that path of `FieldsV1` keys.
fn managers_of<'a>(service: &'a Service, path: &[&str]) -> impl Iterator<Item = &'a str> {
    let entries = service.metadata.managed_fields.iter().flatten();
    entries.filter_map(move |entry| {
        let fields = &entry.fields_v1.as_ref()?.0;
        path.iter()
            .try_fold(fields, |fields, key| fields.get(key))?;
        entry.manager.as_deref()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn written_by(managers: &[&str], ingress: Value) -> Service {
        let entry = |manager: &&str| {
            json!({
                "manager": manager, "operation": "Update", "subresource": "status",
                "apiVersion": "v1", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:status": {
                    "f:loadBalancer": {"f:ingress": {}},
                    "f:conditions": {"k:{\"type\":\"highwire.dev/Serving\"}": {}},
                }},
            })
        };
        let managed: Vec<Value> = managers.iter().map(entry).collect();
        serde_json::from_value(json!({
            "metadata": {"managedFields": managed},
            "status": {"loadBalancer": {"ingress": ingress}},
        }))
        .unwrap()
    }

    #[test]
    fn the_author_is_in_the_managed_fields() {
        let one = || json!([{"ip": "198.51.100.77"}]);
        let author = |managers: &[&str], ingress| IngressAuthor::of(&written_by(managers, ingress));
        assert_eq!(author(&["cloud"], json!([])), IngressAuthor::Nobody);
        assert_eq!(author(&["cloud"], Value::Null), IngressAuthor::Nobody);
        assert_eq!(author(&[FIELD_MANAGER], one()), IngressAuthor::Highwire);
        assert_eq!(
            author(&["cloud"], one()),
            IngressAuthor::Other(Manager("cloud".into()))
        );
        // Whoever applies the same value as we wrote shares it with us.
        assert_eq!(
            author(&["kubectl", FIELD_MANAGER], one()),
            IngressAuthor::Highwire
        );
        assert_eq!(
            author(&[], one()),
            IngressAuthor::Other(Manager("an unknown program".into()))
        );
    }

    #[test]
    fn a_condition_is_ours_by_its_type() {
        let service = written_by(&["cloud", FIELD_MANAGER], json!([]));
        assert!(is_condition_ours(&service, "highwire.dev/Serving"));
        assert!(!is_condition_ours(&service, "highwire.dev/Other"));
        let foreign = written_by(&["cloud"], json!([]));
        assert!(!is_condition_ours(&foreign, "highwire.dev/Serving"));
    }

    #[test]
    fn only_true_hands_a_service_over() {
        for (value, adopted) in [
            ("true", true),
            ("false", false),
            ("yes", false),
            ("", false),
        ] {
            let metadata = json!({"annotations": {ADOPT_ANNOTATION: value}});
            let service = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
            assert_eq!(is_adopted(&service), adopted, "{value:?}");
        }
        assert!(!is_adopted(&Service::default()));
    }
}
