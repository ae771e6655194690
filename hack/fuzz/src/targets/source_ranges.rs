//! Source ranges: a field of several lines, or, in one line, the annotation.

use highwire_api::{
    ClassPolicy, Interpretation,
    clients::{Clients, MOST_RANGES},
    names::SOURCE_RANGES_ANNOTATION,
    service::interpret,
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;

use crate::plain::assert_plain;

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
    });
    let written: Vec<&str> = if lines.len() > 1 {
        object["spec"]["loadBalancerSourceRanges"] = json!(lines);
        lines
    } else {
        object["metadata"]["annotations"] = json!({ SOURCE_RANGES_ANNOTATION: text });
        text.split(',')
            .filter(|range| !range.trim().is_empty())
            .collect()
    };
    let Ok(service) = serde_json::from_value::<Service>(object) else {
        return;
    };
    match interpret(&service, ClassPolicy::default()) {
        Interpretation::Serve(spec) => match spec.clients {
            Clients::Any => assert!(written.is_empty(), "{written:?} admit all"),
            Clients::Within(networks) => {
                assert!(networks.len() <= MOST_RANGES && !networks.is_empty());
                for range in written {
                    let range: IpNet = range.trim().parse().expect("it was read");
                    let is_in = networks.iter().any(|network| network.contains(&range));
                    assert!(is_in, "{range} is not in {networks:?}");
                }
            }
        },
        Interpretation::Invalid(problems) => {
            for problem in problems {
                assert_plain("a problem", &problem.to_string());
            }
        }
        other => panic!("{other:?}"),
    }
}
