//! A node is listed no sooner than its kube-proxy answers, in either mode: n1's is in
//! nftables mode, n2's in iptables mode.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{BOTH, LONG, answers, ingress_is, web_pods, web_service};
use highwire_e2e::lifecycle::change_proxy_mode;
use highwire_e2e::{Cluster, PrivateCluster, ProxyMode, Scope, Svc, highwire, wait_for};
use macro_rules_attribute::apply;
use serde_json::json;

/// Created right after a sync of kube-proxy, so that they wait for its next one.
const SERVICES: usize = 12;

/// A SYN that nobody took is sent again after 1 s, and would hide that it was lost.
const FIRST_SYN: Duration = Duration::from_millis(900);

/// Asks at each address that was not listed before. The first try must succeed.
async fn ask_the_listed(
    cluster: &Cluster,
    service: &Svc,
    port: u16,
    asked: &mut Vec<String>,
) -> Result<()> {
    for ip in service.ingress_ips().await? {
        if !asked.contains(&ip) {
            let at = format!("{ip}:{port}").parse()?;
            let answer = cluster.outside().http_get(at, FIRST_SYN);
            answer.with_context(|| format!("{at} was listed before it answered"))?;
            asked.push(ip);
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_node_is_listed_once_it_answers() -> Result<()> {
    let cluster = PrivateCluster::up_with("seen", 2, |config| {
        // Upstream's default; the other clusters' kube-proxies are ten times as fast.
        config.proxy_sync.min = "1s".to_owned();
    })
    .await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "seen").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    web_service(&scope, "first", port).await?;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    answers(&cluster.outside(), cluster.node("n2")?.v4(port)).await;
    let mut services = Vec::new();
    for number in 0..SERVICES {
        let port = scope.free_port()?;
        let service = scope.service(&format!("web-{number}")).load_balancer();
        let service = service.select("app", "web").tcp(port, 8080);
        // The ClusterIP and the NodePort are different entrances.
        let service = match number % 2 {
            0 => service,
            _ => service.external_local(),
        };
        services.push((service.create().await?, port, Vec::new()));
    }
    let end = Instant::now() + LONG;
    while services.iter().any(|(.., asked)| asked.len() < BOTH.len()) {
        ensure!(Instant::now() < end, "not all are listed after {LONG:?}");
        for (service, port, asked) in &mut services {
            ask_the_listed(&cluster, service, *port, asked).await?;
        }
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_stream_of_new_services_holds_none_of_them_back() -> Result<()> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let scope = Scope::new(&cluster, "stream").await?;
    // kube-proxy makes no entrance for a Service without endpoints, so each of these is
    // awaited for over a second, and before that the next one comes.
    let mut created = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(400));
    let end = Instant::now() + LONG;
    loop {
        pace.tick().await;
        let service = scope.service(&format!("web-{}", created.len()));
        let service = service.load_balancer().select("app", "nobody");
        let service = service.tcp(scope.free_port()?, 8080).create().await?;
        created.push(service);
        if created[0].ingress_ips().await? == BOTH {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "the first of {} Services is not listed",
            created.len()
        );
    }
}

#[apply(cluster_test)]
async fn a_service_without_endpoints_that_changes_twice_is_listed_again() -> Result<()> {
    let cluster = PrivateCluster::up_with("twice", 2, |config| {
        // No sync without a change: each shows when the last one ended.
        config.proxy_sync.period = "1h".to_owned();
    })
    .await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "twice").await?;
    let service = scope.service("nobody").load_balancer();
    let service = service.tcp(scope.free_port()?, 8080).create().await?;
    ingress_is(&service, &BOTH).await;
    for _ in 0..3 {
        let mut port = 0;
        // kube-proxy syncs for each, and both end between two questions of the agent.
        for _ in 0..2 {
            port = scope.free_port()?;
            let ports = json!({ "spec": { "ports": [{ "port": port, "targetPort": 8080 }] } });
            service.patch(ports).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        wait_for("the second port in the status", LONG, || async {
            let ingress = service.ingress().await?;
            let ports = ingress
                .iter()
                .flat_map(|entry| entry.ports.iter().flatten());
            let listed = ports
                .filter(|listed| listed.port == i32::from(port))
                .count();
            ensure!(listed == BOTH.len(), "{ingress:?}");
            anyhow::Ok(())
        })
        .await;
    }
    Ok(())
}

/// An nft that works until the file `broken` is there.
fn breakable_nft(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let nft = folder.join("nft");
    let broken = folder.join("broken");
    let script = format!(
        "#!/bin/sh\n[ ! -e {broken} ] || {{ echo 'Segmentation fault' >&2; exit 139; }}\n\
         exec /usr/sbin/nft \"$@\"\n",
        broken = broken.display(),
    );
    fs::write(&nft, script)?;
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[apply(cluster_test)]
async fn a_kube_proxy_that_cannot_sync_is_reported_and_gets_no_new_services() -> Result<()> {
    let cluster = PrivateCluster::up_with("fail", 2, |config| {
        // It calls itself unhealthy after two of these.
        config.proxy_sync.period = "5s".to_owned();
    })
    .await?;
    let (n1, folder) = (cluster.node("n1")?, cluster.state().path("nft"));
    breakable_nft(&folder)?;
    change_proxy_mode(&cluster, &n1, ProxyMode::Nftables, Some(&folder))?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "fail").await?;
    web_pods(&scope).await?;
    let [old_port, new_port] = [scope.free_port()?, scope.free_port()?];
    let old = web_service(&scope, "old", old_port).await?;
    ingress_is(&old, &BOTH).await;

    let broken = folder.join("broken");
    fs::write(&broken, "")?;
    let new = web_service(&scope, "new", new_port).await?;
    wait_for("a report that kube-proxy fails", LONG, || async {
        let described = cluster.kubectl(&["describe", "lbn", "n1"])?;
        ensure!(
            described.contains("ServiceProxyFailing")
                && described.contains("has not programmed IPv4 since"),
            "{described}"
        );
        Ok(())
    })
    .await;
    ingress_is(&new, &["192.0.2.12"]).await;
    ingress_is(&old, &BOTH).await;
    answers(&cluster.outside(), n1.v4(old_port)).await;

    fs::remove_file(&broken)?;
    ingress_is(&new, &BOTH).await;
    answers(&cluster.outside(), n1.v4(new_port)).await;
    Ok(())
}
