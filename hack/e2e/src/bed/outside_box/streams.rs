//! What the updater writes for nginx, one file per backend.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// How long nginx waits where a request says 0: between two packets of a client, and
/// for a node to take a connection. In seconds.
const TIMEOUTS: (i64, i64) = (5, 2);

/// The body of a POST. What is left out is 0 or empty, and null counts as left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Update {
    pub(super) backend_name: Option<String>,
    lb_port: Option<i64>,
    lb_protocol: Option<String>,
    upstream_servers: Option<Vec<Server>>,
    proxy_timeout_seconds: Option<i64>,
    proxy_connect_timeout_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Server {
    host: Option<String>,
    port: Option<i64>,
}

/// The body of a DELETE.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Removal {
    pub(super) backend_name: Option<String>,
}

impl Update {
    /// The stream of nginx. Nothing is checked here: hosts and ports stand in it as they were
    /// sent, and a backend without servers is one that nginx does not load.
    pub(super) fn stream(&self, backend: &str) -> String {
        let mut text = format!("upstream {backend} {{\n");
        for server in self.upstream_servers.iter().flatten() {
            let host = server.host.as_deref().unwrap_or_default();
            // Writing to a text cannot fail.
            writeln!(text, "    server {host}:{};", server.port.unwrap_or(0)).ok();
        }
        let port = self.lb_port.unwrap_or(0);
        let protocol = self.lb_protocol.as_deref().unwrap_or_default();
        let udp = match protocol.eq_ignore_ascii_case("udp") {
            true => " udp",
            false => "",
        };
        let or = |asked: Option<i64>, usual| asked.filter(|it| *it > 0).unwrap_or(usual);
        let (idle, connect) = (
            or(self.proxy_timeout_seconds, TIMEOUTS.0),
            or(self.proxy_connect_timeout_seconds, TIMEOUTS.1),
        );
        text + &format!(
            "}}\nserver {{\n    listen {port}{udp};\n    proxy_pass {backend};\n    \
             proxy_timeout {idle}s;\n    proxy_connect_timeout {connect}s;\n}}\n"
        )
    }
}

/// The servers of a stream.
pub(super) fn servers(stream: &str) -> BTreeSet<SocketAddr> {
    let servers = stream.lines().filter_map(|line| {
        let server = line.trim().strip_prefix("server ")?.strip_suffix(';')?;
        server.parse().ok()
    });
    servers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_what_was_asked_for() {
        let update: Update = serde_json::from_str(
            r#"{"lbPort": 53, "lbProtocol": "Udp", "proxyTimeoutSeconds": 9, "more": [],
                "upstreamServers": [{"host": "192.0.2.11", "port": 30053},
                                    {"host": "[2001:db8:1::11]", "port": 30053}]}"#,
        )
        .unwrap();
        let stream = update.stream("shop_dns");
        assert_eq!(
            stream,
            "upstream shop_dns {\n    server 192.0.2.11:30053;\n    \
             server [2001:db8:1::11]:30053;\n}\nserver {\n    listen 53 udp;\n    \
             proxy_pass shop_dns;\n    proxy_timeout 9s;\n    proxy_connect_timeout 2s;\n}\n"
        );
        let found: Vec<String> = servers(&stream).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.11:30053", "[2001:db8:1::11]:30053"]);
    }

    #[test]
    fn what_is_not_said_has_its_usual_value() {
        let update: Update = serde_json::from_str(r#"{"lbProtocol": null}"#).unwrap();
        let stream = update.stream("web");
        assert!(stream.contains("listen 0;"), "{stream}");
        assert!(stream.contains("proxy_timeout 5s;"), "{stream}");
        assert!(stream.contains("proxy_connect_timeout 2s;"), "{stream}");
    }
}
