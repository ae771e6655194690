//! The path from the host to the API server without touching the host's network:
//! a process that listens on the host's loopback, then moves into the control
//! plane's namespace and dials from there.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use crate::lab::state::write_private;

/// Listens on a free port of 127.0.0.1, writes it to `port_file` and relays every
/// connection to `target` as seen from the network namespace
/// that the file `netns` stands for. Never returns but with an error.
///
/// Must be called on a program's main thread before any other one exists.
pub fn run(netns: &Path, target: SocketAddr, port_file: &Path) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let port = listener.local_addr()?.port();
    listener.set_nonblocking(true)?;
    let namespace = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("enter the control plane's namespace")?;
    write_private(port_file, port.to_string().as_bytes())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut client, _) = listener.accept().await.context("accept")?;
            tokio::spawn(async move {
                // A client whose dial fails sees its connection closed, as it should.
                if let Ok(mut server) = TcpStream::connect(target).await {
                    client.set_nodelay(true).ok();
                    server.set_nodelay(true).ok();
                    copy_bidirectional(&mut client, &mut server).await.ok();
                }
            });
        }
    })
}
