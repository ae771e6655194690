//! What the tests of this folder begin with and wait for.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::bed::external::ExternalLoadBalancer;
use highwire_e2e::bed::outside_box::requests::{overlapping, turned_back};
use highwire_e2e::bed::service::ServiceBuilder;
use highwire_e2e::expect::{LONG, ingress_is, web_pods};
use highwire_e2e::{Cluster, OutsideBox, PrivateCluster, Scope, Svc, highwire, wait_for};
use serde_json::{Value, json};

/// The class of Services that a box outside serves.
pub(crate) const CLASS: &str = "highwire.dev/external";
/// The annotation that names their box.
pub(crate) const ANNOTATION: &str = "highwire.dev/external-load-balancer";
/// The shortest `resyncSeconds`.
pub(super) const RESYNC: u64 = 10;
/// For what a request that failed has to be repeated for, ever more slowly.
pub(super) const RETRIED: Duration = LONG.saturating_mul(3);

/// A scope with the Pods web-1 on n1 and web-2 on n2, a box and its ExternalLoadBalancer.
pub(super) struct Front {
    // In this order they go: Services are deleted while the updater answers.
    pub(super) scope: Scope,
    pub(super) balancer: ExternalLoadBalancer,
    pub(super) outside: OutsideBox,
    pub(super) cluster: Cluster,
    _own: Option<PrivateCluster>,
}

impl Front {
    /// On the shared cluster.
    pub(super) async fn new(prefix: &str) -> Result<Self> {
        Self::with(prefix, json!({})).await
    }

    /// The same with these fields of the spec, too; those of `httpUpdater` are merged.
    pub(super) async fn with(prefix: &str, spec: Value) -> Result<Self> {
        Self::on(Cluster::attach().await?, None, prefix, spec).await
    }

    /// On a cluster of its own with two nodes, for tests that change those.
    pub(super) async fn alone(prefix: &str) -> Result<Self> {
        let own = PrivateCluster::up(prefix, 2).await?;
        highwire::start(&own).await?;
        Self::on(own.clone(), Some(own), prefix, json!({})).await
    }

    async fn on(
        cluster: Cluster,
        own: Option<PrivateCluster>,
        prefix: &str,
        more: Value,
    ) -> Result<Self> {
        let scope = Scope::new(&cluster, prefix).await?;
        highwire::require(&cluster)?;
        web_pods(&scope).await?;
        let outside = OutsideBox::start(&cluster).await?;
        let mut spec = json!({
            "addresses": [outside.v4()],
            "httpUpdater": { "url": outside.url(), "timeoutSeconds": 5 },
        });
        merge(&mut spec, more);
        let balancer = ExternalLoadBalancer::create(&cluster, scope.namespace(), spec).await?;
        Ok(Self {
            scope,
            balancer,
            outside,
            cluster,
            _own: own,
        })
    }

    /// A Service for those Pods that the box is to serve, without ports.
    pub(super) fn service(&self, name: &str) -> ServiceBuilder {
        let service = self.scope.service(name).load_balancer().class(CLASS);
        let service = service.annotation(ANNOTATION, self.balancer.name());
        service.select("app", "web")
    }

    /// The same with one TCP port, which it has on the box already.
    pub(super) async fn served(&self, name: &str, port: u16) -> Result<Svc> {
        let service = self.service(name).tcp(port, 8080).create().await?;
        self.has_address(&service).await;
        Ok(service)
    }

    /// Waits until the Service's only address is the box's.
    pub(super) async fn has_address(&self, service: &Svc) {
        ingress_is(service, &[&self.outside.v4().to_string()]).await;
    }

    /// The name of a port of a Service on the box.
    pub(super) fn backend(&self, service: &Svc, port: u16, protocol: &str) -> String {
        let protocol = protocol.to_lowercase();
        format!(
            "{}_{}_{port}_{protocol}",
            self.scope.namespace(),
            service.name()
        )
    }

    /// Waits until the box sends the traffic of a port to these nodes, at the NodePort.
    pub(super) async fn sends_to(&self, service: &Svc, port: u16, nodes: &[&str]) -> Result<()> {
        self.sends_within(LONG, service, port, nodes).await
    }

    /// The same, with another limit.
    pub(super) async fn sends_within(
        &self,
        limit: Duration,
        service: &Svc,
        port: u16,
        nodes: &[&str],
    ) -> Result<()> {
        let (backend, node_port) = (self.backend(service, port, "tcp"), service.node_port(port)?);
        let nodes = nodes.iter();
        let wanted = nodes.map(|node| Ok(self.cluster.node(node)?.v4(node_port)));
        let wanted: BTreeSet<SocketAddr> = wanted.collect::<Result<_>>()?;
        wait_for(&format!("{backend} to go to {wanted:?}"), limit, || async {
            match self.outside.upstreams(&backend) {
                Some(found) if found == wanted => Ok(()),
                other => Err(other),
            }
        })
        .await;
        Ok(())
    }

    /// Waits until the box has exactly these backends, or for as long as retries may take.
    pub(super) async fn has_backends(&self, wanted: &[String]) {
        let mut wanted = wanted.to_vec();
        wanted.sort();
        wait_for(&format!("the backends {wanted:?}"), RETRIED, || async {
            let found = self.outside.nginx().backends();
            if found == wanted { Ok(()) } else { Err(found) }
        })
        .await;
    }

    /// Waits until the updater was asked for that backend and has answered 200.
    pub(super) async fn is_taken(&self, backend: &str) {
        wait_for(&format!("{backend} to be taken"), LONG, || async {
            let asked = self.outside.updater().requests_for(backend);
            let taken = asked.iter().any(|it| it.status == Some(200));
            if taken { Ok(()) } else { Err(asked) }
        })
        .await;
    }

    /// Fails if two requests for a backend overlapped, if nginx was given anything that it
    /// does not like, or, in a test that undoes nothing, if a backend was made what it had
    /// been before.
    pub(super) fn was_asked_well(&self) -> Result<()> {
        let requests = self.outside.updater().requests();
        ensure!(!requests.is_empty(), "nobody asked the updater anything");
        let found = overlapping(&requests);
        ensure!(found.is_empty(), "at once: {found:#?}");
        let found = turned_back(&requests);
        ensure!(found.is_empty(), "stale: {found:#?}");
        let refused = self.outside.watcher().refused();
        ensure!(refused.is_empty(), "nginx: {refused:#?}");
        Ok(())
    }
}

/// `highwire.dev/Serving` is False, and its message has these words; its reason.
pub(super) async fn not_serving(service: &Svc, words: &[&str]) -> String {
    wait_for(&format!("a condition with {words:?}"), LONG, || async {
        let status = service.get().await?.status;
        let conditions = status.and_then(|it| it.conditions).unwrap_or_default();
        let mut conditions = conditions.into_iter();
        let found = conditions.find(|it| it.type_ == "highwire.dev/Serving");
        let found = found.context("no condition")?;
        let says = found.status == "False" && words.iter().all(|it| found.message.contains(it));
        ensure!(says, "{found:?}");
        Ok(found.reason)
    })
    .await
}

/// Puts the fields of `more` into `object`, and those of objects in it into those.
fn merge(object: &mut Value, more: Value) {
    match (object, more) {
        (Value::Object(object), Value::Object(more)) => {
            for (key, value) in more {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, more) => *object = more,
    }
}
