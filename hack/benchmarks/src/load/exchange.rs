//! One request and its answer, from an echo Pod (`highwire-echo`).

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;

use highwire_e2e::lab::http::unspecified;
use nix::errno::Errno;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{Kind, LIMIT, UDP_LIMIT};

/// The right Pod has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered;

/// Why a request is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Refused: by a reset of the SYN, or by ICMP.
    Refused,
    /// Cut after it was opened.
    Reset,
    /// No answer in time.
    Timeout,
    /// An answer of somebody else, or half of one.
    Wrong(String),
    /// The generator's own machine: no port, no file, no route.
    Own(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let own = |error: Error| Self::Own(error.to_string());
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            // ICMP of a router on the way is the network's answer.
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Refused,
            _ if error.raw_os_error() == Some(Errno::ETIMEDOUT as i32) => Self::Timeout,
            _ => own(error),
        }
    }
}

/// A request on a connection or socket of its own.
pub(super) async fn anew(kind: Kind, to: SocketAddr, pods: &str) -> Result<Answered, Fault> {
    if kind.is_udp() {
        let socket = udp_socket(to).await?;
        return ask_udp(&socket, 1, pods).await;
    }
    match timeout(LIMIT, get(to)).await {
        Ok(answer) => is_from(answer?.rsplit('\n').nth(1).unwrap_or_default(), pods),
        Err(_) => Err(Fault::Timeout),
    }
}

/// One HTTP request; the whole answer.
async fn get(to: SocketAddr) -> Result<String, Fault> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A socket that hears of refusals by `to` only.
pub(super) async fn udp_socket(to: SocketAddr) -> Result<UdpSocket, Fault> {
    let socket = UdpSocket::bind(unspecified(to)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// A datagram with that number, and the answer to it. Later answers to earlier ones are passed
/// over: those are lost already.
pub(super) async fn ask_udp(
    socket: &UdpSocket,
    number: u64,
    pods: &str,
) -> Result<Answered, Fault> {
    let end = format!(" {number}");
    socket.send(number.to_string().as_bytes()).await?;
    let mut buffer = [0; 512];
    let answer = async {
        loop {
            let length = socket.recv(&mut buffer).await?;
            let answer = String::from_utf8_lossy(&buffer[..length]);
            if answer.ends_with(&end) {
                return is_from(&answer, pods);
            }
        }
    };
    timeout(UDP_LIMIT, answer)
        .await
        .unwrap_or(Err(Fault::Timeout))
}

/// Whether `pod=NAME …` is one of ours.
pub(super) fn is_from(answer: &str, pods: &str) -> Result<Answered, Fault> {
    let name = answer.strip_prefix("pod=").unwrap_or(answer);
    if name.starts_with(pods) {
        return Ok(Answered);
    }
    Err(Fault::Wrong(answer.chars().take(80).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_services_own_pods_count() {
        assert_eq!(
            is_from("pod=web-1 client=192.0.2.1:1", "web-"),
            Ok(Answered)
        );
        assert_eq!(is_from("web-2 17", "web-"), Ok(Answered));
        for other in ["pod=db-1 client=192.0.2.1:1", "", "<html>"] {
            assert_eq!(is_from(other, "web-"), Err(Fault::Wrong(other.to_owned())));
        }
    }

    #[test]
    fn the_generators_own_trouble_is_not_the_networks() {
        let fault = |error: Errno| Fault::from(Error::from(error));
        assert_eq!(fault(Errno::ECONNREFUSED), Fault::Refused);
        assert_eq!(fault(Errno::ECONNRESET), Fault::Reset);
        assert_eq!(fault(Errno::ETIMEDOUT), Fault::Timeout);
        assert!(matches!(fault(Errno::EADDRNOTAVAIL), Fault::Own(_)));
        assert!(matches!(fault(Errno::EMFILE), Fault::Own(_)));
    }
}
