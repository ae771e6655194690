//! A Service that nft refuses takes nobody else out.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt};

use highwire_agent::{
    agent_loop::{AgentLoop, Input},
    config::Cli,
    facts::{News, addresses::HostAddress, service_proxy::ServiceProxy},
    metrics::Metrics,
    report::Report,
    table::Set,
};
use highwire_api::node::{ConflictReason, ProxyMode};
use highwire_runtime::heartbeat::Heartbeat;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::{command, in_new_namespace, nft_at, patience};

/// The real nft, which does not like one port.
const PICKY: &str = r#"#!/usr/bin/env bash
for argument in "$@"; do [[ $argument != - ]] || reads=1; done
[[ ${reads:-} ]] || exec nft "$@"
text=$(cat)
if grep -qE 'tcp \. 6666 |"tcp",6666' <<< "$text"; then
  echo 'Error: Could not process rule: Argument list too long' >&2
  exit 1
fi
exec nft "$@" <<< "$text"
"#;

fn service(name: &str, ports: &[u16]) -> Input {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"}))
        .collect();
    let service = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "5",
                     "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10",
                 "clusterIPs": ["10.96.0.10"], "ports": ports},
    });
    let service = serde_json::from_value(service).unwrap();
    Input::News(News::Service(Box::new(Event::Apply(service))))
}

async fn until(
    reports: &mut watch::Receiver<Option<Report>>,
    is: impl Fn(&Report) -> bool,
) -> Report {
    let wanted = reports.wait_for(|report| report.as_ref().is_some_and(&is));
    let report = tokio::time::timeout(patience(), wanted).await;
    report.expect("in time").unwrap().clone().unwrap()
}

fn served(report: &Report) -> Vec<String> {
    let served = &report.decision.served;
    served.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_that_nft_refuses_is_left_out_alone_and_comes_back_when_it_changes() {
    in_new_namespace(async || {
        command("sysctl -qw net.ipv4.ip_forward=1");
        let folder = tempfile::tempdir().unwrap();
        let nft = folder.path().join("nft");
        fs::write(&nft, PICKY).unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        let Cli::Run(config) = Cli::parse_from(["highwire-agent", "--node-name=n1"]).unwrap()
        else {
            panic!("it runs");
        };
        let (inputs, received) = mpsc::channel(64);
        let (sender, mut reports) = watch::channel(None);
        let (udp, _frontends) = watch::channel(None);
        let agent_loop = AgentLoop::new(
            &config,
            nft_at(nft),
            Metrics::new().unwrap(),
            Heartbeat::default(),
            sender,
            udp,
            mpsc::channel(1).1,
        );
        tokio::select! {
            () = agent_loop.run(received) => panic!("it ended"),
            () = one_is_refused(&inputs, &mut reports) => {}
        }
    });
}

async fn one_is_refused(
    inputs: &mpsc::Sender<Input>,
    reports: &mut watch::Receiver<Option<Report>>,
) {
    let address: IpAddr = "192.0.2.11".parse().unwrap();
    let node = json!({
        "metadata": {"name": "n1", "uid": "n", "labels": {"highwire.dev/enabled": "true"}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    });
    for news in [
        News::Service(Box::new(Event::Init)),
        News::Service(Box::new(Event::InitDone)),
        News::Pod(Box::new(Event::Init)),
        News::Pod(Box::new(Event::InitDone)),
        News::Node(Some(serde_json::from_value(node).unwrap())),
        News::Proxy(ServiceProxy {
            mode: Some(ProxyMode::Nftables),
            failing: None,
        }),
        News::Addresses(vec![HostAddress {
            address,
            interface: "eth0".into(),
            devices: [].into(),
            global: true,
            on_default_route: true,
        }]),
    ] {
        inputs.send(Input::News(news)).await.unwrap();
    }
    inputs.send(service("before", &[80])).await.unwrap();
    until(reports, |report| served(report) == ["ns/before"]).await;
    // Changes go to the kernel; nft is asked for the whole table once one fails.
    command("nft delete table inet highwire");
    // It comes with others, and one of its ports is good.
    for input in [
        service("bad", &[6665, 6666]),
        service("beside", &[81]),
        service("later", &[82]),
    ] {
        inputs.send(input).await.unwrap();
    }
    let others = ["ns/before", "ns/beside", "ns/later"];
    let report = until(reports, |report| served(report) == others).await;
    assert!(report.readiness().is_ready(), "{:?}", report.readiness());
    let conflicts = &report.decision.conflicts;
    assert_eq!(conflicts.len(), 2, "all of its ports: {conflicts:?}");
    for conflict in conflicts {
        assert_eq!(conflict.service.to_string(), "ns/bad");
        assert_eq!(conflict.reason, ConflictReason::RefusedByNft);
        let words = &conflict.held_by;
        assert!(words.contains("Argument list too long"), "{words}");
    }
    let elements = super::nft().elements().await.unwrap().unwrap();
    let ports = elements.of_set(Set::named("ports4").unwrap());
    assert_eq!(ports.count(), 3);
    // It is tried again at once when it asks for something else.
    inputs.send(service("bad", &[6665])).await.unwrap();
    let report = until(reports, |report| served(report).len() == 4).await;
    assert!(
        report.decision.conflicts.is_empty(),
        "{:?}",
        report.decision.conflicts
    );
}
