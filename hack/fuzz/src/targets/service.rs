//! A Service: agent and controller read the same.

use highwire_agent::facts::services::Services;
use highwire_api::{ClassPolicy, Interpretation, ServiceSpec, clients::Clients};
use highwire_controller::facts::service::{Balancer, ServiceFacts};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::Event;

use crate::{plain::assert_plain, targets::cluster::could_be};

pub(super) fn run(input: &[u8]) {
    let Ok(service) = serde_json::from_slice::<Service>(input) else {
        return;
    };
    if !could_be(&service.metadata) {
        return;
    }
    for policy in [ClassPolicy::DefaultAndOurs, ClassPolicy::OursOnly] {
        let controllers = ServiceFacts::of(&service, policy);
        let mut agents = Services::new(policy);
        agents.absorb(Event::Init);
        agents.absorb(Event::InitApply(service.clone()));
        agents.absorb(Event::InitDone);
        let mut known = agents.known().into_iter().flatten().map(|(_, it)| it);
        let ours = known.next().and_then(|it| it.ours.as_ref());
        let agents = ours.map(|it| &it.spec);
        let asks = controllers.as_ref().map(|it| (&it.asks, &it.balancer));
        match asks {
            Some((Interpretation::Serve(spec), Balancer::Nodes)) => {
                assert_eq!(agents, Some(spec));
                check(spec);
            }
            // The nodes serve those that have no NodePorts.
            Some((Interpretation::Serve(spec), Balancer::External { .. })) => {
                assert!(agents.is_none_or(|agents| agents == spec));
                check(spec);
            }
            Some((
                Interpretation::Invalid(problems) | Interpretation::Unsupported(problems),
                _,
            )) => {
                assert!(!problems.is_empty() && agents.is_none());
                for problem in problems {
                    let text = problem.to_string();
                    assert_plain("a problem", &text);
                    assert!(text.len() < 1_000, "{text}");
                }
            }
            _ => assert_eq!(agents, None),
        }
    }
}

fn check(spec: &ServiceSpec) {
    assert!(!spec.ports.is_empty());
    assert!(spec.cluster_ips.families().next().is_some());
    if let Clients::Within(networks) = &spec.clients {
        assert!(!networks.is_empty(), "nobody is admitted");
    }
}
