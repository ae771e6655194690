//! `deploy/10-crd.yaml` is generated from the Rust types.

use highwire_api::{
    LoadBalancerNode, LoadBalancerNodeStatus, Protocol,
    external::{ExternalLoadBalancer, LoadBalancer},
    node::{Conflict, ConflictReason},
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

const DEPLOYED: &str = include_str!("../../deploy/10-crd.yaml");

#[test]
fn the_deployed_crds_are_those_of_the_rust_types() {
    let deployed: Vec<Value> = serde_saphyr::from_multiple(DEPLOYED).unwrap();
    let generated = [
        LoadBalancerNode::crd(),
        ExternalLoadBalancer::crd(),
        LoadBalancer::crd(),
    ]
    .map(|crd| serde_json::to_value(crd).unwrap());
    assert!(
        deployed == generated,
        "deploy/10-crd.yaml differs from the types in api/src; regenerate it with \
         `cargo run -p highwire-api --example crd > deploy/10-crd.yaml`"
    );
}

/// The API server drops a field that the schema does not have, without an error. Every
/// field is written, also when it is empty.
#[test]
fn every_field_of_a_report_is_in_the_schema() {
    let crd = serde_json::to_value(LoadBalancerNode::crd()).unwrap();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"]["status"], json!({}));
    let status = LoadBalancerNodeStatus {
        conflicts: vec![Conflict {
            service: "a/b".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            reason: ConflictReason::HostListener,
            held_by: "socket 0.0.0.0:80 uid 0".to_owned(),
        }],
        ..Default::default()
    };
    let status = serde_json::to_value(status).unwrap();
    let schema = &version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
    let conflict = &schema["conflicts"]["items"]["properties"];
    for (object, schema) in [(&status, schema), (&status["conflicts"][0], conflict)] {
        for field in object.as_object().unwrap().keys() {
            assert!(schema[field].is_object(), "{field} is not in the schema");
        }
    }
}
