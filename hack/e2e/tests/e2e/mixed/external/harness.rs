//! The box outside, proven without Highwire: what its updater takes, its nginx serves.
//!
//! Addresses: boxes 203.0.113.0/24 and 2001:db8:3::/64, nodes 192.0.2.0/24, the client
//! 198.51.100.10 (see `highwire_e2e::layout`).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use highwire_e2e::bed::outside_box::reloads::Reloads;
use highwire_e2e::bed::outside_box::requests::{overlapping, turned_back};
use highwire_e2e::bed::outside_box::updater::{Answer, PATH, PORT};
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    LONG, SHORT, all_answer, answers, at_both_addresses, refuses, refuses_new_udp, web_pods,
};
use highwire_e2e::lab::http::{HttpAnswer, http_send};
use highwire_e2e::{Cluster, ConnectError, OutsideBox, Scope, Svc, wait_for};
use macro_rules_attribute::apply;
use serde_json::{Value, json};

/// A scope with the Pods web-1 on n1 and web-2 on n2, and a box.
struct Bed {
    scope: Scope,
    outside: OutsideBox,
    cluster: Cluster,
}

impl Bed {
    async fn new(prefix: &str) -> Result<Self> {
        let cluster = Cluster::attach().await?;
        let scope = Scope::new(&cluster, prefix).await?;
        web_pods(&scope).await?;
        let outside = OutsideBox::start(&cluster).await?;
        Ok(Self {
            scope,
            outside,
            cluster,
        })
    }

    /// A Service of the class that only boxes outside serve, at these ports, of both families,
    /// whose NodePorts answer already: to a node that refuses, nginx sends nothing for 10 s.
    async fn service(&self, tcp: u16, udp: u16) -> Result<Svc> {
        let service = self.scope.service("web").load_balancer().dual_stack();
        let service = service.class("highwire.dev/external");
        let service = service.tcp(tcp, 8080).udp(udp, 5353).create().await?;
        let client = self.cluster.outside();
        for node in ["n1", "n2"] {
            let to = at_both_addresses(&self.cluster, node, service.node_port(tcp)?)?;
            for to in to {
                answers(&client, to).await;
            }
            let to = self.cluster.node(node)?.v4(service.node_port(udp)?);
            wait_for("an answer by UDP", LONG, || async {
                client.udp_ask(to, SHORT)
            })
            .await;
        }
        Ok(service)
    }

    /// Asks the updater from where the controllers are.
    fn ask(
        &self,
        method: &str,
        body: &str,
        headers: &[(&str, &str)],
        limit: Duration,
    ) -> Result<HttpAnswer, ConnectError> {
        let (from, to) = (self.cluster.netns("cp"), self.outside.at(PORT));
        let from = from.map_err(|error| ConnectError::Other(format!("{error:#}")))?;
        from.run(|| http_send(to, (method, PATH), headers, body, limit))
    }

    fn post(&self, body: &Value) -> Result<HttpAnswer, ConnectError> {
        self.ask("POST", &body.to_string(), &[], LONG)
    }

    fn delete(&self, backend: &str) -> Result<HttpAnswer, ConnectError> {
        let body = json!({ "backendName": backend }).to_string();
        self.ask("DELETE", &body, &[], LONG)
    }

    /// Makes a backend of a port of the box, to the NodePort on n1 and n2.
    fn forward(&self, backend: &str, protocol: &str, port: u16, node_port: u16) -> Result<()> {
        let body = backend_of(
            backend,
            protocol,
            port,
            &["192.0.2.11", "192.0.2.12"],
            node_port,
        );
        taken(&self.post(&body)?)
    }
}

fn backend_of(name: &str, protocol: &str, port: u16, hosts: &[&str], node_port: u16) -> Value {
    let hosts = hosts.iter();
    let servers: Vec<Value> = hosts
        .map(|host| json!({ "host": host, "port": node_port }))
        .collect();
    json!({
        "backendName": name, "lbPort": port, "lbProtocol": protocol, "upstreamServers": servers,
        "proxyTimeoutSeconds": 0, "proxyConnectTimeoutSeconds": 0,
    })
}

fn taken(answer: &HttpAnswer) -> Result<()> {
    ensure!(
        answer.status == 200 && answer.body.trim() == "{}",
        "{answer:?}"
    );
    Ok(())
}

fn failed(answer: &HttpAnswer, status: u16) -> Result<String> {
    ensure!(answer.status == status, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.body)?;
    let reason = body["err"].as_str().unwrap_or_default();
    ensure!(!reason.is_empty(), "{answer:?}");
    Ok(reason.to_owned())
}

#[apply(cluster_test)]
async fn tcp_and_udp_reach_pods_through_the_box() -> Result<()> {
    let bed = Bed::new("box").await?;
    let (tcp, udp, six) = (
        bed.scope.free_port()?,
        bed.scope.free_port()?,
        bed.scope.free_port()?,
    );
    let service = bed.service(tcp, udp).await?;
    let (node_tcp, node_udp) = (service.node_port(tcp)?, service.node_port(udp)?);
    bed.forward("web_tcp", "TCP", tcp, node_tcp)?;
    bed.forward("web_udp", "UDP", udp, node_udp)?;
    let by_v6 = ["[2001:db8:1::11]", "[2001:db8:1::12]"];
    taken(&bed.post(&backend_of("web_six", "tcp", six, &by_v6, node_tcp))?)?;

    let (client, outside) = (bed.cluster.outside(), &bed.outside);
    let pods = ["web-1", "web-2"];
    all_answer(&pods, || client.http_get(outside.at(tcp), SHORT)).await;
    all_answer(&pods, || client.udp_ask(outside.at(udp), SHORT)).await;
    all_answer(&pods, || client.http_get(outside.at(six), SHORT)).await;
    let upstreams = outside.upstreams("web_udp").unwrap_or_default();
    let nodes = ["n1", "n2"].map(|node| bed.cluster.node(node).map(|it| it.v4(node_udp)));
    ensure!(upstreams == nodes.into_iter().collect::<Result<_>>()?);
    ensure!(outside.nginx().backends() == ["web_six", "web_tcp", "web_udp"]);

    for backend in ["web_tcp", "web_udp"] {
        taken(&bed.delete(backend)?)?;
    }
    refuses(&client, outside.at(tcp)).await;
    refuses_new_udp(&client, outside.at(udp)).await;
    ensure!(outside.upstreams("web_tcp").is_none());
    answers(&client, outside.at(six)).await;
    let refused = outside.watcher().refused();
    ensure!(refused.is_empty(), "{refused:?}");
    Ok(())
}

#[apply(cluster_test)]
async fn the_updater_answers_as_the_one_it_stands_for() -> Result<()> {
    let bed = Bed::new("answers").await?;
    let port = bed.scope.free_port()?;
    taken(&bed.delete("nobody")?)?;
    ensure!(bed.outside.watcher().reloads() == 0);
    for body in [
        "",
        "{",
        "[1]",
        r#"{"lbPort": "80"}"#,
        r#"{"backendName": 7}"#,
    ] {
        for method in ["POST", "DELETE"] {
            let is_read = method == "DELETE" && body.contains("lbPort");
            let answer = bed.ask(method, body, &[], LONG)?;
            let status = if is_read { 500 } else { 400 };
            failed(&answer, status).map_err(|error| error.context(format!("{method} {body}")))?;
        }
    }
    for body in ["{}", r#"{"backendName": ""}"#, r#"{"backendName": "  "}"#] {
        for method in ["POST", "DELETE"] {
            failed(&bed.ask(method, body, &[], LONG)?, 500)?;
        }
    }
    ensure!(bed.ask("GET", "", &[], LONG)?.status == 405);
    let elsewhere = bed.cluster.netns("cp")?.run(|| {
        let to = bed.outside.at(PORT);
        http_send(to, ("POST", "/"), &[], "{}", LONG)
    });
    ensure!(elsewhere?.status == 404);
    ensure!(bed.outside.nginx().backends().is_empty());

    // What it writes, it writes unseen.
    bed.forward("web", "anything", port, 30_000)?;
    let stream = bed.outside.nginx().stream("web").unwrap_or_default();
    ensure!(stream.contains(&format!("listen {port};")), "{stream}");
    ensure!(stream.contains("proxy_timeout 5s;"), "{stream}");
    let mut body = backend_of("web", "uDp", port, &["192.0.2.11"], 30_000);
    body["proxyTimeoutSeconds"] = json!(60);
    taken(&bed.post(&body)?)?;
    let stream = bed.outside.nginx().stream("web").unwrap_or_default();
    ensure!(stream.contains(&format!("listen {port} udp;")), "{stream}");
    ensure!(stream.contains("proxy_timeout 60s;"), "{stream}");
    Ok(())
}

#[apply(cluster_test)]
async fn the_updater_misbehaves_when_asked_to() -> Result<()> {
    let bed = Bed::new("switches").await?;
    let (updater, port) = (bed.outside.updater(), bed.scope.free_port()?);
    let forward = || bed.forward("web", "tcp", port, 30_000);

    updater.go_down();
    let body = json!({}).to_string();
    let down = bed.ask("POST", &body, &[], SHORT);
    ensure!(down == Err(ConnectError::Refused), "{down:?}");
    updater.come_up()?;

    updater.require_token(Some("secret"));
    for headers in [&[][..], &[("Authorization", "Bearer wrong")][..]] {
        ensure!(bed.ask("DELETE", &body, headers, LONG)?.status == 401);
    }
    let right = [("Authorization", "Bearer secret")];
    failed(&bed.ask("DELETE", &body, &right, LONG)?, 500)?;
    updater.require_token(None);

    updater.answer(Answer::Error("the disk is full".to_owned()));
    let answer = bed.post(&backend_of("web", "tcp", port, &["192.0.2.11"], 1))?;
    ensure!(failed(&answer, 500)? == "the disk is full");
    updater.answer(Answer::Rubbish);
    let answer = bed.post(&backend_of("web", "tcp", port, &["192.0.2.11"], 1))?;
    ensure!(
        answer.status == 200 && answer.body.contains("<html>"),
        "{answer:?}"
    );
    updater.answer(Answer::Usual);
    ensure!(bed.outside.nginx().backends().is_empty());

    // Who hangs up is not waited for, and yet has what was asked for in the end.
    updater.forget_requests();
    updater.delay(Duration::from_secs(2));
    let began = Instant::now();
    let late = bed.ask(
        "POST",
        &backend_of("web", "tcp", port, &[], 1).to_string(),
        &[],
        SHORT,
    );
    ensure!(late == Err(ConnectError::Timeout), "{late:?}");
    updater.delay(Duration::ZERO);
    wait_for("what was begun to be done", LONG, || async {
        bed.outside.nginx().stream("web")
    })
    .await;
    ensure!(began.elapsed() >= Duration::from_secs(2));
    forward()?;
    let requests = updater.requests_for("web");
    let statuses: Vec<_> = requests.iter().map(|it| it.status).collect();
    ensure!(statuses == [None, Some(200)], "{requests:?}");
    ensure!(requests[1].servers() == ["192.0.2.11:30000", "192.0.2.12:30000"]);
    ensure!(overlapping(&requests).is_empty() && turned_back(&requests).is_empty());
    Ok(())
}

#[apply(cluster_test)]
async fn requests_at_once_are_seen() -> Result<()> {
    let bed = Bed::new("once").await?;
    let updater = bed.outside.updater();
    updater.delay(Duration::from_millis(500));
    let first = backend_of("web", "tcp", 1, &["192.0.2.11"], 1).to_string();
    let second = backend_of("web", "tcp", 2, &["192.0.2.11"], 1).to_string();
    std::thread::scope(|scope| {
        let asked = [&first, &second].map(|body| scope.spawn(|| bed.ask("POST", body, &[], LONG)));
        asked.map(|thread| thread.join().is_ok_and(|answer| answer.is_ok()))
    });
    ensure!(overlapping(&updater.requests()).len() == 1);
    updater.delay(Duration::ZERO);
    for body in [&second, &first] {
        bed.ask("POST", body, &[], LONG)?;
    }
    ensure!(turned_back(&updater.requests()).len() == 1);
    Ok(())
}

#[apply(cluster_test)]
async fn a_held_reload_comes_when_it_is_let_go_unless_it_is_missed() -> Result<()> {
    let bed = Bed::new("held").await?;
    let (tcp, udp) = (bed.scope.free_port()?, bed.scope.free_port()?);
    let service = bed.service(tcp, udp).await?;
    let (client, to) = (bed.cluster.outside(), bed.outside.at(tcp));
    let (watcher, forward) = (bed.outside.watcher(), || {
        bed.forward("web", "TCP", tcp, service.node_port(tcp)?)
    });
    watcher.set(Reloads::Held);
    forward()?;
    for _ in 0..3 {
        refuses(&client, to).await;
    }
    ensure!(watcher.reloads() == 0);
    watcher.set(Reloads::EachChange);
    answers(&client, to).await;

    taken(&bed.delete("web")?)?;
    refuses(&client, to).await;
    let before = watcher.reloads();
    watcher.set(Reloads::Held);
    forward()?;
    watcher.miss();
    watcher.set(Reloads::EachChange);
    for _ in 0..3 {
        refuses(&client, to).await;
    }
    ensure!(watcher.reloads() == before);
    // The same again is a change.
    forward()?;
    answers(&client, to).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_box_that_boots_has_forgotten_everything() -> Result<()> {
    let bed = Bed::new("boot").await?;
    let (tcp, udp) = (bed.scope.free_port()?, bed.scope.free_port()?);
    let service = bed.service(tcp, udp).await?;
    let (client, to) = (bed.cluster.outside(), bed.outside.at(tcp));
    let forward = || bed.forward("web", "TCP", tcp, service.node_port(tcp)?);
    forward()?;
    answers(&client, to).await;
    bed.outside.restart().await?;
    refuses(&client, to).await;
    ensure!(bed.outside.nginx().backends().is_empty());
    forward()?;
    answers(&client, to).await;
    Ok(())
}

/// So it is with the original: a client must never send a backend without servers.
#[apply(cluster_test)]
async fn a_backend_without_servers_keeps_nginx_from_loading_any() -> Result<()> {
    let bed = Bed::new("empty").await?;
    let (tcp, udp) = (bed.scope.free_port()?, bed.scope.free_port()?);
    let service = bed.service(tcp, udp).await?;
    let (client, to, watcher) = (
        bed.cluster.outside(),
        bed.outside.at(tcp),
        bed.outside.watcher(),
    );
    taken(&bed.post(&backend_of("empty", "tcp", bed.scope.free_port()?, &[], 1))?)?;
    wait_for("nginx to refuse it", LONG, || async {
        watcher.refused().len() == 1
    })
    .await;
    bed.forward("web", "TCP", tcp, service.node_port(tcp)?)?;
    wait_for("nginx to refuse the next", LONG, || async {
        watcher.refused().len() == 2
    })
    .await;
    refuses(&client, to).await;
    let refused = watcher.refused();
    ensure!(
        refused
            .iter()
            .all(|why| why.contains("no servers are inside upstream")),
        "{refused:?}"
    );
    taken(&bed.delete("empty")?)?;
    answers(&client, to).await;
    Ok(())
}

#[apply(cluster_test)]
async fn a_removed_box_leaves_nothing() -> Result<()> {
    let cluster = Cluster::attach().await?;
    let outside = OutsideBox::start(&cluster).await?;
    let (netns, unit, to) = (
        outside.netns().clone(),
        outside.nginx().unit(),
        outside.at(PORT),
    );
    let (log, streams) = (unit.log_path(), outside.nginx().streams());
    ensure!(netns.exists() && unit.is_running() && streams.exists());
    ensure!(cluster.outside().tcp_connect(to, SHORT).is_ok());
    let cable = || cluster.netns("fabric")?.check(&["ip", "-br", "link"]);
    let port = outside.netns().role().replace("box-", "box");
    ensure!(cable()?.contains(&format!("{port}@")));
    outside.remove()?;
    ensure!(!netns.exists() && !unit.is_running() && !log.exists() && !streams.exists());
    ensure!(!cable()?.contains(&format!("{port}@")));
    ensure!(cluster.outside().tcp_connect(to, SHORT).is_err());
    Ok(())
}
