//! Who is answered, and what address the Pod sees.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use highwire_e2e::cluster::cilium::{self, HostRouting};
use highwire_e2e::expect::{ALL, AMPLE, LONG, SHORT, all_answer, at_both_addresses, ingress_is};
use highwire_e2e::{Cluster, Netns, Scope, cluster_test, wait_for};
use macro_rules_attribute::apply;

use super::{cluster, entries, outside_and_nodes, web_pods, web_service};

#[apply(cluster_test)]
async fn with_the_policy_cluster_everybody_reaches_every_pod() -> Result<()> {
    let (cluster, cilium) = cluster().await?;
    let scope = Scope::new(&cluster, "cluster").await?;
    let pods = web_pods(&scope).await?;
    let mut clients = outside_and_nodes(&cluster);
    clients.extend(pods.iter().map(|pod| pod.netns()));
    for node in ["n1", "n3"] {
        let pod = scope.pod(&format!("client-{node}")).on(node).tcp(1);
        clients.push(pod.start().await?.netns());
    }
    let port = scope.free_port()?;
    ingress_is(&web_service(&scope, "Cluster", port).await?, &ALL).await;
    for to in at_both_addresses(&cluster, "n1", port)? {
        let on_the_node = interface_of_cilium(&cluster, "n1", to)?;
        for from in &clients {
            all_answer(&["web-1", "web-2"], || from.http_get(to, SHORT)).await;
            all_answer(&["web-1", "web-2"], || from.udp_ask(to, SHORT)).await;
            for _ in 0..10 {
                for reply in [from.http_get(to, AMPLE)?, from.udp_ask(to, AMPLE)?] {
                    let seen = if reply.pod == "web-1" {
                        on_the_node
                    } else {
                        to.ip()
                    };
                    ensure!(
                        reply.client.ip() == seen,
                        "{} to {to}: {reply:?}, not {seen}",
                        from.name()
                    );
                }
            }
        }
    }
    // Not by Cilium: it has no frontend there, and the host's conntrack has the entries.
    let frontends = cilium::dbg(cluster.state(), &cilium, "n1", &["service", "list"])?;
    let node = cluster.node("n1")?;
    for at in [node.v4(port), node.v6(port)] {
        ensure!(!frontends.contains(&at.to_string()), "{at}: {frontends}");
    }
    for line in entries(node.netns(), port)? {
        // What answers is a Pod's port.
        let answered = line.contains(" sport=8080 ") && !line.contains("[UNREPLIED]");
        ensure!(answered, "{line}");
    }
    Ok(())
}

#[apply(cluster_test)]
async fn with_the_policy_local_the_pod_sees_the_client_unless_cilium_passes_by_the_host()
-> Result<()> {
    let (cluster, cilium) = cluster().await?;
    let scope = Scope::new(&cluster, "local").await?;
    web_pods(&scope).await?;
    let port = scope.free_port()?;
    ingress_is(&web_service(&scope, "Local", port).await?, &ALL).await;
    let node = cluster.node("n1")?;
    for to in at_both_addresses(&cluster, "n1", port)? {
        // The node itself is answered in any case.
        sees(node.netns(), to, to.ip()).await?;
        let client = cluster.outside();
        match cilium.host_routing {
            HostRouting::Legacy => {
                sees(&client, to, cluster.outside_address(to.ip())).await?;
                for other in ["n2", "n3"] {
                    let other = cluster.node(other)?;
                    let at = if to.is_ipv4() {
                        other.v4(port)
                    } else {
                        other.v6(port)
                    };
                    sees(other.netns(), to, at.ip()).await?;
                }
            }
            HostRouting::Bpf => {
                for _ in 0..3 {
                    let (tcp, udp) = (client.http_get(to, SHORT), client.udp_ask(to, SHORT));
                    ensure!(
                        tcp.is_err() && udp.is_err(),
                        "{to} answers: {tcp:?} {udp:?}"
                    );
                }
            }
        }
    }
    let lines = entries(node.netns(), port)?;
    let unanswered = lines.iter().any(|line| line.contains("[UNREPLIED]"));
    let expected = cilium.host_routing == HostRouting::Bpf;
    ensure!(unanswered == expected, "{lines:?}");
    Ok(())
}

/// Asserts that web-1 answers this client, by TCP and UDP, and sees that address.
async fn sees(from: &Netns, to: SocketAddr, address: IpAddr) -> Result<()> {
    let asks: [fn(&Netns, SocketAddr) -> _; 2] = [
        |from, to| from.http_get(to, SHORT),
        |from, to| from.udp_ask(to, SHORT),
    ];
    for ask in asks {
        let reply = wait_for(&format!("an answer at {to}"), LONG, || async {
            ask(from, to)
        })
        .await;
        ensure!(
            reply.pod == "web-1" && reply.client.ip() == address,
            "{} to {to}: {reply:?}, not {address}",
            from.name()
        );
    }
    Ok(())
}

/// The address of `cilium_host` on a node, of the family of `like`.
fn interface_of_cilium(cluster: &Cluster, node: &str, like: SocketAddr) -> Result<IpAddr> {
    let family = if like.is_ipv4() { "-4" } else { "-6" };
    let line = [
        "ip",
        family,
        "-brief",
        "address",
        "show",
        "dev",
        "cilium_host",
        "scope",
        "global",
    ];
    let listed = cluster.node(node)?.netns().check(&line)?;
    let address = listed.split_whitespace().nth(2).unwrap_or_default();
    Ok(address.split('/').next().unwrap_or_default().parse()?)
}
