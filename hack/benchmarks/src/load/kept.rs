//! A connection or socket that stays open from one request to the next.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::exchange::{Answered, Fault, ask_udp, is_from, udp_socket};
use super::{Kind, LIMIT};

/// One of them. After a fault the next request opens it anew.
pub(super) struct Kept {
    kind: Kind,
    to: SocketAddr,
    pods: &'static str,
    asked: u64,
    tcp: Option<BufReader<TcpStream>>,
    udp: Option<UdpSocket>,
}

impl Kept {
    /// One that is not open yet.
    pub(super) fn new(kind: Kind, to: SocketAddr, pods: &'static str) -> Self {
        Self {
            kind,
            to,
            pods,
            asked: 0,
            tcp: None,
            udp: None,
        }
    }

    /// One request.
    pub(super) async fn ask(&mut self) -> Result<Answered, Fault> {
        self.asked += 1;
        if self.kind.is_udp() {
            // After a fault too: a flow that is cut must not hide behind a new socket.
            if self.udp.is_none() {
                self.udp = Some(udp_socket(self.to).await?);
            }
            return match &self.udp {
                Some(socket) => ask_udp(socket, self.asked, self.pods).await,
                None => Err(Fault::Own("no socket".to_owned())),
            };
        }
        let asked = timeout(LIMIT, self.say()).await;
        let result = asked.unwrap_or(Err(Fault::Timeout));
        if result.is_err() {
            self.tcp = None;
        }
        result
    }

    /// A line, and the same line with a Pod's name before it.
    async fn say(&mut self) -> Result<Answered, Fault> {
        let mut stream = match self.tcp.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.to).await?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let line = format!("{}\n", self.asked);
        stream.get_mut().write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        if stream.read_line(&mut answer).await? == 0 {
            return Err(Fault::Reset);
        }
        if !answer.ends_with(&format!(" {line}")) {
            return Err(Fault::Wrong(answer.chars().take(80).collect()));
        }
        self.tcp = Some(stream);
        is_from(&answer, self.pods)
    }
}
