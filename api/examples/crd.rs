//! Prints `deploy/10-crd.yaml`, the CustomResourceDefinition of [`LoadBalancerNode`].

use highwire_api::LoadBalancerNode;
use kube::CustomResourceExt;

const HEAD: &str = "\
# Generated from api/src/node.rs; don't edit. To regenerate:
#   cargo run -p highwire-api --example crd > deploy/10-crd.yaml
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Through a JSON value, so that keys come sorted and absent fields don't come at all.
    let crd = serde_json::to_value(LoadBalancerNode::crd())?;
    print!("{HEAD}{}", serde_saphyr::to_string(&crd)?);
    Ok(())
}
