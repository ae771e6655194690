//! How kube-proxy works on this node.
//!
//! It is asked itself first (`/proxyMode` on its metrics port, loopback only by
//! default). If it does not answer, its traces in the kernel tell: they outlive a
//! restart of it, and so does the forwarding. But they may also be left from a mode it
//! was in before, so a mode that is known stays as long as its own traces do.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use highwire_api::node::ProxyMode;
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage,
    NetfilterProtoFamily::{self, IPv4, IPv6},
    nftables::{ChainAttribute, ChainMessage, NfTablesMessage, TableAttribute, TableMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::netlink::ask as ask_kernel;

/// How often kube-proxy is asked, …
const PERIOD: Duration = Duration::from_secs(10);
/// … and while there is no sign of it.
const SEARCH_PERIOD: Duration = Duration::from_secs(2);

/// kube-proxy's `--metrics-bind-address` by default.
const METRICS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Longer than any answer that matters.
const ANSWER_BYTES: u64 = 4096;

/// Sends kube-proxy's mode, turned into an `Input` by `wrap`, now and after every change of
/// it, until the receiver is gone.
pub async fn follow<Input>(sender: mpsc::Sender<Input>, wrap: impl Fn(Option<ProxyMode>) -> Input) {
    let mut known = None;
    loop {
        let mode = detect(known.flatten()).await;
        if known != Some(mode) && sender.send(wrap(mode)).await.is_err() {
            return;
        }
        known = Some(mode);
        sleep(mode.map_or(SEARCH_PERIOD, |_| PERIOD)).await;
    }
}

/// The mode of kube-proxy on this node; `None` if there is no sign of it. `known` is
/// what this said last.
pub async fn detect(known: Option<ProxyMode>) -> Option<ProxyMode> {
    let asked = timeout(ANSWER_TIMEOUT, ask(METRICS)).await.ok().flatten();
    if let Some(mode) = asked.as_deref().and_then(parse) {
        return Some(mode);
    }
    let traces = spawn_blocking(Traces::find).await;
    traces.unwrap_or_default().mode(known)
}

/// What kube-proxy leaves in the kernel. Each of them is looked for without listing
/// anything of anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traces {
    /// The table of the nftables mode.
    nftables: bool,
    /// The empty chain by which it notices a flush, or iptables-legacy used for NAT,
    /// which nftables cannot see into.
    iptables: bool,
    /// The interface that has the ClusterIPs in ipvs mode.
    ipvs_interface: bool,
    /// Virtual servers of ipvs.
    virtual_servers: bool,
}

impl Traces {
    fn find() -> Self {
        let exists = |question: fn() -> NfTablesMessage| {
            [IPv4, IPv6]
                .into_iter()
                .any(|family| exists(family, question()))
        };
        Self {
            nftables: exists(kube_proxy_table),
            iptables: exists(canary_chain) || legacy_nat(),
            ipvs_interface: Path::new("/sys/class/net/kube-ipvs0").exists(),
            virtual_servers: virtual_servers(),
        }
    }

    /// The mode they speak of. kube-proxy removes its nftables when it starts in another
    /// mode, but iptables and ipvs leave each other's traces.
    fn mode(self, known: Option<ProxyMode>) -> Option<ProxyMode> {
        let left = |mode| match mode {
            ProxyMode::Nftables => self.nftables,
            ProxyMode::Iptables => self.iptables,
            ProxyMode::Ipvs => self.ipvs_interface,
            ProxyMode::Other => false,
        };
        if known.is_some_and(left) {
            return known;
        }
        if self.nftables {
            Some(ProxyMode::Nftables)
        } else if self.iptables {
            Some(ProxyMode::Iptables)
        } else if self.ipvs_interface && self.virtual_servers {
            Some(ProxyMode::Ipvs)
        } else {
            None
        }
    }
}

fn kube_proxy_table() -> NfTablesMessage {
    let attributes = vec![TableAttribute::Name("kube-proxy".to_owned())];
    NfTablesMessage::GetTable(TableMessage { attributes })
}

fn canary_chain() -> NfTablesMessage {
    let table = ChainAttribute::Table("mangle".to_owned());
    let name = ChainAttribute::Name("KUBE-PROXY-CANARY".to_owned());
    let attributes = vec![table, name];
    NfTablesMessage::GetChain(ChainMessage { attributes })
}

/// Whether nftables has an object: one question to the kernel about it alone. nft would
/// load all tables for it. If the kernel cannot be asked there is none.
fn exists(family: NetfilterProtoFamily, question: NfTablesMessage) -> bool {
    let question = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), question);
    let socket = Socket::new(NETLINK_NETFILTER);
    socket.is_ok_and(|socket| ask_kernel(&socket, NLM_F_ACK, question, |_| {}).is_ok())
}

/// Whether ipvs has any in this network namespace (net/netfilter/ipvs/ip_vs_ctl.c: each
/// stands in a line of its own that begins with its protocol).
fn virtual_servers() -> bool {
    fs::read_to_string("/proc/net/ip_vs").is_ok_and(|text| {
        text.lines().any(|line| {
            ["TCP ", "UDP ", "SCTP "]
                .iter()
                .any(|p| line.starts_with(p))
        })
    })
}

fn legacy_nat() -> bool {
    ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
        .iter()
        .any(|path| {
            fs::read_to_string(path).is_ok_and(|tables| tables.lines().any(|table| table == "nat"))
        })
}

async fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = "GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream
        .take(ANSWER_BYTES)
        .read_to_string(&mut answer)
        .await
        .ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines()
        .next()?
        .contains(" 200 ")
        .then(|| body.trim().to_owned())
}

fn parse(mode: &str) -> Option<ProxyMode> {
    match mode {
        "iptables" => Some(ProxyMode::Iptables),
        "nftables" => Some(ProxyMode::Nftables),
        "ipvs" => Some(ProxyMode::Ipvs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_mode_stays_as_long_as_its_traces_do() {
        let both = Traces {
            iptables: true,
            ipvs_interface: true,
            virtual_servers: true,
            ..Traces::default()
        };
        assert_eq!(both.mode(Some(ProxyMode::Ipvs)), Some(ProxyMode::Ipvs));
        assert_eq!(
            both.mode(Some(ProxyMode::Iptables)),
            Some(ProxyMode::Iptables)
        );
        for known in [None, Some(ProxyMode::Nftables)] {
            assert_eq!(both.mode(known), Some(ProxyMode::Iptables), "{known:?}");
        }
        assert_eq!(Traces::default().mode(Some(ProxyMode::Ipvs)), None);
    }

    #[test]
    fn an_interface_that_ipvs_has_left_decides_nothing() {
        let left = Traces {
            ipvs_interface: true,
            ..Traces::default()
        };
        assert_eq!(left.mode(None), None);
        let alive = Traces {
            virtual_servers: true,
            ..left
        };
        assert_eq!(alive.mode(None), Some(ProxyMode::Ipvs));
        let nftables = Traces {
            nftables: true,
            ..alive
        };
        assert_eq!(nftables.mode(None), Some(ProxyMode::Nftables));
    }

    async fn answering(answer: &'static str) -> Option<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /proxyMode HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let asked = ask(address).await;
        server.await.unwrap();
        asked
    }

    #[tokio::test]
    async fn kube_proxy_is_asked_by_http() {
        let answer = answering("HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nnftables").await;
        assert_eq!(answer.as_deref().and_then(parse), Some(ProxyMode::Nftables));
        assert_eq!(
            answering("HTTP/1.0 404 Not Found\r\n\r\niptables").await,
            None
        );
        assert_eq!(answering("SSH-2.0-OpenSSH_9.2\r\n").await, None);
        assert_eq!(parse("userspace"), None);
    }
}
