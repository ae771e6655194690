//! The server in a test Pod: answers with its name and the client.
//!
//! TCP: a first line that begins with `GET ` is answered as HTTP with
//! `pod=NAME client=IP:PORT`; otherwise each line is answered with `NAME LINE`
//! and the connection stays open. SCTP: the same, one-to-one (RFC 6458, 4). UDP:
//! `pod=NAME client=IP:PORT DATA`.

use std::io::{BufRead, BufReader, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use clap::Parser;
use highwire_e2e::lab::http::listen_sctp;

/// Serves on all addresses, IPv4 and IPv6, unless one is named, and prints `ready` when every port is open.
#[derive(Parser)]
struct Arguments {
    /// Name to answer with.
    #[arg(long)]
    name: String,
    /// TCP ports.
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// UDP ports.
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
    /// SCTP ports; few kernels have it.
    #[arg(long, value_delimiter = ',')]
    sctp: Vec<u16>,
    /// The one address that TCP and UDP are served at.
    #[arg(long)]
    address: Option<IpAddr>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let name: Arc<str> = arguments.name.into();
    let mut servers = Vec::new();
    for port in arguments.tcp {
        let listener = TcpListener::bind(&*addresses(arguments.address, port)?)
            .with_context(|| format!("listen on TCP port {port}"))?;
        let name = name.clone();
        servers.push(thread::spawn(move || serve_tcp(&listener, &name)));
    }
    for port in arguments.udp {
        let socket = UdpSocket::bind(&*addresses(arguments.address, port)?)
            .with_context(|| format!("listen on UDP port {port}"))?;
        let name = name.clone();
        servers.push(thread::spawn(move || serve_udp(&socket, &name)));
    }
    for port in arguments.sctp {
        let listener = listen_sctp((Ipv6Addr::UNSPECIFIED, port).into())
            .with_context(|| format!("listen on SCTP port {port}"))?;
        let name = name.clone();
        servers.push(thread::spawn(move || serve_tcp(&listener, &name)));
    }
    println!("ready");
    for server in servers {
        server.join().ok();
    }
    Ok(())
}

/// The IPv6 wildcard takes IPv4 as well; the IPv4 one is for hosts without IPv6.
fn addresses(one: Option<IpAddr>, port: u16) -> Result<Vec<SocketAddr>> {
    if let Some(address) = one {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let v6 = (Ipv6Addr::UNSPECIFIED, port).to_socket_addrs()?;
    Ok(v6
        .chain((Ipv4Addr::UNSPECIFIED, port).to_socket_addrs()?)
        .collect())
}

fn serve_tcp(listener: &TcpListener, name: &Arc<str>) {
    for stream in listener.incoming().flatten() {
        let name = name.clone();
        // A client that goes away in the middle is no concern of the server's.
        thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || converse(stream, &name).ok())
            .ok();
    }
}

fn converse(stream: TcpStream, name: &str) -> Result<()> {
    // SCTP has an option of its own for that.
    stream.set_nodelay(true).ok();
    let client = canonical(stream.peer_addr()?);
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line)? > 0 {
        if line.starts_with("GET ") {
            // The headers have to be read, else closing resets the connection.
            let mut header = String::new();
            while stream.read_line(&mut header)? > 0 && !header.trim_end().is_empty() {
                header.clear();
            }
            let body = format!("pod={name} client={client}\n");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{body}",
                body.len()
            );
            stream.get_mut().write_all(answer.as_bytes())?;
            return Ok(());
        }
        stream
            .get_mut()
            .write_all(format!("{name} {}\n", line.trim_end()).as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; 65_536];
    loop {
        // An error here is an ICMP message about an earlier answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut answer = format!("pod={name} client={} ", canonical(client)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        socket.send_to(&answer, client).ok();
    }
}

/// IPv4 clients of an IPv6 socket come as `::ffff:a.b.c.d`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
