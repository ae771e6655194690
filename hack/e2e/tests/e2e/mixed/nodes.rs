//! Which states of a Node take it out of the ingress, and flags that change whose
//! business a node or a Service is.
//!
//! On clusters of their own: they change Nodes, which concerns every Service.

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, BOTH, LONG, SHORT, answers, ingress_is, refuses, web_pods, web_service,
};
use highwire_e2e::reported::serving;
use highwire_e2e::{PrivateCluster, Scope, Svc, highwire, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

const N2: [&str; 1] = ["192.0.2.12"];
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A cluster with Highwire on both nodes and a Service that both serve.
struct Bed {
    scope: Scope,
    service: Svc,
    port: u16,
    // Dropped last: the scope is taken down through it.
    cluster: PrivateCluster,
}

impl Bed {
    async fn up(suffix: &str, agents: &[&str], controllers: &[&str]) -> Result<Self> {
        let cluster = PrivateCluster::up(suffix, 2).await?;
        highwire::start_with(&cluster, agents, controllers).await?;
        let scope = Scope::new(&cluster, suffix).await?;
        web_pods(&scope).await?;
        let port = scope.free_port()?;
        let service = scope.service("web").load_balancer();
        let service = service
            .tcp(port, 8080)
            .class("highwire.dev/node")
            .create()
            .await?;
        ingress_is(&service, &BOTH).await;
        Ok(Self {
            scope,
            service,
            port,
            cluster,
        })
    }

    /// Sets the status of n1's condition `Ready`, as the kubelet or, when that is
    /// silent, the node lifecycle controller would.
    fn set_ready(&self, status: &str) -> Result<()> {
        let conditions = json!([{"type": "Ready", "status": status, "reason": "Test"}]);
        self.patch_status(&json!({"conditions": conditions}))
    }

    fn patch_status(&self, status: &Value) -> Result<()> {
        let patch = format!("--patch={}", json!({ "status": status }));
        let arguments = [
            "patch",
            "node",
            "n1",
            "--subresource=status",
            "--type=merge",
            &patch,
        ];
        self.cluster.kubectl(&arguments).map(drop)
    }
}

#[apply(cluster_test)]
async fn a_node_leaves_with_its_readiness_its_label_its_taint_and_its_object() -> Result<()> {
    let bed = Bed::up("nod", &[], &[]).await?;
    let (cluster, service) = (&bed.cluster, &bed.service);
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(bed.port));

    for status in ["False", "Unknown"] {
        bed.set_ready(status)?;
        ingress_is(service, &N2).await;
        bed.set_ready("True")?;
        ingress_is(service, &BOTH).await;
    }

    cluster.label_node("n1", EXCLUDE, Some("")).await?;
    ingress_is(service, &N2).await;
    let reply = client.http_get(to, SHORT);
    ensure!(reply.is_ok(), "it still forwards: {reply:?}");
    cluster.label_node("n1", EXCLUDE, None).await?;
    ingress_is(service, &BOTH).await;

    let taint = "ToBeDeletedByClusterAutoscaler=1:NoSchedule";
    cluster.kubectl(&["taint", "node", "n1", taint])?;
    ingress_is(service, &N2).await;
    cluster.kubectl(&["taint", "node", "n1", &format!("{taint}-")])?;
    ingress_is(service, &BOTH).await;

    // A cordoned node takes no new Pods; that it serves is another matter. What
    // follows shows that the controller has seen it cordoned.
    cluster.kubectl(&["cordon", "n1"])?;
    let later = web_service(&bed.scope, "later", bed.scope.free_port()?).await?;
    ingress_is(&later, &BOTH).await;
    ensure!(service.ingress_ips().await? == BOTH);

    // A report that somebody deletes is written again.
    let uid = || cluster.kubectl(&["get", "lbn", "n1", "-o=jsonpath={.metadata.uid}"]);
    let deleted = uid()?;
    cluster.kubectl(&["delete", "lbn", "n1"])?;
    wait_for("a new report", LONG, || async {
        let new = uid()?;
        ensure!(new != deleted, "{new}");
        Ok(())
    })
    .await;
    ingress_is(service, &BOTH).await;

    cluster.kubectl(&["delete", "node", "n1"])?;
    ingress_is(service, &N2).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_service_says_why_it_has_no_address_until_a_node_joins() -> Result<()> {
    let cluster = PrivateCluster::up("why", 2).await?;
    highwire::apply(&cluster)?;
    let controller = cluster.controller("c1")?;
    controller.start(&[]).await?;
    controller.wait_ready(highwire::READY).await?;
    let scope = Scope::new(&cluster, "why").await?;
    let service = web_service(&scope, "web", scope.free_port()?).await?;
    let said = serving(&service, "False").await;
    ensure!(said.reason == "NoNodes", "{}", said.reason);
    let note = highwire_e2e::reported::event(&scope, &service, "NoReadyNodes").await;
    ensure!(said.message == note, "{} {note}", said.message);
    ensure!(note.contains("kubectl label node"), "{note}");

    highwire::start(&cluster).await?;
    ingress_is(&service, &BOTH).await;
    serving(&service, "True").await;
    let later = web_service(&scope, "later", scope.free_port()?).await?;
    ingress_is(&later, &BOTH).await;
    let conditions = later
        .get()
        .await?
        .status
        .and_then(|status| status.conditions);
    ensure!(
        conditions.unwrap_or_default().is_empty(),
        "it was never in trouble"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn agents_that_fall_silent_together_are_not_dead_until_a_node_says_so() -> Result<()> {
    let bed = Bed::up("sil", &[], &["--empty-hold=15"]).await?;
    let (cluster, service) = (&bed.cluster, &bed.service);
    let nodes_are = |state: &str, count: f64| {
        let metric = format!("highwire_controller_nodes{{state=\"{state}\"}}");
        async move {
            wait_for(&format!("{metric} {count}"), LONG, || async {
                let leader = cluster.controller(&highwire::leader(cluster).await?)?;
                let found = leader.metric(&metric)?;
                ensure!(found == count, "{found}");
                Ok(())
            })
            .await;
        }
    };
    // As if the API server throttled them: their Nodes are Ready.
    for node in highwire::SERVING {
        cluster.agent(node)?.kill()?;
    }
    nodes_are("unproven", 2.0).await;
    ensure!(service.ingress_ips().await? == BOTH);
    // Who is proven dead goes. The other one, silent alone now, is dead too, but
    // the list would become empty.
    bed.set_ready("Unknown")?;
    ingress_is(service, &N2).await;
    nodes_are("out", 2.0).await;
    ensure!(service.ingress_ips().await? == N2, "it is held");
    ingress_is(service, &[]).await;

    bed.set_ready("True")?;
    highwire::start(cluster).await?;
    ingress_is(service, &BOTH).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_nodes_addresses_reach_the_ingress_list() -> Result<()> {
    let bed = Bed::up("adr", &[], &[]).await?;
    let (cluster, service) = (&bed.cluster, &bed.service);
    let internal = |last: u8| json!({"type": "InternalIP", "address": format!("192.0.2.{last}")});
    let external = |last: u8| json!({"type": "ExternalIP", "address": format!("203.0.113.{last}")});
    let internal6 =
        |last: u8| json!({"type": "InternalIP", "address": format!("2001:db8:1::{last}")});
    let addresses = |list: &[Value]| bed.patch_status(&json!({ "addresses": list }));

    // A public address that a router translates: packets come for the InternalIP.
    let fabric = cluster.netns("fabric")?;
    let upstream = "table ip upstream { chain prerouting { type nat hook prerouting priority -100; \
                    ip daddr 203.0.113.11 dnat to 192.0.2.11; }; }";
    fabric.check(&["nft", upstream])?;
    addresses(&[internal(11), external(11)])?;
    ingress_is(service, &["203.0.113.11"]).await;
    let public = format!("203.0.113.11:{}", bed.port).parse()?;
    answers(&cluster.outside(), public).await;

    // Which concerns no other family, and the primary one comes first.
    let dual = bed
        .scope
        .service("dual")
        .load_balancer()
        .select("app", "web");
    let dual = dual
        .dual_stack()
        .spec("ipFamilies", json!(["IPv6", "IPv4"]));
    let dual = dual.class("highwire.dev/node");
    let dual = dual.tcp(bed.scope.free_port()?, 8080).create().await?;
    addresses(&[internal(11), external(11), internal6(11)])?;
    ingress_is(&dual, &[ALL[2], ALL[3], "203.0.113.11"]).await;
    addresses(&[internal(11), external(11)])?;
    ingress_is(&dual, &[ALL[3], "203.0.113.11"]).await;

    let annotate = |kind: &str| {
        let annotation = json!({"highwire.dev/address-type": kind});
        service.patch(json!({"metadata": {"annotations": annotation}}))
    };
    annotate("InternalIP").await?;
    ingress_is(service, &BOTH).await;
    annotate("ExternalIP").await?;
    ingress_is(service, &["203.0.113.11"]).await;
    addresses(&[internal(11), external(99)])?;
    ingress_is(service, &["203.0.113.99"]).await;
    // Nobody has one any more.
    addresses(&[internal(11)])?;
    ingress_is(service, &[]).await;
    let event = highwire_e2e::reported::event(&bed.scope, service, "NoReadyNodes").await;
    ensure!(event.contains("no address of the type"), "{event}");
    annotate("Auto").await?;
    ingress_is(service, &BOTH).await;
    // Of two nodes one is listed, and the status says that there are more.
    let most = |number: Value| {
        let annotation = json!({"highwire.dev/max-addresses": number});
        service.patch(json!({"metadata": {"annotations": annotation}}))
    };
    most(json!("1")).await?;
    wait_for("one address and the words", LONG, || async {
        let (listed, said) = (service.ingress_ips().await?, serving(service, "True").await);
        let limited = listed.len() == 1 && said.reason == "Limited";
        ensure!(limited, "{listed:?} {said:?}");
        Ok(())
    })
    .await;
    most(Value::Null).await?;
    ingress_is(service, &BOTH).await;
    // The node's address changes; the agent serves what the interface has.
    let n1 = cluster.node("n1")?;
    n1.netns().ip_batch("addr add 192.0.2.77/24 dev eth0")?;
    addresses(&[internal(77)])?;
    ingress_is(service, &["192.0.2.12", "192.0.2.77"]).await;
    let moved = format!("192.0.2.77:{}", bed.port).parse()?;
    answers(&cluster.outside(), moved).await;
    Ok(())
}

#[apply(cluster_test)]
async fn flags_change_whose_business_a_service_a_node_and_an_address_are() -> Result<()> {
    let agents = ["--default-class=false", "--address-cidr=192.0.2.0/28"];
    let controllers = ["--default-class=false", "--ignore-exclude-label"];
    let bed = Bed::up("flg", &agents, &controllers).await?;
    let (cluster, client) = (&bed.cluster, bed.cluster.outside());
    let n1 = cluster.node("n1")?;

    let port = bed.scope.free_port()?;
    let classless = web_service(&bed.scope, "classless", port).await?;
    cluster.label_node("n1", EXCLUDE, Some("")).await?;
    // Anybody who served the one without a class had served it before this one.
    let other = bed.scope.free_port()?;
    let named = bed
        .scope
        .service("named")
        .load_balancer()
        .select("app", "web");
    let named = named
        .tcp(other, 8080)
        .class("highwire.dev/node")
        .create()
        .await?;
    ingress_is(&named, &BOTH).await;
    answers(&client, n1.v4(other)).await;
    refuses(&client, n1.v4(port)).await;
    let untouched = classless.get().await?;
    let managers = untouched.metadata.managed_fields.unwrap_or_default();
    ensure!(
        managers.iter().all(|entry| entry.subresource.is_none()),
        "nobody has written its status: {managers:?}"
    );

    // 192.0.2.11 is in 192.0.2.0/28; this one is not.
    n1.netns().ip_batch("addr add 192.0.2.200/24 dev eth0")?;
    n1.netns().ip_batch("addr add 192.0.2.13/24 dev eth0")?;
    let at = |address: &str| format!("{address}:{other}").parse();
    answers(&client, at("192.0.2.13")?).await;
    refuses(&client, at("192.0.2.200")?).await;
    Ok(())
}
