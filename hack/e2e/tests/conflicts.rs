//! Port collisions: who gets a port, and what the loser is told.
//!
//! Addresses: nodes 192.0.2.11 (n1) and .12 (n2) serve, the client is outside.

mod common;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{LONG, SHORT, answers, ingress_is, refuses, web, web_service};
use highwire_e2e::{Cluster, ConnectError, Netns, Scope, Svc, wait_for};
use serde_json::{Value, json};

const BOTH: [&str; 2] = ["192.0.2.11", "192.0.2.12"];
const N1: [&str; 1] = ["192.0.2.11"];
const N2: [&str; 1] = ["192.0.2.12"];

/// Waits until an Event of that reason stands on the Service; its message.
async fn event(scope: &Scope, service: &Svc, reason: &str) -> String {
    wait_for(&format!("the event {reason}"), LONG, || async {
        let found = events(scope, service, reason)?;
        found.first().cloned().context("none yet")
    })
    .await
}

fn events(scope: &Scope, service: &Svc, reason: &str) -> Result<Vec<String>> {
    let selector = format!(
        "--field-selector=reason={reason},involvedObject.name={}",
        service.name()
    );
    let arguments = [
        "get",
        "events",
        "-n",
        scope.namespace(),
        &selector,
        "-o=json",
    ];
    let listed: Value = serde_json::from_str(&scope.cluster().kubectl(&arguments)?)?;
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .iter()
        .filter_map(|item| item["message"].as_str().map(str::to_owned))
        .collect())
}

/// Waits until the condition LoadBalancerPortsError has this status; its message.
async fn ports_error(service: &Svc, status: &str) -> String {
    wait_for(
        &format!("LoadBalancerPortsError {status}"),
        LONG,
        || async {
            let conditions = service
                .get()
                .await
                .map_err(|e| e.to_string())?
                .status
                .and_then(|s| s.conditions);
            let conditions = conditions.unwrap_or_default();
            let found = conditions
                .iter()
                .find(|c| c.type_ == "LoadBalancerPortsError");
            match found {
                Some(condition) if condition.status == status => Ok(condition.message.clone()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await
}

/// What the node says of its conflicts, as text.
fn described(cluster: &Cluster, node: &str) -> Result<String> {
    cluster.kubectl(&["get", "lbn", node, "-o=jsonpath={.status.conflicts}"])
}

fn bind_tcp(netns: &Netns, address: &str, port: u16) -> Result<TcpListener> {
    let address: SocketAddr = format!("{address}:{port}").parse()?;
    Ok(netns.run(move || TcpListener::bind(address))?)
}

/// Answers one connection, as the program on the host would.
fn greeted(listener: &TcpListener, from: &Netns, to: SocketAddr) -> Result<()> {
    listener.set_nonblocking(false)?;
    let stream = from
        .tcp_connect(to, SHORT)
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let client = stream
        .local_addr()
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let (_, peer) = listener.accept()?;
    // An IPv6 socket sees IPv4 clients as mapped addresses.
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    ensure!(peer == client, "{peer} was let in instead of {client}");
    Ok(())
}

#[tokio::test]
async fn of_two_services_the_older_serves_and_the_younger_inherits() -> Result<()> {
    let (cluster, scope) = web("twins").await?;
    let port = scope.free_port()?;
    let older = web_service(&scope, "older", port).await?;
    ingress_is(&older, &BOTH).await;
    let younger = web_service(&scope, "younger", port).await?;
    let told = event(&scope, &younger, "PortConflict").await;
    let holder = format!("Service {}/older", scope.namespace());
    ensure!(
        told.contains(&holder) && told.contains(&port.to_string()),
        "{told}"
    );
    let condition = ports_error(&younger, "True").await;
    ensure!(
        condition.contains(&holder) && condition.contains("n1"),
        "{condition}"
    );
    ensure!(younger.ingress().await?.is_empty());
    ensure!(described(&cluster, "n1")?.contains(&holder));
    for reason in ["PortConflict", "PortConflictResolved"] {
        ensure!(
            events(&scope, &older, reason)?.is_empty(),
            "the winner is told nothing"
        );
    }
    older.delete().await?;
    ingress_is(&younger, &BOTH).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    event(&scope, &younger, "PortConflictResolved").await;
    ports_error(&younger, "False").await;
    ensure!(
        events(&scope, &younger, "PortConflict")?.len() == 1,
        "one event, however many nodes"
    );
    Ok(())
}

#[tokio::test]
async fn a_live_port_is_not_stolen_by_an_older_service() -> Result<()> {
    let (cluster, scope) = web("steal").await?;
    let (port, elsewhere) = (scope.free_port()?, scope.free_port()?);
    let older = web_service(&scope, "older", elsewhere).await?;
    ingress_is(&older, &BOTH).await;
    let younger = web_service(&scope, "younger", port).await?;
    ingress_is(&younger, &BOTH).await;
    let version = younger.get().await?.metadata.resource_version;
    older
        .patch(json!({"spec": {"ports": [{"port": port, "targetPort": 8080}]}}))
        .await?;
    let condition = ports_error(&older, "True").await;
    ensure!(condition.contains("/younger"), "{condition}");
    ingress_is(&older, &[]).await;
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    ensure!(
        younger.get().await?.metadata.resource_version == version,
        "nothing moves"
    );
    Ok(())
}

#[tokio::test]
async fn one_number_serves_tcp_and_udp_and_disjoint_nodes() -> Result<()> {
    let (cluster, scope) = web("share").await?;
    let (number, pooled) = (scope.free_port()?, scope.free_port()?);
    let tcp = web_service(&scope, "tcp", number).await?;
    let udp = scope
        .service("udp")
        .load_balancer()
        .select("app", "web")
        .udp(number, 5353);
    let udp = udp.create().await?;
    let on = |node: &str| {
        let service = scope
            .service(node)
            .load_balancer()
            .select("app", "web")
            .tcp(pooled, 8080);
        let selector = format!("kubernetes.io/hostname={node}");
        service
            .annotation("highwire.dev/node-selector", &selector)
            .create()
    };
    let (on_n1, on_n2) = (on("n1").await?, on("n2").await?);
    for (service, addresses) in [
        (&tcp, &BOTH[..]),
        (&udp, &BOTH),
        (&on_n1, &N1),
        (&on_n2, &N2),
    ] {
        ingress_is(service, addresses).await;
    }
    let client = cluster.outside();
    for node in ["n1", "n2"] {
        let node = cluster.node(node)?;
        answers(&client, node.v4(number)).await;
        answers(&client, node.v4(pooled)).await;
        wait_for("UDP", LONG, || async {
            client.udp_ask(node.v4(number), None, "hi", SHORT)
        })
        .await;
    }
    Ok(())
}

#[tokio::test]
async fn what_listens_on_a_node_keeps_its_port_there_and_gives_it_up_when_it_goes() -> Result<()> {
    let (cluster, scope) = web("listen").await?;
    let (n1, client) = (cluster.node("n1")?, cluster.outside());
    for (kind, address) in [("any4", "0.0.0.0"), ("any6", "[::]"), ("own", "192.0.2.11")] {
        let port = scope.free_port()?;
        let listener = bind_tcp(n1.netns(), address, port)?;
        let service = web_service(&scope, kind, port).await?;
        ingress_is(&service, &N2).await;
        greeted(&listener, &client, n1.v4(port))?;
        let condition = ports_error(&service, "True").await;
        let socket = format!("socket {address}:{port} uid 0");
        ensure!(
            condition.contains(&socket) && condition.contains("n1"),
            "{condition}"
        );
        ensure!(described(&cluster, "n1")?.contains(&socket));
        answers(&client, cluster.node("n2")?.v4(port)).await;
        greeted(&listener, &client, n1.v4(port))?;
        drop(listener);
        ingress_is(&service, &BOTH).await;
        answers(&client, n1.v4(port)).await;
        ports_error(&service, "False").await;
    }
    Ok(())
}

#[tokio::test]
async fn a_loopback_listener_is_no_conflict_and_keeps_its_own() -> Result<()> {
    let (cluster, scope) = web("loop").await?;
    let (n1, port) = (cluster.node("n1")?, scope.free_port()?);
    let listener = bind_tcp(n1.netns(), "127.0.0.1", port)?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    answers(&cluster.outside(), n1.v4(port)).await;
    greeted(
        &listener,
        n1.netns(),
        SocketAddr::from(([127, 0, 0, 1], port)),
    )?;
    Ok(())
}

#[tokio::test]
async fn a_udp_listener_keeps_its_port() -> Result<()> {
    let (cluster, scope) = web("udp").await?;
    let (n1, port) = (cluster.node("n1")?, scope.free_port()?);
    let socket = n1.netns().run(move || UdpSocket::bind(("0.0.0.0", port)))?;
    let service = scope
        .service("web")
        .load_balancer()
        .udp(port, 5353)
        .create()
        .await?;
    ingress_is(&service, &N2).await;
    let client = cluster.outside();
    let sent = client.run(move || -> std::io::Result<()> {
        let sender = UdpSocket::bind("0.0.0.0:0")?;
        sender.send_to(b"hello", ("192.0.2.11", port)).map(drop)
    });
    sent?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut buffer = [0; 16];
    let (length, _) = socket.recv_from(&mut buffer)?;
    ensure!(&buffer[..length] == b"hello");
    drop(socket);
    ingress_is(&service, &BOTH).await;
    Ok(())
}

#[tokio::test]
async fn all_ports_or_none() -> Result<()> {
    let (cluster, scope) = web("whole").await?;
    let (http, https) = (scope.free_port()?, scope.free_port()?);
    let n1 = cluster.node("n1")?;
    let _nginx = bind_tcp(n1.netns(), "0.0.0.0", https)?;
    let service = scope
        .service("web")
        .load_balancer()
        .tcp(http, 8080)
        .tcp(https, 8080);
    let service = service.create().await?;
    ingress_is(&service, &N2).await;
    refuses(&cluster.outside(), n1.v4(http)).await;
    for port in [http, https] {
        answers(&cluster.outside(), cluster.node("n2")?.v4(port)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_listener_that_comes_later_gets_the_next_connection_and_the_node_leaves() -> Result<()> {
    let (cluster, scope) = web("later").await?;
    let (n1, client, port) = (cluster.node("n1")?, cluster.outside(), scope.free_port()?);
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    answers(&client, n1.v4(port)).await;
    let mut established = client
        .tcp_connect(n1.v4(port), SHORT)
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let pod = established
        .say("before")
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let listener = bind_tcp(n1.netns(), "0.0.0.0", port)?;
    greeted(&listener, &client, n1.v4(port))
        .context("the very next connection is the listener's")?;
    ingress_is(&service, &N2).await;
    ports_error(&service, "True").await;
    let after = established
        .say("after")
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(after == pod, "the connection to the Service moved");
    drop(listener);
    ingress_is(&service, &BOTH).await;
    answers(&client, n1.v4(port)).await;
    Ok(())
}

#[tokio::test]
async fn the_services_own_pod_on_the_host_is_the_right_one_to_answer() -> Result<()> {
    let (cluster, scope) = web("own").await?;
    let (port, foreign) = (scope.free_port()?, scope.free_port()?);
    // The usual ingress controller: hostNetwork, and a Service that selects it.
    let pod = scope
        .pod("traefik")
        .on("n1")
        .label("app", "traefik")
        .host_network();
    pod.tcp(port).tcp(foreign).start().await?;
    let own = scope
        .service("traefik")
        .load_balancer()
        .tcp(port, port)
        .create()
        .await?;
    ingress_is(&own, &BOTH).await;
    let reply = answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    ensure!(reply.pod == "traefik", "{reply:?}");
    ensure!(
        reply.client.ip().to_string() == "198.51.100.10",
        "its own socket answers: {reply:?}"
    );
    let reply = answers(&cluster.outside(), cluster.node("n2")?.v4(port)).await;
    ensure!(reply.pod == "traefik", "{reply:?}");
    let other = web_service(&scope, "other", foreign).await?;
    ingress_is(&other, &N2).await;
    let condition = ports_error(&other, "True").await;
    ensure!(condition.contains("socket"), "{condition}");
    Ok(())
}

#[tokio::test]
async fn host_ports_are_refused_unless_they_are_its_own() -> Result<()> {
    let (cluster, scope) = web("hostport").await?;
    let port = scope.free_port()?;
    let pod = scope.pod("edge").on("n1").label("app", "edge").host_port();
    let pod = pod.tcp(port).start().await?;
    let own = scope
        .service("edge")
        .load_balancer()
        .tcp(port, port)
        .create()
        .await?;
    ingress_is(&own, &BOTH).await;
    own.delete().await?;
    let other = web_service(&scope, "other", port).await?;
    ingress_is(&other, &N2).await;
    let condition = ports_error(&other, "True").await;
    let holder = format!("Pod {}/edge hostPort", scope.namespace());
    ensure!(condition.contains(&holder), "{condition}");
    pod.delete(&cluster).await?;
    ingress_is(&other, &BOTH).await;
    Ok(())
}

#[tokio::test]
async fn node_ports_and_external_ips_are_refused_with_the_right_words() -> Result<()> {
    let (cluster, scope) = web("nodeport").await?;
    let plain = scope
        .service("plain")
        .node_port()
        .select("app", "web")
        .tcp(80, 8080);
    let plain = plain.create().await?;
    let node_port = plain.node_port(80)?;
    let loser = web_service(&scope, "loser", node_port).await?;
    let condition = ports_error(&loser, "True").await;
    let holder = format!("Service {}/plain nodePort", scope.namespace());
    ensure!(condition.contains(&holder), "{condition}");
    ensure!(loser.ingress().await?.is_empty());

    let port = scope.free_port()?;
    let external = scope
        .service("external")
        .select("app", "web")
        .tcp(port, 8080);
    external
        .spec("externalIPs", json!(["192.0.2.11"]))
        .create()
        .await?;
    let other = web_service(&scope, "other", port).await?;
    ingress_is(&other, &N2).await;
    let condition = ports_error(&other, "True").await;
    let holder = format!(
        "Service {}/external externalIP 192.0.2.11",
        scope.namespace()
    );
    ensure!(condition.contains(&holder), "{condition}");
    answers(&cluster.outside(), cluster.node("n1")?.v4(port)).await;
    Ok(())
}

#[tokio::test]
async fn the_agents_own_port_counts_as_any_other() -> Result<()> {
    let (cluster, scope) = web("health").await?;
    let service = web_service(&scope, "web", 9807).await?;
    let condition = ports_error(&service, "True").await;
    ensure!(condition.contains("socket 0.0.0.0:9807"), "{condition}");
    let health = cluster.agent("n1")?.get("/healthz");
    ensure!(health == Ok("ok\n".to_owned()), "{health:?}");
    Ok(())
}

#[tokio::test]
async fn sshd_is_never_cut_off() -> Result<()> {
    let (cluster, scope) = web("sshd").await?;
    let n1 = cluster.node("n1")?;
    let sshd = bind_tcp(n1.netns(), "0.0.0.0", 22)?;
    let service = web_service(&scope, "web", 22).await?;
    for _ in 0..20 {
        greeted(&sshd, &cluster.outside(), n1.v4(22))?;
    }
    ingress_is(&service, &N2).await;
    greeted(&sshd, &cluster.outside(), n1.v4(22))?;
    Ok(())
}

#[tokio::test]
async fn explain_shows_every_claimed_port() -> Result<()> {
    let (cluster, scope) = web("explain").await?;
    let (free, taken) = (scope.free_port()?, scope.free_port()?);
    let n1 = cluster.node("n1")?;
    let _listener = bind_tcp(n1.netns(), "0.0.0.0", taken)?;
    ingress_is(&web_service(&scope, "served", free).await?, &BOTH).await;
    ingress_is(&web_service(&scope, "refused", taken).await?, &N2).await;
    let kubeconfig = cluster.agent("n1")?.kubeconfig().await?;
    let agent = std::env::var("HIGHWIRE_AGENT").unwrap_or_else(|_| {
        highwire_e2e::cluster::checkout()
            .join("target/release/highwire-agent")
            .display()
            .to_string()
    });
    let kubeconfig = format!("KUBECONFIG={}", kubeconfig.display());
    let table = n1
        .netns()
        .check(&["env", &kubeconfig, &agent, "explain", "--node", "n1"])?;
    let row = |name: &str| {
        let key = format!("{}/{name} ", scope.namespace());
        table
            .lines()
            .find(|line| line.contains(&key))
            .map(str::to_owned)
            .context(table.clone())
    };
    let served = row("served")?;
    ensure!(
        served.starts_with(&format!("{free}/TCP")) && served.contains(" served "),
        "{table}"
    );
    let refused = row("refused")?;
    ensure!(
        refused.contains(" refused ") && refused.contains("HostListener"),
        "{table}"
    );
    ensure!(
        refused.contains(&format!("socket 0.0.0.0:{taken} uid 0")),
        "{table}"
    );
    Ok(())
}

#[tokio::test]
async fn bad_input_harms_no_other() -> Result<()> {
    let (cluster, scope) = web("bad").await?;
    let (bad, good) = (scope.free_port()?, scope.free_port()?);
    let broken = scope
        .service("broken")
        .load_balancer()
        .select("app", "web")
        .tcp(bad, 8080);
    let broken = broken
        .annotation("highwire.dev/address-type", "Public")
        .create()
        .await?;
    ingress_is(&web_service(&scope, "good", good).await?, &BOTH).await;
    let told = event(&scope, &broken, "InvalidAnnotation").await;
    ensure!(
        told.contains("Public") && told.contains("ExternalIP"),
        "{told}"
    );
    let outcome = cluster
        .outside()
        .http_get(cluster.node("n1")?.v4(bad), SHORT);
    ensure!(outcome == Err(ConnectError::Refused), "{outcome:?}");
    // A fix is all it takes.
    let fixed = json!({"metadata": {"annotations": {"highwire.dev/address-type": "InternalIP"}}});
    broken.patch(fixed).await?;
    ingress_is(&broken, &BOTH).await;
    Ok(())
}
