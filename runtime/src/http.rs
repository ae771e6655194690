//! Asking a program on this host over HTTP.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// What an answer may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connection to the end of the answer.
    pub time: Duration,
    /// The most bytes that are read, the head included. What is longer is cut.
    pub bytes: u64,
}

/// Asks for a path, which must be encoded as a URL wants it.
///
/// # Errors
/// If nobody answers in time, or what answers speaks no HTTP or no UTF-8.
pub async fn get(address: SocketAddr, path: &str, limits: Limits) -> io::Result<Answer> {
    let asked = timeout(limits.time, ask(address, path, limits.bytes)).await;
    asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(address: SocketAddr, path: &str, most: u64) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0 (RFC 1945): the answer is not chunked, and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.take(most).read_to_string(&mut text).await?;
    read(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it speaks no HTTP"))
}

fn read(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?;
    Some(Answer {
        status: status.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answering(answer: &'static str) -> Option<Answer> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /proxyMode HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let limits = Limits {
            time: Duration::from_secs(10),
            bytes: 1000,
        };
        let asked = get(address, "/proxyMode", limits).await;
        server.await.unwrap();
        asked.ok()
    }

    #[tokio::test]
    async fn only_an_answer_over_http_counts() {
        let said = |status, body: &str| {
            let body = body.to_owned();
            Some(Answer { status, body })
        };
        let ok = "HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nnftables";
        assert_eq!(answering(ok).await, said(200, "nftables"));
        let unhealthy = "HTTP/1.0 503 Service Unavailable\r\n\r\n{}";
        assert_eq!(answering(unhealthy).await, said(503, "{}"));
        assert_eq!(answering("SSH-2.0-OpenSSH_9.2\r\n").await, None);
        assert_eq!(answering("HTTP/1.0 what\r\n\r\n").await, None);
    }
}
