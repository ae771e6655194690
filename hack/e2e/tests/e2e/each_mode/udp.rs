//! UDP clients that keep their source port: what they get is what a new client
//! would get, whatever becomes of Pods and Services meanwhile.
//!
//! Addresses: nodes 192.0.2.11 and 2001:db8:1::11 (n1), .12 and ::12 (n2); the
//! client is outside the cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{
    ALL, AMPLE, BOTH, LONG, SHORT, all_answer, answers, ingress_is, refuses, refuses_udp, web,
    web_pods,
};
use highwire_e2e::{
    Cluster, EchoReply, Netns, Pod, PrivateCluster, Scope, Svc, UdpFlow, highwire, wait_for,
};
use macro_rules_attribute::apply;
use serde_json::json;

/// For one datagram's answer: on this machine it comes within a millisecond.
const MOMENT: Duration = Duration::from_millis(100);

/// A LoadBalancer Service for the Pods `app=web` on one UDP port, of both families.
async fn dual_service(scope: &Scope, port: u16) -> Result<Svc> {
    let service = scope.service("web").load_balancer().udp(port, 5353);
    let service = service.dual_stack().create().await?;
    ingress_is(&service, &ALL).await;
    Ok(service)
}

/// A flow that some Pod has answered.
async fn answered_flow(from: &Netns, to: SocketAddr) -> Result<(UdpFlow, String)> {
    let mut flow = from.udp_flow(to)?;
    let reply = answer(&mut flow, LONG).await;
    Ok((flow, reply.pod))
}

/// Sends until there is an answer.
async fn answer(flow: &mut UdpFlow, limit: Duration) -> EchoReply {
    wait_for("an answer to the flow", limit, || {
        let outcome = flow.ask(MOMENT);
        async move { outcome }
    })
    .await
}

/// A flow that this Pod answers: there are more clients until there is one.
async fn flow_to_pod(from: &Netns, to: SocketAddr, pod: &str) -> UdpFlow {
    wait_for(&format!("a flow to {pod}"), LONG, || {
        let outcome = from
            .udp_flow(to)
            .and_then(|mut flow| Ok((flow.ask(MOMENT)?, flow)));
        async move {
            match outcome {
                Ok((reply, flow)) if reply.pod == pod => Ok(flow),
                other => Err(other.map(|(reply, _)| reply)),
            }
        }
    })
    .await
}

/// Sends until someone other than `pod` answers, and says how long that took.
async fn moves_from(flow: &mut UdpFlow, pod: &str, since: Instant) -> Duration {
    let what = format!("an answer from another than {pod}");
    wait_for(&what, LONG, || {
        let outcome = flow.ask(MOMENT);
        async move {
            match outcome {
                Ok(reply) if reply.pod != pod => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;
    since.elapsed()
}

/// Sends until nobody has answered ten datagrams in a row: a single one may have been lost.
/// A refusal may be missing: the kernel sends a client, all tests together, no more than
/// one a second (icmp(7), `icmp_ratelimit`).
async fn ends(flow: &mut UdpFlow) {
    wait_for("no answer, ten times", LONG, || {
        let answer = (0..10).find_map(|_| flow.ask(MOMENT).ok());
        async move { answer.map_or(Ok(()), Err) }
    })
    .await;
}

#[apply(cluster_test)]
async fn a_client_follows_to_a_live_pod_when_its_pod_is_gone() -> Result<()> {
    let (cluster, scope) = web("udpgone").await?;
    let port = scope.free_port()?;
    dual_service(&scope, port).await?;
    let client = cluster.outside();
    for address in cluster.node("n1")?.addresses() {
        let to = SocketAddr::new(*address, port);
        let (mut flow, pod) = answered_flow(&client, to).await?;
        let gone = Pod::find(&cluster, scope.namespace(), &pod)?;
        let node = gone.node().to_owned();
        let since = Instant::now();
        gone.delete(&cluster).await?;
        let took = moves_from(&mut flow, &pod, since).await;
        println!("{to}: followed {took:?} after {pod} was deleted");
        // For the next family there are two again.
        let back = scope.pod(&pod).on(&node).label("app", "web");
        back.tcp(8080).udp(5353).start().await?;
        all_answer(&["web-1", "web-2"], || client.udp_ask(to, SHORT)).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_client_follows_when_its_pod_does_not_serve_any_more() -> Result<()> {
    let (cluster, scope) = web("udpready").await?;
    let port = scope.free_port()?;
    dual_service(&scope, port).await?;
    for address in cluster.node("n2")?.addresses() {
        let to = SocketAddr::new(*address, port);
        let (mut flow, name) = answered_flow(&cluster.outside(), to).await?;
        let pod = Pod::find(&cluster, scope.namespace(), &name)?;
        let since = Instant::now();
        // Its probe fails, though it would go on answering.
        pod.set_ready(&cluster, false).await?;
        let took = moves_from(&mut flow, &name, since).await;
        println!("{to}: followed {took:?} after {name} was not ready");
        pod.set_ready(&cluster, true).await?;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn many_clients_follow_at_once() -> Result<()> {
    let (cluster, scope) = web("udpmany").await?;
    let port = scope.free_port()?;
    dual_service(&scope, port).await?;
    let (client, to) = (cluster.outside(), cluster.node("n1")?.v4(port));
    let mut flows = Vec::new();
    for _ in 0..200 {
        flows.push(answered_flow(&client, to).await?);
    }
    ensure!(
        ["web-1", "web-2"]
            .iter()
            .all(|pod| flows.iter().any(|(_, own)| own == pod)),
        "both have clients"
    );
    let gone = Pod::find(&cluster, scope.namespace(), "web-2")?;
    let since = Instant::now();
    gone.delete(&cluster).await?;
    for (flow, pod) in flows.iter_mut().filter(|(_, pod)| pod == "web-2") {
        moves_from(flow, pod, since).await;
    }
    println!("all followed {:?} after web-2 was deleted", since.elapsed());
    Ok(())
}

#[apply(cluster_test)]
async fn a_client_is_answered_no_more_when_the_service_is_gone() -> Result<()> {
    let (cluster, scope) = web("udpdelete").await?;
    let port = scope.free_port()?;
    let service = dual_service(&scope, port).await?;
    let mut flows = Vec::new();
    for address in cluster.node("n1")?.addresses() {
        let to = SocketAddr::new(*address, port);
        flows.push(answered_flow(&cluster.outside(), to).await?.0);
    }
    let since = Instant::now();
    service.delete().await?;
    for flow in &mut flows {
        ends(flow).await;
        println!(
            "no answer {:?} after the Service was deleted",
            since.elapsed()
        );
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_client_is_answered_no_more_when_the_last_pod_is_gone() -> Result<()> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let scope = Scope::new(&cluster, "udplast").await?;
    let only = scope.pod("web-1").on("n2").label("app", "web");
    let only = only.udp(5353).start().await?;
    let port = scope.free_port()?;
    dual_service(&scope, port).await?;
    let to = cluster.node("n1")?.v4(port);
    let (mut flow, _) = answered_flow(&cluster.outside(), to).await?;
    // The Pod is out of the Service, but would go on answering.
    only.set_ready(&cluster, false).await?;
    ends(&mut flow).await;
    only.set_ready(&cluster, true).await?;
    answer(&mut flow, LONG).await;
    Ok(())
}

/// Sends on `early` and asks as a new client would, until the new one is answered;
/// then the early one has to be answered too.
async fn both_are_answered(early: &mut UdpFlow, client: &Netns, to: SocketAddr) {
    wait_for("an answer to a new client", LONG, || {
        early.ask(MOMENT).ok();
        let outcome = client.udp_ask(to, MOMENT);
        async move { outcome }
    })
    .await;
    let since = Instant::now();
    answer(early, LONG).await;
    println!("{to}: {:?} after a new client", since.elapsed());
}

/// A flow that is refused, so that the kernel has an entry which says so.
async fn refused_flow(client: &Netns, to: SocketAddr) -> Result<UdpFlow> {
    let mut flow = client.udp_flow(to)?;
    refuses_udp(&mut flow).await;
    Ok(flow)
}

#[apply(cluster_test)]
async fn a_client_from_before_the_service_is_answered_once_it_is_served() -> Result<()> {
    let (cluster, scope) = web("udpearly").await?;
    let (port, client) = (scope.free_port()?, cluster.outside());
    let mut early = Vec::new();
    for address in cluster.node("n1")?.addresses() {
        let to = SocketAddr::new(*address, port);
        early.push((refused_flow(&client, to).await?, to));
    }
    let service = scope.service("web").load_balancer().udp(port, 5353);
    service.dual_stack().create().await?;
    for (flow, to) in &mut early {
        both_are_answered(flow, &client, *to).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_client_from_before_the_first_pod_is_answered_once_there_is_one() -> Result<()> {
    let cluster = Cluster::attach().await?;
    highwire::require(&cluster)?;
    let scope = Scope::new(&cluster, "udpempty").await?;
    let (port, client) = (scope.free_port()?, cluster.outside());
    dual_service(&scope, port).await?;
    let mut early = Vec::new();
    for address in cluster.node("n1")?.addresses() {
        let to = SocketAddr::new(*address, port);
        early.push((refused_flow(&client, to).await?, to));
    }
    web_pods(&scope).await?;
    for (flow, to) in &mut early {
        both_are_answered(flow, &client, *to).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn dns_is_served_by_udp_and_tcp_on_one_port() -> Result<()> {
    let (cluster, scope) = web("dns").await?;
    let (port, client) = (scope.free_port()?, cluster.outside());
    let service = scope.service("web").load_balancer().udp(port, 5353);
    let service = service.tcp(port, 8080).create().await?;
    ingress_is(&service, &BOTH).await;
    let to = cluster.node("n2")?.v4(port);
    // A resolver that asks all its questions from one port.
    let (mut resolver, first) = answered_flow(&client, to).await?;
    // Stubs: each question from a port of its own.
    all_answer(&["web-1", "web-2"], || client.udp_ask(to, SHORT)).await;
    for question in 0..300 {
        let answered = client.udp_ask(to, AMPLE);
        ensure!(answered.is_ok(), "question {question}: {answered:?}");
        let pod = resolver.ask(AMPLE)?.pod;
        ensure!(pod == first, "the resolver's flow moved to {pod}");
    }
    // Answers that do not fit into a datagram.
    all_answer(&["web-1", "web-2"], || client.http_get(to, SHORT)).await;
    let mut stream = client.tcp_connect(to, AMPLE)?;
    let by_tcp = stream.say("before")?;
    let other = if by_tcp == "web-1" { "web-2" } else { "web-1" };
    let mut flow = flow_to_pod(&client, to, other).await;
    let since = Instant::now();
    Pod::find(&cluster, scope.namespace(), other)?
        .delete(&cluster)
        .await?;
    moves_from(&mut flow, other, since).await;
    ensure!(stream.say("after")? == by_tcp, "TCP is left alone");
    service
        .patch(json!({"spec": {"ports": [{"name": "t", "port": port, "targetPort": 8080}]}}))
        .await?;
    ends(&mut flow).await;
    ensure!(stream.say("still")? == by_tcp, "TCP is left alone");
    answers(&client, to).await;
    service.delete().await?;
    refuses(&client, to).await;
    Ok(())
}

#[apply(cluster_test)]
async fn long_flows_keep_their_pod_while_others_come_and_go() -> Result<()> {
    let (cluster, scope) = web("quic").await?;
    let (port, client) = (scope.free_port()?, cluster.outside());
    dual_service(&scope, port).await?;
    let mut flows = Vec::new();
    for node in ["n1", "n2"] {
        for address in cluster.node(node)?.addresses() {
            let to = SocketAddr::new(*address, port);
            for _ in 0..3 {
                flows.push(answered_flow(&client, to).await?);
            }
        }
    }
    let mut all_keep_their_pod = || -> Result<()> {
        for (flow, pod) in &mut flows {
            match flow.ask(AMPLE) {
                Ok(reply) if reply.pod == *pod => {}
                other => bail!("a flow to {pod} was cut: {other:?}"),
            }
        }
        Ok(())
    };
    let third = scope.pod("web-3").on("n1").label("app", "web");
    let third = third.udp(5353).start().await?;
    let to = cluster.node("n1")?.v4(port);
    let mut moving = flow_to_pod(&client, to, "web-3").await;
    all_keep_their_pod()?;
    third.delete(&cluster).await?;
    let mut rounds = 0;
    wait_for("the flow of the Pod that is gone to move", LONG, || {
        let kept = all_keep_their_pod();
        let moved = moving.ask(MOMENT).is_ok_and(|reply| reply.pod != "web-3");
        async move {
            match kept {
                // One that is cut is a failure at once, and not one to try again.
                Err(error) => panic!("{error:#}"),
                Ok(()) => moved,
            }
        }
    })
    .await;
    // Until the checks that follow a change are over, and kube-proxy has caught up too.
    let sweeps = |node: &str| -> Result<f64> {
        let agent = cluster.agent(node)?;
        agent.metric("highwire_agent_udp_sweeps_total{result=\"ok\"}")
    };
    let before = sweeps("n1")?;
    wait_for("more sweeps of the flows", LONG, || {
        rounds += 1;
        let (kept, now) = (all_keep_their_pod(), sweeps("n1"));
        async move {
            kept.unwrap_or_else(|error| panic!("{error:#}"));
            now.map(|now| now >= before + 2.0).unwrap_or(false)
        }
    })
    .await;
    println!("{rounds} rounds");
    Ok(())
}

/// On a cluster of its own: others need a kube-proxy and an agent all the time.
#[apply(cluster_test)]
async fn what_was_missed_is_made_up_for_once_kube_proxy_or_agent_is_back() -> Result<()> {
    let cluster = PrivateCluster::up("udp", 2).await?;
    highwire::start(&cluster).await?;
    let scope = Scope::new(&cluster, "late").await?;
    let replace = async |old: &str, new: &str| -> Result<()> {
        start_pod(&scope, new).await?;
        let old = Pod::find(&cluster, scope.namespace(), old)?;
        old.delete(&cluster).await
    };
    start_pod(&scope, "web-1").await?;
    let port = scope.free_port()?;
    let service = dual_service(&scope, port).await?;
    let to = cluster.node("n1")?.v4(port);
    let (mut flow, _) = answered_flow(&cluster.outside(), to).await?;

    let kube_proxy = cluster.unit("kube-proxy-n1");
    kube_proxy.stop(LONG)?;
    replace("web-1", "web-2").await?;
    let agent = cluster.agent("n1")?;
    // Its rules send the client to web-1 again and again.
    wait_for("the flow to be deleted again and again", LONG, || {
        flow.ask(MOMENT).ok();
        let deleted = agent.metric("highwire_agent_udp_flows_deleted_total");
        async move {
            match deleted {
                Ok(times) if times >= 5.0 => Ok(()),
                other => Err(other.map_err(|error| error.to_string())),
            }
        }
    })
    .await;
    kube_proxy.start_again()?;
    ensure!(answer(&mut flow, LONG).await.pod == "web-2");

    agent.stop()?;
    replace("web-2", "web-3").await?;
    wait_for("kube-proxy to know of the new Pod only", LONG, || {
        let new = cluster.outside().udp_ask(to, MOMENT);
        async move { new.is_ok_and(|reply| reply.pod == "web-3") }
    })
    .await;
    let stuck = flow.ask(MOMENT);
    ensure!(stuck.is_err(), "answered without an agent: {stuck:?}");
    agent.start(&[]).await?;
    agent.wait_ready(LONG).await?;
    let took = moves_from(&mut flow, "web-2", Instant::now()).await;
    println!("{to}: followed {took:?} after the agent was ready");

    agent.stop()?;
    service.delete().await?;
    ensure!(flow.ask(AMPLE).is_ok(), "without an agent it goes on");
    agent.start(&[]).await?;
    agent.wait_ready(LONG).await?;
    ends(&mut flow).await;
    Ok(())
}

async fn start_pod(scope: &Scope, name: &str) -> Result<Pod> {
    let pod = scope.pod(name).on("n2").label("app", "web");
    pod.udp(5353).start().await
}
