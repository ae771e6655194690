//! A box: a TCP server that notes what it is asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

/// What a box does with each request.
#[derive(Clone)]
pub(super) enum Answer {
    /// Sends this and waits for the next request.
    Bytes(Vec<u8>),
    /// Sends this and then bytes until the client closes, but no more than that many.
    Flood(Vec<u8>, usize),
    /// Answers the first of all requests, and closes the connection at each later one.
    CloseAfterFirst,
}

/// A request as the box saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: String,
    pub(super) certificate: Option<Vec<u8>>,
}

/// A box: everything it was asked, and how many bytes each flood had when the client closed.
pub(super) struct Lb {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    pub(super) floods: mpsc::UnboundedReceiver<usize>,
}

impl Lb {
    pub(super) async fn start(answer: Answer) -> Self {
        Self::start_with(answer, None).await
    }

    pub(super) async fn start_with(answer: Answer, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (flooded, floods) = mpsc::unbounded_channel();
        let requests = Arc::clone(&seen);
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, seen, flooded) =
                    (answer.clone(), Arc::clone(&requests), flooded.clone());
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Some(acceptor) = acceptor else {
                        return serve(stream, None, &answer, &seen, &flooded).await;
                    };
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let certificates = stream.get_ref().1.peer_certificates();
                        let certificate = certificates.map(|chain| chain[0].to_vec());
                        serve(stream, certificate, &answer, &seen, &flooded).await;
                    }
                });
            }
        });
        Self {
            address,
            seen,
            floods,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/api/v1/lb", self.address)
    }

    pub(super) fn https(&self) -> String {
        format!("https://{}/api/v1/lb", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    certificate: Option<Vec<u8>>,
    answer: &Answer,
    seen: &Mutex<Vec<Seen>>,
    flooded: &mpsc::UnboundedSender<usize>,
) {
    while let Some((head, body)) = request(&mut stream).await {
        let certificate = certificate.clone();
        let request = Seen {
            head,
            body,
            certificate,
        };
        let first = {
            let mut seen = seen.lock().unwrap();
            seen.push(request);
            seen.len() == 1
        };
        match answer {
            Answer::Bytes(bytes) => stream.write_all(bytes).await.unwrap(),
            Answer::Flood(bytes, most) => {
                stream.write_all(bytes).await.unwrap();
                let mut written = 0;
                while written < *most && stream.write_all(&[b'x'; 65536]).await.is_ok() {
                    written += 65536;
                }
                flooded.send(written).unwrap();
                return;
            }
            Answer::CloseAfterFirst if first => stream.write_all(&ok("")).await.unwrap(),
            Answer::CloseAfterFirst => return,
        }
    }
}

/// The next request's head and body.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}

pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

pub(super) fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub(super) fn ok(body: &str) -> Vec<u8> {
    answer("200 OK", "", body)
}
