//! Asking kube-proxy over HTTP on this host.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const TIMEOUT: Duration = Duration::from_millis(500);
/// More than any answer that matters: kube-proxy's metrics are 110 KB.
const MOST_BYTES: u64 = 1 << 20;

/// The body of the answer, whatever its status but "not found"; `None` if what answers in
/// time, if anything, does not know the path or speaks no HTTP.
pub(super) async fn get(address: SocketAddr, path: &str) -> Option<String> {
    timeout(TIMEOUT, ask(address, path)).await.ok().flatten()
}

async fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    // HTTP/1.0 (RFC 1945): the answer is not chunked, and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream
        .take(MOST_BYTES)
        .read_to_string(&mut answer)
        .await
        .ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?;
    (status != "404").then(|| body.trim().to_owned())
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
        let asked = get(address, "/proxyMode").await;
        server.await.unwrap();
        asked
    }

    #[tokio::test]
    async fn only_an_answer_over_http_counts() {
        let said = |body: &str| Some(body.to_owned());
        let ok = "HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nnftables";
        assert_eq!(answering(ok).await, said("nftables"));
        let unhealthy = "HTTP/1.0 503 Service Unavailable\r\n\r\n{}";
        assert_eq!(answering(unhealthy).await, said("{}"));
        assert_eq!(
            answering("HTTP/1.0 404 Not Found\r\n\r\niptables").await,
            None
        );
        assert_eq!(answering("SSH-2.0-OpenSSH_9.2\r\n").await, None);
    }
}
