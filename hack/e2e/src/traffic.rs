//! Talking to echo Pods: requests that say what became of them.
//!
//! The functions here work in the calling thread's namespace; [`Netns`] has the
//! same ones as methods, for the namespace it stands for. All of them block, for
//! the given time at most.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::netns::Netns;

/// What an echo Pod said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoReply {
    /// The Pod's name.
    pub pod: String,
    /// Who the Pod saw asking.
    pub client: SocketAddr,
}

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

/// A connection to an echo Pod that stays open: each line is answered.
#[derive(Debug)]
pub struct EchoStream {
    stream: BufReader<TcpStream>,
}

impl EchoStream {
    /// Sends a line and returns the name of the Pod that answered with it.
    pub fn say(&mut self, line: &str) -> Result<String, ConnectError> {
        writeln!(self.stream.get_mut(), "{line}")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        match answer.trim_end().split_once(' ') {
            Some((pod, echo)) if echo == line => Ok(pod.to_owned()),
            _ if answer.is_empty() => Err(ConnectError::Other("closed by the other side".into())),
            _ => Err(ConnectError::Other(format!("odd answer {answer:?}"))),
        }
    }

    /// The local end's address.
    pub fn local_addr(&self) -> Result<SocketAddr, ConnectError> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// The socket itself.
    pub fn into_inner(self) -> TcpStream {
        self.stream.into_inner()
    }
}

/// A UDP client that keeps its source port: all that it sends is one flow.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
    sent: u32,
}

impl UdpFlow {
    /// Sends one datagram and waits for the answer to it; answers to earlier ones
    /// that come late are passed over.
    pub fn ask(&mut self, limit: Duration) -> Result<EchoReply, ConnectError> {
        self.sent += 1;
        let data = self.sent.to_string();
        // The refusal of an earlier datagram is told here, in place of sending.
        while let Err(error) = self.socket.send(data.as_bytes()) {
            if error.kind() != ErrorKind::ConnectionRefused {
                return Err(error.into());
            }
        }
        let deadline = Instant::now() + limit;
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean forever.
            let left = left.max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            let length = self.socket.recv(&mut buffer)?;
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if answer.ends_with(&format!(" {data}")) {
                return parse(&answer)
                    .ok_or_else(|| ConnectError::Other(format!("odd answer {answer:?}")));
            }
        }
    }
}

/// One HTTP request on a connection of its own.
pub fn http_get(to: SocketAddr, limit: Duration) -> Result<EchoReply, ConnectError> {
    http_get_from(unspecified(to), to, limit)
}

/// The same from a chosen address (and port, unless 0).
pub fn http_get_from(
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> Result<EchoReply, ConnectError> {
    let body = http_body(from, to, "/", limit)?;
    parse(&body).ok_or_else(|| ConnectError::Other(format!("not an echo Pod: {body:?}")))
}

/// The body of `GET path`, whoever answers; any status but 200 is an error.
pub fn http_text(to: SocketAddr, path: &str, limit: Duration) -> Result<String, ConnectError> {
    http_body(unspecified(to), to, path, limit)
}

fn http_body(
    from: SocketAddr,
    to: SocketAddr,
    path: &str,
    limit: Duration,
) -> Result<String, ConnectError> {
    let mut stream = connect(from, to, limit)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| ConnectError::Other(format!("no HTTP answer: {answer:?}")))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(ConnectError::Other(format!("{head}\n{body}")));
    }
    if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        return Ok(unchunk(body));
    }
    Ok(body.to_owned())
}

/// A connection that stays open.
pub fn tcp_connect(to: SocketAddr, limit: Duration) -> Result<EchoStream, ConnectError> {
    tcp_connect_from(unspecified(to), to, limit)
}

/// The same from a chosen address (and port, unless 0).
pub fn tcp_connect_from(
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> Result<EchoStream, ConnectError> {
    let stream = connect(from, to, limit)?;
    Ok(EchoStream {
        stream: BufReader::new(stream),
    })
}

/// A client that keeps a source port of its own.
pub fn udp_flow(to: SocketAddr) -> Result<UdpFlow, ConnectError> {
    let socket = UdpSocket::bind(unspecified(to))?;
    socket.connect(to)?;
    Ok(UdpFlow { socket, sent: 0 })
}

/// Asks one datagram, from any port, and waits for its answer.
pub fn udp_ask(to: SocketAddr, limit: Duration) -> Result<EchoReply, ConnectError> {
    udp_flow(to)?.ask(limit)
}

impl Netns {
    /// [`http_get`] from here.
    pub fn http_get(&self, to: SocketAddr, limit: Duration) -> Result<EchoReply, ConnectError> {
        self.run(|| http_get(to, limit))
    }

    /// [`http_get_from`] from here.
    pub fn http_get_from(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<EchoReply, ConnectError> {
        self.run(|| http_get_from(from, to, limit))
    }

    /// [`http_text`] from here.
    pub fn http_text(
        &self,
        to: SocketAddr,
        path: &str,
        limit: Duration,
    ) -> Result<String, ConnectError> {
        self.run(|| http_text(to, path, limit))
    }

    /// [`tcp_connect`] from here.
    pub fn tcp_connect(&self, to: SocketAddr, limit: Duration) -> Result<EchoStream, ConnectError> {
        self.run(|| tcp_connect(to, limit))
    }

    /// [`udp_flow`] from here.
    pub fn udp_flow(&self, to: SocketAddr) -> Result<UdpFlow, ConnectError> {
        self.run(|| udp_flow(to))
    }

    /// [`tcp_connect_from`] from here.
    pub fn tcp_connect_from(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<EchoStream, ConnectError> {
        self.run(|| tcp_connect_from(from, to, limit))
    }

    /// [`udp_ask`] from here.
    pub fn udp_ask(&self, to: SocketAddr, limit: Duration) -> Result<EchoReply, ConnectError> {
        self.run(|| udp_ask(to, limit))
    }
}

fn connect(from: SocketAddr, to: SocketAddr, limit: Duration) -> Result<TcpStream, ConnectError> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if !from.ip().is_unspecified() || from.port() != 0 {
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(from))?;
    }
    socket.connect_timeout(&SockAddr::from(to), limit)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn unspecified(like: SocketAddr) -> SocketAddr {
    let any: IpAddr = match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, 0)
}

/// `pod=NAME client=IP:PORT …`
fn parse(answer: &str) -> Option<EchoReply> {
    let mut words = answer.split_whitespace();
    let pod = words.next()?.strip_prefix("pod=")?.to_owned();
    let client = words.next()?.strip_prefix("client=")?.parse().ok()?;
    Some(EchoReply { pod, client })
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
    fn echo_answers_are_understood() {
        let reply = parse("pod=web-1 client=[2001:db8:2::10]:4711 hello").unwrap();
        assert_eq!(reply.pod, "web-1");
        assert_eq!(reply.client, "[2001:db8:2::10]:4711".parse().unwrap());
        assert_eq!(parse("<html>"), None);
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}
