//! Prints the CustomResourceDefinitions of `deploy/10-crd.yaml`.

use highwire_api::{
    LoadBalancerNode,
    external::{ExternalLoadBalancer, LoadBalancer},
};
use kube::CustomResourceExt;

const HEAD: &str = "\
# Generated from api/src/node.rs and api/src/external; don't edit. To regenerate:
#   cargo run -p highwire-api --example crd > deploy/10-crd.yaml
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    print!("{HEAD}");
    for (index, crd) in [
        LoadBalancerNode::crd(),
        ExternalLoadBalancer::crd(),
        LoadBalancer::crd(),
    ]
    .iter()
    .enumerate()
    {
        if index > 0 {
            println!("---");
        }
        // Through a JSON value, so that keys come sorted and absent fields don't come at all.
        let crd = serde_json::to_value(crd)?;
        print!("{}", serde_saphyr::to_string(&crd)?);
    }
    Ok(())
}
