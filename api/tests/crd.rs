//! `deploy/10-crd.yaml` says what the Rust type says.

use highwire_api::LoadBalancerNode;
use kube::CustomResourceExt;
use serde_json::Value;

const DEPLOYED: &str = include_str!("../../deploy/10-crd.yaml");

#[test]
fn the_deployed_crd_is_that_of_the_rust_type() {
    let deployed: Value = serde_saphyr::from_str(DEPLOYED).unwrap();
    let generated = serde_json::to_value(LoadBalancerNode::crd()).unwrap();
    assert_eq!(
        deployed, generated,
        "deploy/10-crd.yaml differs from api/src/node.rs; regenerate it with \
         `cargo run -p highwire-api --example crd > deploy/10-crd.yaml`"
    );
}

#[test]
fn every_status_is_kept_by_the_schema() {
    // A field missing in the schema is dropped by the API server without a word.
    let crd = serde_json::to_value(LoadBalancerNode::crd()).unwrap();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"]["status"], serde_json::json!({}));
    let properties = &version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
    for field in [
        "conditions",
        "observedResourceVersion",
        "services",
        "ports",
        "conflictCount",
        "conflicts",
        "refused",
        "addresses",
        "proxyMode",
    ] {
        assert!(
            properties[field].is_object(),
            "{field} is not in the schema"
        );
    }
}
