use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;

fn texts(addresses: &[&str]) -> Vec<String> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    let sockets = sockets(&addresses, 9807);
    sockets.iter().map(ToString::to_string).collect()
}

#[test]
fn it_listens_where_it_is_probed_and_on_loopback() {
    assert_eq!(
        texts(&["192.0.2.11"]),
        ["127.0.0.1:9807", "192.0.2.11:9807"]
    );
    assert_eq!(
        texts(&["2001:db8:1::11"]),
        ["[::1]:9807", "[2001:db8:1::11]:9807"]
    );
    assert_eq!(texts(&["0.0.0.0"]), ["0.0.0.0:9807"]);
    assert_eq!(texts(&[]), ["127.0.0.1:9807", "[::1]:9807"]);
}

/// A server on a port of its own, of a program that is never ready.
async fn server() -> SocketAddr {
    server_of(Arc::new(|| vec!["nothing works".to_owned()])).await
}

async fn server_of(problems: Problems) -> SocketAddr {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let admin = Admin::bind(&BTreeSet::from([any])).await.unwrap();
    let address = admin.listeners[0].local_addr().unwrap();
    tokio::spawn(admin.serve(Registry::new(), Heartbeat::default(), problems));
    address
}

/// What the server says to this, until it closes.
async fn said(to: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // What has come counts, also if the end is a reset.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn one_request_is_answered_per_connection() {
    let to = server().await;
    let twice = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
    let answer = said(to, &twice).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    let answer = said(to, b"GET /readyz HTTP/1.0\r\n\r\n").await;
    assert!(
        answer.contains(" 503 ") && answer.ends_with("nothing works\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_head_that_never_ends_is_refused() {
    let to = server().await;
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(2 * HEAD_BYTES));
    let answer = said(to, long.as_bytes()).await;
    assert!(answer.contains(" 431 "), "{answer}");
    // Too slow: the server's own time ends it.
    assert!(!said(to, b"GET / HTTP/1.1\r\n").await.contains(" 200 "));
}

#[tokio::test]
async fn idle_connections_keep_no_probe_out() {
    let to = server().await;
    let mut idle = Vec::new();
    for _ in 0..3 * MOST_CONNECTIONS {
        idle.push(TcpStream::connect(to).await.unwrap());
    }
    let answer = said(to, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.contains(" 200 "), "{answer}");
    // The first was closed for a later one, well before its time.
    let mut byte = [0];
    let ended = timeout(HEAD_TIME / 2, idle[0].read(&mut byte)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let to = server().await;
    let error = Admin::bind(&BTreeSet::from([to])).await.unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    let text = error.to_string();
    assert!(
        text.contains(&to.to_string()) && text.contains("--port"),
        "{text}"
    );
}

#[tokio::test]
async fn a_startup_probe_is_answered_once_the_program_is_ready() {
    let ready = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let (state, count) = (ready.clone(), asked.clone());
    let to = server_of(Arc::new(move || {
        count.fetch_add(1, Relaxed);
        let missing = (!state.load(Relaxed)).then(|| "not yet".to_owned());
        missing.into_iter().collect()
    }))
    .await;
    let probe = tokio::spawn(async move { said(to, b"GET /startz HTTP/1.0\r\n\r\n").await });
    while asked.load(Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!probe.is_finished(), "it was answered before");
    ready.store(true, Relaxed);
    assert!(probe.await.unwrap().contains(" 200 "));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_get_ready_has_started_all_the_same() {
    let began = Instant::now();
    let never: Problems = Arc::new(|| vec!["nothing works".to_owned()]);
    let response = startz(Heartbeat::default(), never).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(began.elapsed(), START_TIME);
}

#[tokio::test]
async fn what_is_for_this_host_is_not_for_pages_of_other_sites() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let routes = Router::new().route("/explain", get(async || "it is so\n"));
    let admin = Admin::bind(&BTreeSet::from([any])).await.unwrap();
    let admin = admin.answering_locally(routes);
    let to = admin.listeners[0].local_addr().unwrap();
    let (heartbeat, problems) = (Heartbeat::default(), Arc::new(Vec::new));
    tokio::spawn(admin.serve(Registry::new(), heartbeat, problems));
    let asked = async |host: &str| {
        let request = format!("GET /explain HTTP/1.1\r\nHost: {host}\r\n\r\n");
        said(to, request.as_bytes()).await
    };
    let answer = asked("localhost:9808").await;
    assert!(
        answer.contains(" 200 ") && answer.ends_with("it is so\n"),
        "{answer}"
    );
    let answer = asked("page.example").await;
    assert!(
        answer.contains(" 421 ") && !answer.contains("it is so"),
        "{answer}"
    );
    // Probes may name what they want.
    let answer = said(to, b"GET /healthz HTTP/1.1\r\nHost: page.example\r\n\r\n").await;
    assert!(answer.contains(" 200 "), "{answer}");
}
