//! Which clients a Service admits.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec as ApiSpec};

use crate::{names::SOURCE_RANGES_ANNOTATION, problem::Problem};

/// Which clients a Service admits (`spec.loadBalancerSourceRanges`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// All.
    Any,
    /// Those in these networks only, of either family; never empty, and no
    /// network contains another.
    Within(Vec<IpNet>),
}

/// How many combinations of a port and a network one Service may have. Each is an
/// element of an nft interval set, in which adding N elements costs N² steps: 10,000
/// take one to two seconds, 100,000 more than a minute and a half.
pub const MOST_RANGES: usize = 5_000;

/// The annotation is older than the field and counts if the field is empty
/// (k8s.io/cloud-provider/service/helpers `GetLoadBalancerSourceRanges`).
pub(crate) fn read(service: &Service, spec: &ApiSpec, problems: &mut Vec<Problem>) -> Clients {
    let field = spec
        .load_balancer_source_ranges
        .as_deref()
        .unwrap_or_default();
    let annotations = service.metadata.annotations.as_ref();
    let annotation = annotations.and_then(|all| all.get(SOURCE_RANGES_ANNOTATION));
    let ranges: Vec<(String, &str)> = if field.is_empty() {
        let listed = annotation.into_iter().flat_map(|text| text.split(','));
        let name = format!("metadata.annotations[{SOURCE_RANGES_ANNOTATION}]");
        listed
            .map(|range| (name.clone(), range))
            .filter(|(_, range)| !range.trim().is_empty())
            .collect()
    } else {
        let name = |index| format!("spec.loadBalancerSourceRanges[{index}]");
        field
            .iter()
            .enumerate()
            .map(|(index, range)| (name(index), range.as_str()))
            .collect()
    };
    let mut networks = Vec::new();
    for (field, range) in &ranges {
        match source_range(range.trim()) {
            Ok(network) => networks.push(network),
            Err(remedy) => problems.push(Problem::Invalid {
                field: field.clone(),
                value: (*range).to_owned(),
                remedy,
            }),
        }
    }
    if networks.is_empty() {
        Clients::Any
    } else {
        Clients::Within(IpNet::aggregate(&networks))
    }
}

/// The problem of a Service with more than [`MOST_RANGES`] combinations.
pub(crate) fn too_many(clients: &Clients, ports: usize) -> Option<Problem> {
    let Clients::Within(networks) = clients else {
        return None;
    };
    let ranges = ports.saturating_mul(networks.len());
    (ranges > MOST_RANGES).then(|| Problem::Invalid {
        field: "spec.loadBalancerSourceRanges".to_owned(),
        value: format!("{} networks for {ports} ports", networks.len()),
        remedy: format!(
            "at most {MOST_RANGES} combinations of port and network are taken; join networks, \
             or give ports a Service of their own"
        ),
    })
}

fn source_range(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text
        .parse()
        .map_err(|_| "write a network as in 192.0.2.0/24 or 2001:db8::/32".to_owned())?;
    if network.addr() == network.network() {
        Ok(network)
    } else {
        let (one, all) = (network.addr(), network.trunc());
        let bits = network.max_prefix_len();
        Err(format!(
            "an address and not a network; write {all} for the network or {one}/{bits} for the address"
        ))
    }
}
