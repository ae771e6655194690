//! EndpointSlices, as agent and controller read them: a list of them.

use std::collections::BTreeSet;

use highwire_agent::facts::endpoints::EndpointIndex;
use highwire_api::{ClassPolicy, Family, ServiceKey};
use highwire_controller::facts::{Facts, Input};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;

pub(super) fn run(input: &[u8]) {
    let Ok(slices) = serde_json::from_slice::<Vec<EndpointSlice>>(input) else {
        return;
    };
    let services: BTreeSet<ServiceKey> = ["shop/web", "shop/api"]
        .into_iter()
        .filter_map(|key| key.parse().ok())
        .collect();
    let mut agents = EndpointIndex::new("n1".to_owned());
    let mut controllers = Facts::new(ClassPolicy::default());
    let mut feed = |event: Event<EndpointSlice>| {
        agents.absorb(event.clone(), &services);
        controllers.apply(Input::Endpoints(Box::new(event)));
        for (port, ends) in agents.of(&services).into_iter().flatten() {
            assert!(services.contains(&port.service));
            assert!(ends.here.is_subset(&ends.all), "{ends:?}");
        }
        let each = services.iter();
        let ready = each.flat_map(|service| {
            let of = |family| controllers.endpoints().ready_nodes(service, family);
            Family::ALL.into_iter().flat_map(of)
        });
        let known = agents.of(&services).is_some_and(|it| !it.is_empty());
        known || ready.count() > 0
    };
    feed(Event::Init);
    feed(Event::InitDone);
    for slice in &slices {
        feed(Event::Apply(slice.clone()));
    }
    let mut is_left = false;
    for slice in slices {
        is_left = feed(Event::Delete(slice));
    }
    assert!(!is_left, "something is left of slices that are gone");
}
