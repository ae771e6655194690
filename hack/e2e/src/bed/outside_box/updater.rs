//! The updater on a box: takes backends over HTTP and writes streams for nginx.
//!
//! It does what didil/nginx-lb-updater does (its `server/handlers/lb.go` and
//! `services/lb_updater.go`): POST writes a backend's file, DELETE removes it, and both answer
//! 200 and `{}` before nginx knows of it. A backend without a name is 500, a body that is no
//! such JSON 400, both with the reason in `err`. Nothing else is checked. On demand it
//! misbehaves.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv6Addr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use nix::sys::socket::{Shutdown, shutdown};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::oneshot;

use crate::bed::outside_box::nginx::Nginx;
use crate::bed::outside_box::reloads::Watcher;
use crate::bed::outside_box::requests::{Log, Request};
use crate::bed::outside_box::streams::{Removal, Update};

/// Its port.
pub const PORT: u16 = 3000;
/// Its path.
pub const PATH: &str = "/api/v1/lb";

/// What is answered to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// What came of it.
    #[default]
    Usual,
    /// 200 and a web page; nothing is changed. As from a server that is not the updater.
    Rubbish,
    /// 500 with this text in `err`; nothing is changed.
    Error(String),
}

/// The updater of a box. It answers until it goes down.
pub struct Updater {
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
}

struct Shared {
    nginx: Arc<Nginx>,
    watcher: Arc<Watcher>,
    log: Arc<Log>,
    behaviour: Mutex<Behaviour>,
    /// Held while a file is changed.
    writing: Mutex<()>,
}

#[derive(Clone, Default)]
struct Behaviour {
    token: Option<String>,
    delay: Duration,
    answer: Answer,
}

/// The server: a thread, so that a test which blocks does not slow it down.
struct Server {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Updater {
    pub(super) fn new(nginx: &Arc<Nginx>, watcher: &Arc<Watcher>) -> Self {
        let shared = Shared {
            nginx: Arc::clone(nginx),
            watcher: Arc::clone(watcher),
            log: Arc::new(Log::to(nginx.unit().log_path())),
            behaviour: Mutex::default(),
            writing: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            server: Mutex::default(),
        }
    }

    /// Refuses connections from now on; those that are open are cut.
    pub fn go_down(&self) {
        let server = lock(&self.server).take();
        if let Some(Server { stop, thread }) = server {
            stop.send(()).ok();
            match thread.join() {
                Ok(Ok(())) => {}
                other => eprintln!("updater: {other:?}"),
            }
        }
    }

    /// Answers again.
    pub fn come_up(&self) -> Result<()> {
        let mut server = lock(&self.server);
        if server.is_some() {
            return Ok(());
        }
        // IPv4 as well.
        let address = (Ipv6Addr::UNSPECIFIED, PORT);
        let netns = self.shared.nginx.netns();
        let listener = netns.run(|| TcpListener::bind(address));
        let listener = listener.with_context(|| format!("listen on port {PORT}"))?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let thread = thread::spawn(move || serve(listener, shared, stopped));
        *server = Some(Server { stop, thread });
        Ok(())
    }

    /// Answers 401 to requests without this bearer token; `None` asks for none.
    pub fn require_token(&self, token: Option<&str>) {
        lock(&self.shared.behaviour).token = token.map(str::to_owned);
    }

    /// Waits so long before each request is carried out.
    pub fn delay(&self, delay: Duration) {
        lock(&self.shared.behaviour).delay = delay;
    }

    /// Answers so from now on.
    pub fn answer(&self, answer: Answer) {
        lock(&self.shared.behaviour).answer = answer;
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.all()
    }

    /// Those about one backend.
    pub fn requests_for(&self, backend: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.backend().as_deref() == Some(backend));
        requests
    }

    /// Forgets the requests so far, unless one lasts.
    pub fn forget_requests(&self) {
        self.shared.log.forget();
    }
}

impl Drop for Updater {
    fn drop(&mut self) {
        self.go_down();
    }
}

fn serve(listener: TcpListener, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let socket = listener.try_clone()?;
    // Connections, and what they wait for, end with the runtime.
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let app = Router::new().fallback(handle).with_state(shared);
        tokio::select! {
            served = async { axum::serve(listener, app).await } => served.context("serve"),
            _ = stopped => Ok(()),
        }
    })?;
    // A process that is just being started may have it too for a moment.
    Ok(shutdown(socket.as_raw_fd(), Shutdown::Both)?)
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let authorization = headers.get(AUTHORIZATION);
    let request = Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        authorization: authorization.map(|it| String::from_utf8_lossy(it.as_bytes()).into()),
        body: String::from_utf8_lossy(&body).into_owned(),
        started: Instant::now(),
        ended: None,
        status: None,
    };
    let entry = shared.log.begin(request.clone());
    let behaviour = lock(&shared.behaviour).clone();
    // What was begun is carried out, even if the client hangs up.
    let work = tokio::spawn(async move {
        tokio::time::sleep(behaviour.delay).await;
        shared.carry_out(&request, &behaviour)
    });
    let (status, body) = work.await.unwrap_or_else(|error| {
        let error = error.to_string();
        (StatusCode::INTERNAL_SERVER_ERROR, error)
    });
    entry.answered(status.as_u16());
    let plain = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, plain, body).into_response()
}

impl Shared {
    fn carry_out(&self, request: &Request, behaviour: &Behaviour) -> (StatusCode, String) {
        if request.path != PATH {
            return (StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
        }
        let wanted = behaviour
            .token
            .as_ref()
            .map(|token| format!("Bearer {token}"));
        if wanted.is_some() && request.authorization != wanted {
            return (StatusCode::UNAUTHORIZED, "Unauthorized\n".to_owned());
        }
        match &behaviour.answer {
            Answer::Usual => {}
            Answer::Rubbish => {
                let page = "<html><body>Welcome to nginx!</body></html>\n";
                return (StatusCode::OK, page.to_owned());
            }
            Answer::Error(text) => return failure(StatusCode::INTERNAL_SERVER_ERROR, text),
        }
        let outcome = match request.method.as_str() {
            "POST" => read::<Update>(&request.body).map(|update| self.write(&update)),
            "DELETE" => read::<Removal>(&request.body).map(|removal| self.delete(&removal)),
            _ => return (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        };
        match outcome {
            Ok(Ok(())) => (StatusCode::OK, "{}\n".to_owned()),
            Ok(Err(error)) => failure(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
            Err(error) => failure(StatusCode::BAD_REQUEST, &format!("{error:#}")),
        }
    }

    fn write(&self, update: &Update) -> Result<()> {
        let backend = name(update.backend_name.as_deref())?;
        let _writing = lock(&self.writing);
        let path = self.nginx.stream_file(backend);
        // In place: nginx may read a part of it.
        let mut file = fs::File::create(&path).context("open the stream's file")?;
        file.write_all(update.stream(backend).as_bytes())?;
        self.watcher.notice();
        Ok(())
    }

    fn delete(&self, removal: &Removal) -> Result<()> {
        let backend = name(removal.backend_name.as_deref())?;
        let _writing = lock(&self.writing);
        match fs::remove_file(self.nginx.stream_file(backend)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => removed.context("remove the stream's file")?,
        }
        self.watcher.notice();
        Ok(())
    }
}

/// The first JSON value of a body; what follows it does not count.
fn read<T: DeserializeOwned>(body: &str) -> Result<T> {
    let mut values = serde_json::Deserializer::from_str(body).into_iter();
    let first = values.next().context("no JSON")?;
    first.context("not understood")
}

fn name(name: Option<&str>) -> Result<&str> {
    match name.map(str::trim) {
        None | Some("") => bail!("the backend has no name"),
        Some(name) => Ok(name),
    }
}

fn failure(status: StatusCode, reason: &str) -> (StatusCode, String) {
    (status, format!("{}\n", json!({ "err": reason })))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
