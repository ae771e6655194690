//! One request at a time: passed on, or not.

use std::io;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Client;
use kube::client::{Body, ConfigExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tower::{BoxError, ServiceBuilder};

use crate::faulty_api::answer::{self, PAGE};
use crate::faulty_api::counts::Outcome;
use crate::faulty_api::request::{Asked, Verb};
use crate::faulty_api::rule::{Fault, WatchFault};
use crate::faulty_api::shared::Shared;
use crate::faulty_api::stream;

/// How many events may wait for a slow client.
const EVENTS: usize = 64;

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A client of the API server without credentials of its own, and without retries.
pub(super) fn upstream(config: &kube::Config) -> Result<Client> {
    let https = config.rustls_https_connector()?;
    let sending = hyper_util::client::legacy::Builder::new(TokioExecutor::new());
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .map_err(BoxError::from)
        .service(sending.build::<_, Body>(https));
    Ok(Client::new(service, "default"))
}

/// Answers every connection. Does not return.
pub(super) async fn serve(listener: TcpListener, tls: TlsAcceptor, to: Client, shared: Shared) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (tls, to, shared) = (tls.clone(), to.clone(), shared.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            // A client that does not trust us sees it itself.
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let answering = service_fn(move |request| {
                let (to, shared) = (to.clone(), shared.clone());
                async move { respond(request, &to, &shared).await }
            });
            let connection = http1::Builder::new();
            let connection = connection.serve_connection(TokioIo::new(stream), answering);
            connection.await.ok();
        });
    }
}

/// Answers a request as the rules say. An error closes the connection without an answer.
async fn respond(request: Request<Incoming>, to: &Client, shared: &Shared) -> Result<Answer> {
    let uri = request.uri();
    let query = uri.query().unwrap_or_default();
    let asked = Asked::of(request.method(), uri.path(), query);
    let rules = shared.changes();
    let fault = shared.apply(&asked);
    let count = |outcome| shared.count(&asked, outcome);
    let mut version = None;
    let mut breaks = None;
    match fault {
        None => {}
        Some(Fault::Delay(time)) => {
            count(Outcome::Delayed);
            tokio::time::sleep(time).await;
        }
        Some(Fault::NoAnswer) => {
            count(Outcome::Unanswered);
            std::future::pending::<()>().await;
        }
        Some(Fault::Close) => {
            count(Outcome::Closed);
            anyhow::bail!("a rule closes it");
        }
        Some(Fault::Refuse(refusal)) => {
            let refused = answer::refusal(refusal, &asked);
            count(Outcome::Refused(refused.status().as_u16()));
            return Ok(refused.map(whole));
        }
        Some(Fault::Garbage) => {
            count(Outcome::Garbage);
            let page = answer::answer(StatusCode::OK, "text/html", PAGE.to_owned(), None);
            return Ok(page.map(whole));
        }
        Some(Fault::OldList(of)) => {
            count(Outcome::OldList);
            version = Some(of);
        }
        Some(Fault::Watch(fault)) => breaks = Some(fault),
    }
    count(Outcome::PassedOn);
    let answer = pass_on(request, version, to).await?;
    if asked.verb != Verb::Watch || !answer.status().is_success() {
        return Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()));
    }
    Ok(answer.map(|body| broken(body, asked, breaks, (shared.clone(), rules))))
}

/// Sends the request on with its credentials; a list as of that version.
async fn pass_on(
    request: Request<Incoming>,
    version: Option<u64>,
    to: &Client,
) -> Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.context("read the body")?.to_bytes();
    let uri = parts.uri.path_and_query().map_or("/", |it| it.as_str());
    let uri = match version {
        Some(version) => as_of(uri, version),
        None => uri.to_owned(),
    };
    parts.uri = uri.parse::<Uri>()?;
    of_the_connection(&mut parts.headers);
    // Events are to be read here.
    parts.headers.remove(header::ACCEPT_ENCODING);
    let request = Request::from_parts(parts, Body::from(body.to_vec()));
    let mut answer = to.send(request).await.context("the API server")?;
    of_the_connection(answer.headers_mut());
    Ok(answer)
}

/// The list as it was at that version. The next pages of it are so anyway.
fn as_of(uri: &str, version: u64) -> String {
    if uri.contains("continue=") {
        return uri.to_owned();
    }
    let and = if uri.contains('?') { "&" } else { "?" };
    format!("{uri}{and}resourceVersion={version}&resourceVersionMatch=Exact")
}

/// Removes the headers that are about one connection.
fn of_the_connection(headers: &mut HeaderMap) {
    for name in [
        header::HOST,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
    ] {
        headers.remove(name);
    }
}

fn broken(
    body: Body,
    asked: Asked,
    breaks: Option<WatchFault>,
    shared: (Shared, tokio::sync::watch::Receiver<()>),
) -> UnsyncBoxBody<Bytes, io::Error> {
    let (sender, mut received) = mpsc::channel(EVENTS);
    let from = body.into_data_stream().map_err(io::Error::other).boxed();
    tokio::spawn(stream::relay(from, sender, asked, breaks, shared));
    let out = futures::stream::poll_fn(move |context| received.poll_recv(context));
    StreamBody::new(out.map_ok(Frame::data)).boxed_unsync()
}

fn whole(body: String) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(Bytes::from(body))
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// TLS as the API server has it.
pub(super) fn tls(certificate: &std::path::Path, key: &std::path::Path) -> Result<TlsAcceptor> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificates = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_page_of_an_old_list_names_its_version() {
        let first = as_of("/api/v1/services?limit=100", 7);
        assert!(first.ends_with("limit=100&resourceVersion=7&resourceVersionMatch=Exact"));
        assert!(as_of("/api/v1/services", 7).contains("services?resourceVersion=7"));
        let next = "/api/v1/services?limit=100&continue=abc";
        assert_eq!(as_of(next, 7), next);
    }
}
