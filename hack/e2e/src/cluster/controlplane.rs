//! Command lines of etcd, kube-apiserver, kube-controller-manager, kube-scheduler and the
//! relay.

use std::net::SocketAddr;

use anyhow::Result;

use crate::cluster::audit;
use crate::cluster::config::{Config, NodeKind};
use crate::cluster::layout::{API_PORT, IpFamily};
use crate::lab::netns::Netns;
use crate::lab::place::Place;
use crate::lab::state::State;
use crate::lab::unit::Spec;

/// Controllers that are needed when there is neither a kubelet nor a scheduler.
///
/// `node-lifecycle` takes the not-ready taint away; its grace period never ends,
/// because nobody sends a node's heartbeats here.
/// `validatingadmissionpolicy-status` checks the types in policies' expressions.
const CONTROLLERS: &str = "endpointslice-controller,node-lifecycle-controller,\
    garbage-collector-controller,namespace-controller,serviceaccount-controller,\
    root-ca-certificate-publisher-controller,validatingadmissionpolicy-status-controller";
/// Longer than any cluster lives.
const FOREVER: &str = "8760h";

/// The API server's URL inside the cluster.
pub fn api_url(family: IpFamily) -> String {
    format!("https://{}", api_address(family))
}

/// etcd, without the waiting for the disk: a test cluster need not survive a power cut.
pub fn etcd(state: &State, config: &Config) -> Spec {
    Spec::new(
        "etcd",
        &Netns::of(state, "cp"),
        vec![
            program(config, "etcd"),
            format!("--data-dir={}", state.path("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ],
    )
}

/// kube-apiserver with RBAC and service-account tokens.
pub fn apiserver(state: &State, config: &Config) -> Result<Spec> {
    let pki = |file: &str| state.path("pki").join(file).display().to_string();
    let bind = if config.ip_family.has_v6() {
        "::"
    } else {
        "0.0.0.0"
    };
    Ok(Spec::new(
        "kube-apiserver",
        &Netns::of(state, "cp"),
        vec![
            program(config, "kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--advertise-address={}", config.ip_family.control_plane()),
            format!("--bind-address={bind}"),
            format!("--secure-port={API_PORT}"),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", pki("tokens.pub")),
            format!("--service-account-signing-key-file={}", pki("tokens.key")),
            format!(
                "--service-cluster-ip-range={}",
                config.ip_family.service_cidrs()
            ),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            format!("--kubelet-client-certificate={}", pki("admin.crt")),
            format!("--kubelet-client-key={}", pki("admin.key")),
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--allow-privileged".into(),
            "--profiling=false".into(),
            format!(
                "--audit-policy-file={}",
                audit::write_policy(state)?.display()
            ),
            format!("--audit-log-path={}", audit::path(state).display()),
            // A stopped API server should be gone at once.
            "--shutdown-delay-duration=0s".into(),
        ],
    ))
}

/// kube-controller-manager, each controller as its own service account; on bare nodes only
/// the controllers needed.
pub fn controller_manager(state: &State, config: &Config) -> Spec {
    let pki = |file: &str| state.path("pki").join(file).display().to_string();
    let mut argv = vec![
        program(config, "kube-controller-manager"),
        format!("--kubeconfig={}", pki("kube-controller-manager.kubeconfig")),
        format!("--root-ca-file={}", pki("ca.crt")),
        "--use-service-account-credentials".into(),
        "--leader-elect=false".into(),
        // Tests create and delete in bursts.
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
        "--concurrent-namespace-syncs=20".into(),
        "--profiling=false".into(),
    ];
    match config.node_kind {
        NodeKind::Bare => argv.extend([
            format!("--controllers={CONTROLLERS}"),
            format!("--node-monitor-grace-period={FOREVER}"),
            format!("--node-startup-grace-period={FOREVER}"),
        ]),
        // All controllers, as anywhere.
        NodeKind::Kubelet(_) => argv.push(format!(
            "--service-account-private-key-file={}",
            pki("tokens.key")
        )),
    }
    Spec::new("kube-controller-manager", &Netns::of(state, "cp"), argv)
}

/// kube-scheduler, for nodes with kubelets.
pub fn scheduler(state: &State, config: &Config) -> Spec {
    let kubeconfig = state.path("pki/kube-scheduler.kubeconfig");
    Spec::new(
        "kube-scheduler",
        &Netns::of(state, "cp"),
        vec![
            program(config, "kube-scheduler"),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--leader-elect=false".into(),
        ],
    )
}

/// Where the API server listens, in the first family of the cluster.
pub fn api_address(family: IpFamily) -> SocketAddr {
    SocketAddr::new(family.control_plane(), API_PORT)
}

/// The relay on the host's loopback; see [`crate::cluster::relay`].
pub fn relay(state: &State, config: &Config) -> Result<Spec> {
    let target = api_address(config.ip_family);
    Ok(Spec {
        name: "relay".into(),
        place: Place::Host,
        argv: vec![
            config.tools.join("highwire-cluster").display().to_string(),
            "relay".into(),
            format!("--netns={}", Netns::of(state, "cp").path()?.display()),
            format!("--target={target}"),
            format!("--port-file={}", state.path("relay-port").display()),
        ],
        env: Vec::new(),
    })
}

/// Path of an upstream program.
pub fn program(config: &Config, name: &str) -> String {
    config.controlplane.join(name).display().to_string()
}
