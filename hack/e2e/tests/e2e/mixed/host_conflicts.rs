//! What has a port on the host already keeps it, and the Service gets an Event.
//!
//! Addresses: nodes 192.0.2.11 (n1) and .12 (n2) serve, the client is outside.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    AMPLE, BOTH, LONG, SHORT, answers, ingress_is, refuses, web, web_pods, web_service,
};
use highwire_e2e::reported::{bind_tcp, described, greeted, ports_error};
use highwire_e2e::{Cluster, ConnectError, Pod, PrivateCluster, Scope, highwire, wait_for};
use macro_rules_attribute::apply;

const N2: [&str; 1] = ["192.0.2.12"];

#[apply(cluster_test)]
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

#[apply(cluster_test)]
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

#[apply(cluster_test)]
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

#[apply(cluster_test)]
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

#[apply(cluster_test)]
async fn a_listener_that_comes_later_gets_the_next_connection_and_the_node_leaves() -> Result<()> {
    let (cluster, scope) = web("later").await?;
    let (n1, client, port) = (cluster.node("n1")?, cluster.outside(), scope.free_port()?);
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    answers(&client, n1.v4(port)).await;
    let mut established = client.tcp_connect(n1.v4(port), AMPLE)?;
    let pod = established.say("before")?;
    let listener = bind_tcp(n1.netns(), "0.0.0.0", port)?;
    greeted(&listener, &client, n1.v4(port))
        .context("the very next connection is the listener's")?;
    ingress_is(&service, &N2).await;
    ports_error(&service, "True").await;
    let after = established.say("after")?;
    ensure!(after == pod, "the connection to the Service moved");
    drop(listener);
    ingress_is(&service, &BOTH).await;
    answers(&client, n1.v4(port)).await;
    Ok(())
}

/// At output the kernel cannot tell a listener's socket from the client's own, so until
/// the agent has found the listener a client on the node still gets the Service.
#[apply(cluster_test)]
async fn a_client_on_the_node_gets_the_listener_once_it_is_found() -> Result<()> {
    let (cluster, scope) = web("local").await?;
    let (n1, port) = (cluster.node("n1")?, scope.free_port()?);
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &BOTH).await;
    answers(n1.netns(), n1.v4(port)).await;
    let listener = bind_tcp(n1.netns(), "0.0.0.0", port)?;
    greeted(&listener, &cluster.outside(), n1.v4(port)).context("from outside at once")?;
    ingress_is(&service, &N2).await;
    greeted(&listener, n1.netns(), n1.v4(port)).context("on the node once it has left")?;
    Ok(())
}

#[apply(cluster_test)]
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

#[apply(cluster_test)]
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

#[apply(cluster_test)]
async fn a_reserved_port_is_nobodys_whether_or_not_somebody_listens() -> Result<()> {
    let (cluster, scope) = web("reserved").await?;
    let n1 = cluster.node("n1")?;
    let sshd = bind_tcp(n1.netns(), "0.0.0.0", 22)?;
    let ssh = web_service(&scope, "ssh", 22).await?;
    // Of the agents' own port, and of one where nobody is.
    for (name, port) in [("health", 9807), ("kubelet", 10250)] {
        let service = web_service(&scope, name, port).await?;
        let condition = ports_error(&service, "True").await;
        ensure!(condition.contains("--reserved-ports"), "{condition}");
        ingress_is(&service, &[]).await;
    }
    for _ in 0..20 {
        greeted(&sshd, &cluster.outside(), n1.v4(22))?;
    }
    let condition = ports_error(&ssh, "True").await;
    ensure!(condition.contains("--reserved-ports"), "{condition}");
    drop(sshd);
    // The sockets are read anew, for a Service that is decided on.
    let port = scope.free_port()?;
    let later = web_service(&scope, "later", port).await?;
    ingress_is(&later, &BOTH).await;
    answers(&cluster.outside(), n1.v4(port)).await;
    ingress_is(&ssh, &[]).await;
    refuses(&cluster.outside(), n1.v4(22)).await;
    let health = cluster.agent("n1")?.get("/healthz");
    ensure!(health == Ok("ok\n".to_owned()), "{health:?}");
    Ok(())
}

/// On a cluster of its own, where a port is held for longer than elsewhere.
#[apply(cluster_test)]
async fn a_listener_that_restarts_keeps_its_port_and_one_that_is_gone_loses_it() -> Result<()> {
    let cluster = PrivateCluster::up("hold", 2).await?;
    highwire::start_with(&cluster, &["--listener-hold-down=8s"], &[]).await?;
    let scope = Scope::new(&cluster, "hold").await?;
    web_pods(&scope).await?;
    let (n1, client, port) = (cluster.node("n1")?, cluster.outside(), scope.free_port()?);
    let nginx = bind_tcp(n1.netns(), "0.0.0.0", port)?;
    let service = web_service(&scope, "web", port).await?;
    ingress_is(&service, &N2).await;
    drop(nginx);
    held(&cluster, "n1", port).await;
    ensure!(client.http_get(n1.v4(port), SHORT) == Err(ConnectError::Refused));
    let nginx = bind_tcp(n1.netns(), "0.0.0.0", port)?;
    greeted(&nginx, &client, n1.v4(port)).context("nobody got its port")?;
    drop(nginx);
    held(&cluster, "n1", port).await;
    answers(&client, n1.v4(port)).await;
    ingress_is(&service, &BOTH).await;
    Ok(())
}

/// Waits until the node says that the port is kept for who has just left.
async fn held(cluster: &Cluster, node: &str, port: u16) {
    wait_for("the port to be held", LONG, || async {
        let said = described(cluster, node).map_err(|error| error.to_string())?;
        if said.contains(&format!("0.0.0.0:{port}")) && said.contains("still held") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
}

#[apply(cluster_test)]
async fn the_port_of_its_own_pod_that_leaves_is_not_kept_from_a_service() -> Result<()> {
    let cluster = PrivateCluster::up("own", 2).await?;
    highwire::start_with(&cluster, &["--listener-hold-down=1h"], &[]).await?;
    let scope = Scope::new(&cluster, "own").await?;
    let (port, client) = (scope.free_port()?, cluster.outside());
    for (name, node) in [("traefik-1", "n1"), ("traefik-2", "n2")] {
        let pod = scope.pod(name).on(node).label("app", "traefik");
        pod.host_network().tcp(port).start().await?;
    }
    let service = scope.service("traefik").load_balancer().tcp(port, port);
    let service = service.create().await?;
    ingress_is(&service, &BOTH).await;
    let n1 = cluster.node("n1")?;
    ensure!(answers(&client, n1.v4(port)).await.pod == "traefik-1");
    // As a kubelet does it: the object goes when the process has ended. Were it the other way
    // round, the socket would be nobody's for a moment, and a conflict.
    let gone = Pod::find(&cluster, scope.namespace(), "traefik-1")?;
    gone.stop()?;
    gone.delete_object(&cluster).await?;
    let reply = answers(&client, n1.v4(port)).await;
    ensure!(reply.pod == "traefik-2", "{reply:?}");
    // Another Service's wish makes the agents read the sockets anew and decide.
    let other = web_service(&scope, "other", port).await?;
    ports_error(&other, "True").await;
    let own = format!("\"{}/traefik\"", scope.namespace());
    let refused = described(&cluster, "n1")?;
    ensure!(!refused.contains(&own), "{refused}");
    ingress_is(&service, &BOTH).await;
    ensure!(answers(&client, n1.v4(port)).await.pod == "traefik-2");
    Ok(())
}
