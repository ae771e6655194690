//! What ExternalDNS and Traefik make of the status that Highwire writes (docs/readers.md).

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::bed::readers::zone::Zone;
use highwire_e2e::bed::readers::{ExternalDns, Traefik};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{ALL, BOTH, LONG, ingress_is, web, web_pods};
use highwire_e2e::reported::{bind_tcp, ports_error};
use highwire_e2e::{PrivateCluster, Scope, Svc, highwire, wait_for};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, IngressLoadBalancerIngress};
use kube::api::{Api, PostParams};
use macro_rules_attribute::apply;
use serde_json::json;

const HOSTNAME: &str = "external-dns.alpha.kubernetes.io/hostname";
const TTL: &str = "external-dns.alpha.kubernetes.io/ttl";
const N1: [&str; 2] = [ALL[0], ALL[2]];
const N2: [&str; 2] = [ALL[1], ALL[3]];

/// Waits until the name has a record for each of these addresses, and nothing else.
async fn name_is(zone: &Zone, name: &str, addresses: &[&str]) {
    let mut wanted: Vec<String> = addresses
        .iter()
        .map(|address| match address.contains(':') {
            true => format!("AAAA {address}"),
            false => format!("A {address}"),
        })
        .collect();
    wanted.sort();
    // After an event ExternalDNS waits for 5 s.
    wait_for(&format!("{name}: {wanted:?}"), 2 * LONG, || async {
        let found = zone.lookup(name);
        if found == wanted { Ok(()) } else { Err(found) }
    })
    .await;
}

/// A Service of a shop and Traefik's own, whose addresses the shop's Ingress gets; names of
/// both.
struct Bed {
    scope: Scope,
    service: Svc,
    port: u16,
    ingresses: Api<Ingress>,
    dns: ExternalDns,
    _traefik: Traefik,
    // Dropped last: all else is taken down through it.
    cluster: PrivateCluster,
}

impl Bed {
    async fn up() -> Result<Self> {
        let cluster = PrivateCluster::up("rdr", 2).await?;
        highwire::start(&cluster).await?;
        let scope = Scope::new(&cluster, "rdr").await?;
        web_pods(&scope).await?;
        let port = scope.free_port()?;
        let service = scope.service("web").load_balancer().dual_stack();
        let service = service
            .tcp(port, 8080)
            .annotation(HOSTNAME, "web.example.org");
        let service = service.annotation(TTL, "30").create().await?;
        let traefik = Traefik::start(&cluster, "traefik", &service)?;
        let ingresses = Api::namespaced(cluster.client(), scope.namespace());
        let sources = ["--source=service", "--source=ingress", "--interval=1s"];
        let dns = ExternalDns::start(&cluster, "dns", &sources).await?;
        let bed = Self {
            scope,
            service,
            port,
            ingresses,
            dns,
            _traefik: traefik,
            cluster,
        };
        bed.create_ingress().await?;
        Ok(bed)
    }

    async fn create_ingress(&self) -> Result<()> {
        let class: IngressClass = serde_json::from_value(json!({
            "metadata": { "name": "traefik" },
            "spec": { "controller": "traefik.io/ingress-controller" },
        }))?;
        let classes: Api<IngressClass> = Api::all(self.cluster.client());
        classes.create(&PostParams::default(), &class).await?;
        let backend = json!({ "service": { "name": "web", "port": { "number": self.port } } });
        let path = json!({ "path": "/", "pathType": "Prefix", "backend": backend });
        let rule = json!({ "host": "shop.example.org", "http": { "paths": [path] } });
        let ingress: Ingress = serde_json::from_value(json!({
            "metadata": { "name": "shop", "namespace": self.scope.namespace() },
            "spec": { "ingressClassName": "traefik", "rules": [rule] },
        }))?;
        self.ingresses
            .create(&PostParams::default(), &ingress)
            .await?;
        Ok(())
    }

    /// What the Ingress's status lists.
    async fn listed(&self) -> Result<Vec<IngressLoadBalancerIngress>> {
        let status = self.ingresses.get("shop").await?.status;
        let balancer = status.and_then(|status| status.load_balancer);
        Ok(balancer.and_then(|it| it.ingress).unwrap_or_default())
    }

    /// Waits until the Service lists these addresses, and then all readers have them.
    async fn all_see(&self, addresses: &[&str]) {
        ingress_is(&self.service, addresses).await;
        name_is(self.dns.zone(), "web.example.org", addresses).await;
        self.ingress_lists(addresses).await;
        name_is(self.dns.zone(), "shop.example.org", addresses).await;
    }

    /// Waits until the Ingress lists these addresses, each with the Service's port.
    async fn ingress_lists(&self, addresses: &[&str]) {
        let port = i32::from(self.port);
        let as_listed = |entry: &IngressLoadBalancerIngress, address: &str| {
            let ports = entry.ports.as_deref().unwrap_or_default();
            entry.ip.as_deref() == Some(address)
                && entry.hostname.is_none()
                && matches!(ports, [only] if only.port == port && only.error.is_none())
        };
        wait_for(&format!("the Ingress: {addresses:?}"), LONG, || async {
            let listed = self.listed().await?;
            let mut pairs = listed.iter().zip(addresses);
            let same = pairs.all(|(entry, address)| as_listed(entry, address));
            ensure!(same && listed.len() == addresses.len(), "{listed:?}");
            Ok(())
        })
        .await;
    }
}

#[apply(cluster_test)]
async fn names_and_ingresses_follow_the_nodes() -> Result<()> {
    let bed = Bed::up().await?;
    let (cluster, zone) = (&bed.cluster, bed.dns.zone());
    bed.all_see(&ALL).await;
    let ttls = zone.ttls("web.example.org");
    ensure!(ttls.iter().eq([&30]), "{ttls:?}");

    // Nobody says goodbye: the Lease lapses.
    cluster.agent("n2")?.kill()?;
    bed.all_see(&N1).await;
    highwire::start(cluster).await?;
    bed.all_see(&ALL).await;

    cluster.opt_out("n1").await?;
    bed.all_see(&N2).await;
    for name in ["web.example.org", "shop.example.org"] {
        let history = zone.history(name);
        let always = history.iter().all(|records| !records.is_empty());
        ensure!(always, "{name} had no record for a while: {history:?}");
    }

    // No node is left. The record goes; Traefik writes no empty status.
    cluster.opt_out("n2").await?;
    ingress_is(&bed.service, &[]).await;
    name_is(zone, "web.example.org", &[]).await;
    bed.ingress_lists(&N2).await;

    for node in highwire::SERVING {
        cluster.opt_in(node).await?;
    }
    bed.all_see(&ALL).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_name_has_the_addresses_that_its_service_lists() -> Result<()> {
    let (cluster, scope) = web("dns").await?;
    let namespace = format!("--namespace={}", scope.namespace());
    let flags = ["--source=service", &namespace, "--events"];
    let dns = ExternalDns::start(&cluster, scope.namespace(), &flags).await?;
    let zone = dns.zone();
    let named = |name: &str| {
        let host = format!("{name}.example.org");
        let service = scope.service(name).load_balancer().select("app", "web");
        service.annotation(HOSTNAME, &host)
    };

    // Somebody else's, and what they write.
    let other = named("other").tcp(80, 8080).class("example.com/other");
    let other = other.create().await?;
    let theirs = json!([{ "ip": "198.51.100.77" }, { "ip": "2001:db8:9::77" }]);
    other.write_ingress("cloud", theirs).await?;

    // One that no node can serve, and one that n1 can.
    let (nowhere, partly) = (scope.free_port()?, scope.free_port()?);
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    let taken = [(&n1, nowhere), (&n2, nowhere), (&n2, partly)].into_iter();
    let listeners = taken.map(|(node, port)| bind_tcp(node.netns(), "0.0.0.0", port));
    let listeners: Vec<_> = listeners.collect::<Result<_>>()?;
    let refused = named("nowhere").tcp(nowhere, 8080).create().await?;
    let part = named("partly").tcp(partly, 8080).create().await?;
    ports_error(&refused, "True").await;
    name_is(zone, "partly.example.org", &BOTH[..1]).await;
    let theirs = ["A 198.51.100.77", "AAAA 2001:db8:9::77"];
    ensure!(zone.lookup("other.example.org") == theirs);

    // A later one has its record, so ExternalDNS has seen the others.
    named("later")
        .tcp(scope.free_port()?, 8080)
        .create()
        .await?;
    name_is(zone, "later.example.org", &BOTH).await;
    let history = zone.history("nowhere.example.org");
    ensure!(history.is_empty(), "{history:?}");

    // The ports are free, and the names follow.
    drop(listeners);
    ingress_is(&part, &BOTH).await;
    name_is(zone, "nowhere.example.org", &BOTH).await;
    name_is(zone, "partly.example.org", &BOTH).await;
    let history = zone.history("other.example.org");
    ensure!(history == [theirs], "{history:?}");

    refused.delete().await?;
    name_is(zone, "nowhere.example.org", &[]).await;
    Ok(())
}
