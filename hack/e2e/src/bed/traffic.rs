//! Talking to echo Pods: requests that say what became of them.
//!
//! The functions here work in the calling thread's namespace; [`Netns`] has the
//! same ones as methods, for the namespace it stands for. All of them block, for
//! the given time at most, [`scaled`].

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::lab::http::{ConnectError, Transport, connect, http_body, http_text, unspecified};
use crate::lab::netns::Netns;
use crate::lab::wait::scaled;

/// What an echo Pod said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoReply {
    /// The Pod's name.
    pub pod: String,
    /// Who the Pod saw asking.
    pub client: SocketAddr,
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
        // Sending reports the refusal of an earlier datagram and sends nothing.
        while let Err(error) = self.socket.send(data.as_bytes()) {
            if error.kind() != ErrorKind::ConnectionRefused {
                return Err(error.into());
            }
        }
        let deadline = Instant::now() + scaled(limit);
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean forever.
            let left = left.max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                // A signal: a program that another test had started has ended.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
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
    echo_get(Transport::Tcp, from, to, limit)
}

/// The same request by SCTP; few kernels have it.
pub fn sctp_get(to: SocketAddr, limit: Duration) -> Result<EchoReply, ConnectError> {
    echo_get(Transport::Sctp, unspecified(to), to, limit)
}

fn echo_get(
    by: Transport,
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> Result<EchoReply, ConnectError> {
    let body = http_body(by, from, to, "/", limit)?;
    parse(&body).ok_or_else(|| ConnectError::Other(format!("not an echo Pod: {body:?}")))
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
    echo_stream(Transport::Tcp, from, to, limit)
}

/// An SCTP association that stays open.
pub fn sctp_connect(to: SocketAddr, limit: Duration) -> Result<EchoStream, ConnectError> {
    echo_stream(Transport::Sctp, unspecified(to), to, limit)
}

fn echo_stream(
    by: Transport,
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> Result<EchoStream, ConnectError> {
    let stream = connect(by, from, to, limit)?;
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

    /// [`sctp_get`] from here.
    pub fn sctp_get(&self, to: SocketAddr, limit: Duration) -> Result<EchoReply, ConnectError> {
        self.run(|| sctp_get(to, limit))
    }

    /// [`sctp_connect`] from here.
    pub fn sctp_connect(
        &self,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<EchoStream, ConnectError> {
        self.run(|| sctp_connect(to, limit))
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

/// `pod=NAME client=IP:PORT …`
fn parse(answer: &str) -> Option<EchoReply> {
    let mut words = answer.split_whitespace();
    let pod = words.next()?.strip_prefix("pod=")?.to_owned();
    let client = words.next()?.strip_prefix("client=")?.parse().ok()?;
    Some(EchoReply { pod, client })
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
}
