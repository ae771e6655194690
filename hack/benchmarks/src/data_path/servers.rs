//! The programs that answer, and the proxy: nginx and iperf3.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use highwire_e2e::lab::unit::Spec;
use highwire_e2e::{Cluster, Netns, Unit};

/// Names the folder that `hack/nginx` prints.
const NGINX: &str = "HIGHWIRE_NGINX";

/// Port of nginx in the Pods.
pub(crate) const WEB: u16 = 8080;
/// Port of iperf3 in its Pod.
pub(crate) const BULK: u16 = 5201;

const PREFIX: &str = "bench-";

/// Lines that keep nginx from logging, and its connections open until the other end closes them.
const HTTP: &str = "access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;";

/// Whether this is one of the programs that [`web`], [`proxy`] and [`bulk`] start.
pub(crate) fn is_server(unit: &Unit) -> bool {
    unit.name().starts_with(PREFIX)
}

/// nginx that answers every request with two bytes.
pub(crate) fn web(cluster: &Cluster, netns: &Netns, name: &str) -> Result<Unit> {
    let serve = format!(
        "http {{ {HTTP} server {{ listen {WEB} backlog=4096; location / {{ return 200 \"ok\"; }} }} }}"
    );
    nginx(cluster, netns, name, 1, &serve)
}

/// nginx as a proxy for HTTP to these Pods, with connections to them kept open, and as one
/// for TCP and UDP to the Pod with iperf3.
pub(crate) fn proxy(
    cluster: &Cluster,
    netns: &Netns,
    ports: (u16, u16),
    pods: &[SocketAddr],
    bulk: SocketAddr,
) -> Result<Unit> {
    // As ingress-nginx does: a connection that fails does not take its Pod out for 10 s.
    let servers = pods.iter().map(|pod| format!("server {pod} max_fails=0; "));
    let servers: String = servers.collect();
    let (http, stream) = ports;
    let proxy = format!(
        "http {{ {HTTP}
           upstream pods {{ {servers} keepalive 320; keepalive_requests 10000; }}
           server {{ listen {http} backlog=4096; location / {{
             proxy_pass http://pods; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}
         stream {{
           server {{ listen {stream} backlog=4096; proxy_pass {bulk}; }}
           server {{ listen {stream} udp; proxy_pass {bulk}; }} }}"
    );
    let workers = std::thread::available_parallelism()?.get();
    nginx(cluster, netns, "proxy", workers, &proxy)
}

/// iperf3's server, for TCP and UDP.
pub(crate) fn bulk(cluster: &Cluster, netns: &Netns, name: &str) -> Result<Unit> {
    let argv = ["iperf3", "--server", "--port", &BULK.to_string()].map(str::to_owned);
    Unit::spawn(
        cluster.state(),
        Spec::new(format!("{PREFIX}{name}"), netns, argv.into()),
    )
}

/// nginx itself.
pub(crate) fn program() -> Result<PathBuf> {
    Ok(unpacked()?.join("usr/sbin/nginx"))
}

fn unpacked() -> Result<PathBuf> {
    let folder = std::env::var_os(NGINX).map(PathBuf::from);
    folder.with_context(|| format!("{NGINX} is not set: start this by hack/bench, which sets it"))
}

fn nginx(
    cluster: &Cluster,
    netns: &Netns,
    name: &str,
    workers: usize,
    serve: &str,
) -> Result<Unit> {
    let name = format!("{PREFIX}{name}");
    let folder = cluster.state().path(&name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let configuration = folder.join("nginx.conf");
    let module = unpacked()?.join("usr/lib/nginx/modules/ngx_stream_module.so");
    let text = format!(
        "load_module {};\nuser root; daemon off; worker_processes {workers};\n\
         pid nginx.pid; lock_file nginx.lock; error_log stderr warn;\n\
         events {{ worker_connections 8192; }}\n{serve}\n",
        module.display()
    );
    fs::write(&configuration, text)
        .with_context(|| format!("write {}", configuration.display()))?;
    let path = |path: PathBuf| path.display().to_string();
    let argv = vec![
        path(program()?),
        "-p".into(),
        path(folder),
        "-c".into(),
        path(configuration),
        "-e".into(),
        "stderr".into(),
    ];
    Unit::spawn(cluster.state(), Spec::new(name, netns, argv))
}
