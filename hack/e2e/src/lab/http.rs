//! Connections and HTTP requests that say what became of them.
//!
//! They are made in the calling thread's namespace and block, for the given time at most,
//! [`scaled`].

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::wait::scaled;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Refused: a reset, or for UDP an ICMP port unreachable.
    Refused,
    /// Nothing came back in time.
    Timeout,
    /// Anything else, such as no route.
    Other(String),
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => formatter.write_str("connection refused"),
            Self::Timeout => formatter.write_str("timeout"),
            Self::Other(error) => formatter.write_str(error),
        }
    }
}

impl std::error::Error for ConnectError {}

impl From<std::io::Error> for ConnectError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// What carries a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    /// A one-to-one socket (RFC 6458, 4), used as a TCP one is; few kernels have it.
    Sctp,
}

/// An answer of whatever status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Its status.
    pub status: u16,
    /// Its status line and headers.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// A request with a body, on a connection of its own.
pub fn http_send(
    to: SocketAddr,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
    limit: Duration,
) -> Result<HttpAnswer, ConnectError> {
    let headers = headers.iter();
    let headers: String = headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n{body}"
    );
    exchange(
        connect(Transport::Tcp, unspecified(to), to, limit)?,
        &request,
    )
}

/// The body of `GET path`, whoever answers; any status but 200 is an error.
pub fn http_text(to: SocketAddr, path: &str, limit: Duration) -> Result<String, ConnectError> {
    http_body(Transport::Tcp, unspecified(to), to, path, limit)
}

/// The same from a chosen address (and port, unless 0).
pub(crate) fn http_body(
    by: Transport,
    from: SocketAddr,
    to: SocketAddr,
    path: &str,
    limit: Duration,
) -> Result<String, ConnectError> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let answer = exchange(connect(by, from, to, limit)?, &request)?;
    let HttpAnswer { status, head, body } = answer;
    match status {
        200 => Ok(body),
        _ => Err(ConnectError::Other(format!("{head}\n{body}"))),
    }
}

/// Sends a request and reads until the other side closes.
fn exchange(mut stream: TcpStream, request: &str) -> Result<HttpAnswer, ConnectError> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let split = answer.split_once("\r\n\r\n");
    let status = |head: &str| head.split(' ').nth(1)?.parse().ok();
    let found = split.and_then(|(head, body)| Some((status(head)?, head, body)));
    let (status, head, body) =
        found.ok_or_else(|| ConnectError::Other(format!("no HTTP answer: {answer:?}")))?;
    let lower = head.to_ascii_lowercase();
    let body = match lower.contains("transfer-encoding: chunked") {
        true => unchunk(body),
        false => body.to_owned(),
    };
    Ok(HttpAnswer {
        status,
        head: head.to_owned(),
        body,
    })
}

/// Connects from `from`, which may be unspecified; reads and writes have the same limit.
pub(crate) fn connect(
    by: Transport,
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let limit = scaled(limit);
    let protocol = match by {
        Transport::Tcp => Protocol::TCP,
        Transport::Sctp => Protocol::SCTP,
    };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    if !from.ip().is_unspecified() || from.port() != 0 {
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(from))?;
    }
    socket.connect_timeout(&SockAddr::from(to), limit)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    if by == Transport::Tcp {
        stream.set_nodelay(true)?;
    }
    Ok(stream)
}

/// Waits for SCTP clients on a one-to-one socket, which is used as a TCP one is.
pub fn listen_sctp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::SCTP),
    )?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// The wildcard address of the same family.
pub fn unspecified(like: SocketAddr) -> SocketAddr {
    let any: IpAddr = match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, 0)
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        text += chunk;
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}
