//! How kube-proxy works on this node.
//!
//! It is asked itself first (`/proxyMode` on its metrics port, loopback only by
//! default). If it does not answer, its traces in the kernel tell: they outlive a
//! restart of it, and so does the forwarding.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use highwire_api::node::ProxyMode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::kernel::Kernel;

/// kube-proxy's `--metrics-bind-address` by default.
const METRICS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Longer than any answer that matters.
const ANSWER_BYTES: u64 = 4096;

/// The mode of kube-proxy on this node; `None` if there is no sign of it.
pub async fn detect(kernel: &Kernel) -> Option<ProxyMode> {
    let asked = timeout(ANSWER_TIMEOUT, ask(METRICS)).await.ok().flatten();
    if let Some(mode) = asked.as_deref().and_then(parse) {
        return Some(mode);
    }
    if Path::new("/sys/class/net/kube-ipvs0").exists() {
        return Some(ProxyMode::Ipvs);
    }
    if kernel.exists(&["table", "ip", "kube-proxy"]).await
        || kernel.exists(&["table", "ip6", "kube-proxy"]).await
    {
        return Some(ProxyMode::Nftables);
    }
    // kube-proxy keeps an empty chain by which it notices a flush.
    let canary = ["chain", "ip", "mangle", "KUBE-PROXY-CANARY"];
    let canary6 = ["chain", "ip6", "mangle", "KUBE-PROXY-CANARY"];
    if kernel.exists(&canary).await || kernel.exists(&canary6).await || legacy_nat() {
        return Some(ProxyMode::Iptables);
    }
    None
}

/// nft cannot see into iptables-legacy; that it is used for NAT is all to know.
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
