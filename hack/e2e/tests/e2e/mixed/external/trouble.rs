//! An updater that is away, that refuses, that says more than is true; a box that boots.

use std::time::Instant;

use anyhow::{Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::bed::external::load_balancer;
use highwire_e2e::bed::outside_box::reloads::Reloads;
use highwire_e2e::bed::outside_box::updater::Answer;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{AMPLE, LONG, SHORT, answers, ingress_is};
use highwire_e2e::highwire::workload::NAMESPACE;
use highwire_e2e::{Cluster, Svc, highwire, wait_for};
use macro_rules_attribute::apply;
use serde_json::json;

use super::front::{Front, RESYNC, RETRIED, not_serving};

#[apply(cluster_test)]
async fn a_service_is_gone_at_once_and_its_backend_when_the_updater_is_back() -> Result<()> {
    let front = Front::new("away").await?;
    let port = front.scope.free_port()?;
    let service = front.served("web", port).await?;
    let backend = front.backend(&service, port, "tcp");
    front.outside.updater().go_down();
    service.delete().await?;
    wait_for("the Service to be gone", SHORT, || async {
        service.get().await.is_err()
    })
    .await;
    wait_for("the deletion to be noted", LONG, || async {
        let pending = front.balancer.pending_deletions().await?;
        ensure!(pending == [backend.clone()], "{pending:?}");
        Ok(())
    })
    .await;
    ensure!(front.outside.nginx().backends() == [backend]);
    front.outside.updater().come_up()?;
    front.has_backends(&[]).await;
    wait_for("nothing to be left to do", LONG, || async {
        let pending = front.balancer.pending_deletions().await?;
        ensure!(pending.is_empty(), "{pending:?}");
        Ok(())
    })
    .await;
    front.was_asked_well()
}

#[apply(cluster_test)]
async fn a_box_that_boots_has_its_state_back_after_a_resync() -> Result<()> {
    let resync = json!({ "httpUpdater": { "resyncSeconds": RESYNC } });
    let front = Front::with("boots", resync).await?;
    let port = front.scope.free_port()?;
    let service = front.served("web", port).await?;
    let (client, to) = (front.cluster.outside(), front.outside.at(port));
    answers(&client, to).await;
    let backend = front.backend(&service, port, "tcp");
    front.outside.restart().await?;
    let booted = Instant::now();
    answers(&client, to).await;
    let asked = front.outside.updater().requests_for(&backend);
    ensure!(asked.iter().any(|it| it.started > booted), "{asked:?}");
    front.has_address(&service).await;
    front.was_asked_well()
}

#[apply(cluster_test)]
async fn a_reload_that_was_missed_is_made_up_for() -> Result<()> {
    let resync = json!({ "httpUpdater": { "resyncSeconds": RESYNC } });
    let front = Front::with("missed", resync).await?;
    let port = front.scope.free_port()?;
    let watcher = front.outside.watcher();
    watcher.set(Reloads::Held);
    let service = front.service("web").tcp(port, 8080).create().await?;
    front.is_taken(&front.backend(&service, port, "tcp")).await;
    watcher.miss();
    watcher.set(Reloads::EachChange);
    front.has_address(&service).await;
    answers(&front.cluster.outside(), front.outside.at(port)).await;
    Ok(())
}

/// A Secret in Highwire's namespace, until this goes.
struct Secret {
    cluster: Cluster,
    name: String,
}

impl Secret {
    fn create(cluster: &Cluster, name: &str, token: &str) -> Result<Self> {
        let secret = Self {
            cluster: cluster.clone(),
            name: name.to_owned(),
        };
        let token = format!("--from-literal=token={token}");
        let create = ["create", "secret", "generic", name, "-n", NAMESPACE, &token];
        cluster.kubectl(&create)?;
        Ok(secret)
    }

    fn change(&self, token: &str) -> Result<()> {
        let patch = json!({ "stringData": { "token": token } });
        let patch = format!("--patch={patch}");
        let change = ["patch", "secret", &self.name, "-n", NAMESPACE, &patch];
        self.cluster.kubectl(&change).map(drop)
    }

    /// The token as the API has it: that must not be seen elsewhere either.
    fn encoded(&self) -> Result<String> {
        let token = [
            "get",
            "secret",
            &self.name,
            "-n",
            NAMESPACE,
            "-ojsonpath={.data.token}",
        ];
        self.cluster.kubectl(&token)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let delete = ["delete", "secret", &self.name, "-n", NAMESPACE];
        if let Err(error) = self.cluster.kubectl(&delete) {
            eprintln!("{error:#}");
        }
    }
}

/// All that people see of a Service on a box, and what the controllers have written.
async fn seen(front: &Front, service: &Svc) -> Result<String> {
    let mut seen = serde_json::to_string(&service.get().await?)?;
    seen += &front.balancer.get().await?.to_string();
    seen += &load_balancer(&front.cluster, service).await?.to_string();
    let events = ["get", "events", "--all-namespaces", "-ojson"];
    seen += &front.cluster.kubectl(&events)?;
    for name in highwire::CONTROLLERS {
        let controller = front.cluster.controller(name)?;
        seen += &controller.unit().log();
        seen += &controller.metrics()?;
    }
    Ok(seen)
}

#[apply(cluster_test)]
async fn a_wrong_token_is_named_and_not_shown() -> Result<()> {
    let cluster = Cluster::attach().await?;
    let name = format!("updater-{}", cluster.state().next("secret")?);
    let (wrong, right) = (format!("wrong-{name}-4711"), format!("right-{name}-4711"));
    let secret = Secret::create(&cluster, &name, &wrong)?;
    let by_secret = json!({ "httpUpdater": { "secretRef": { "name": name } } });
    let front = Front::with("token", by_secret).await?;
    front.outside.updater().require_token(Some(&right));
    let port = front.scope.free_port()?;
    let service = front.service("web").tcp(port, 8080).create().await?;
    let reason = not_serving(&service, &["401"]).await;
    ensure!(reason == "UpdaterFailing", "{reason}");
    ensure!(service.ingress().await?.is_empty());
    let sent = format!("Bearer {wrong}");
    let asked = front.outside.updater().requests();
    ensure!(
        asked
            .iter()
            .all(|it| it.authorization.as_ref() == Some(&sent))
    );
    let shown = seen(&front, &service).await?;
    ensure!(!shown.contains(&wrong), "the token is shown");
    ensure!(
        !shown.contains(&secret.encoded()?),
        "the token is shown, encoded"
    );

    secret.change(&right)?;
    wait_for("the address", RETRIED, || async {
        service
            .ingress_ips()
            .await
            .is_ok_and(|found| !found.is_empty())
    })
    .await;
    front.has_address(&service).await;
    answers(&front.cluster.outside(), front.outside.at(port)).await;
    let shown = seen(&front, &service).await?;
    ensure!(!shown.contains(&right), "the token is shown");
    ensure!(
        !shown.contains(&secret.encoded()?),
        "the token is shown, encoded"
    );
    Ok(())
}

#[apply(cluster_test)]
async fn there_is_no_address_before_the_port_takes_connections() -> Result<()> {
    let front = Front::new("early").await?;
    let port = front.scope.free_port()?;
    front.outside.watcher().set(Reloads::Held);
    let service = front.service("web").tcp(port, 8080).create().await?;
    front.is_taken(&front.backend(&service, port, "tcp")).await;
    let reason = not_serving(&service, &["takes no connections"]).await;
    ensure!(reason == "NotListening", "{reason}");
    ensure!(service.ingress().await?.is_empty());
    front.outside.watcher().set(Reloads::EachChange);
    front.has_address(&service).await;
    front
        .cluster
        .outside()
        .http_get(front.outside.at(port), AMPLE)?;
    front.was_asked_well()
}

#[apply(cluster_test)]
async fn what_an_updater_does_not_take_is_named_and_sent_again() -> Result<()> {
    let front = Front::new("refused").await?;
    let updater = front.outside.updater();
    updater.answer(Answer::Error("the disk is full".to_owned()));
    let port = front.scope.free_port()?;
    let service = front.service("web").tcp(port, 8080).create().await?;
    not_serving(&service, &["500", "the disk is full"]).await;
    // A web server that is no updater: nobody listens at the port.
    updater.answer(Answer::Rubbish);
    let backend = front.backend(&service, port, "tcp");
    wait_for(
        "a request that is answered with rubbish",
        RETRIED,
        || async {
            let asked = updater.requests_for(&backend);
            asked.iter().any(|it| it.status == Some(200))
        },
    )
    .await;
    ensure!(service.ingress().await?.is_empty());
    updater.answer(Answer::Usual);
    // Whatever the rubbish was taken for, the next resync repairs it.
    let resync = json!({ "spec": { "httpUpdater": { "resyncSeconds": RESYNC } } });
    front.balancer.patch(resync).await?;
    wait_for("the address", RETRIED, || async {
        let found = service
            .ingress_ips()
            .await
            .map_err(|error| error.to_string())?;
        if found.is_empty() {
            Err("none".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    answers(&front.cluster.outside(), front.outside.at(port)).await;
    ingress_is(&service, &[&front.outside.v4().to_string()]).await;
    front.was_asked_well()
}
