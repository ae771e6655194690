//! The client of an updater: a program on a load balancer that takes changes over HTTP, in the
//! protocol of PaperLB's updaters.
//!
//! One request is one try: nothing is sent twice, no redirect is followed and no proxy is used.
//! What the box answers is never trusted: it is read in part, and shown escaped and cut.

use std::{fmt, sync::Arc, time::Duration};

use data_encoding::BASE64;
use highwire_api::external::spec::HttpUpdater;
use reqwest::{
    Client, Response, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION},
};
use rustls::{
    ClientConfig, RootCertStore,
    client::WantsClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::external::{
    credentials::Credentials,
    updater_error::{clean, deepest, failure},
};

pub use crate::external::updater_error::UpdaterError;

/// How much of an answer is read.
const MAX_ANSWER: usize = 64 * 1024;
/// How long the rest of an answer that says "done" is waited for. It is read only so that the
/// connection can be used again.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a connection is kept. It is less than after what servers close one (Node.js: 5 s):
/// a request that meets the closing is lost.
const IDLE: Duration = Duration::from_secs(2);

/// What an updater is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Make or change a backend.
    Post,
    /// Remove a backend.
    Delete,
}

impl Method {
    /// As HTTP has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// A client for one updater.
pub struct Updater {
    url: Url,
    seconds: u16,
    /// Shows the client certificate if there is one.
    client: Client,
    /// For other places than the updater's own.
    stranger: Client,
    authorization: Option<HeaderValue>,
    /// What no error may repeat, even if the box does.
    secrets: Vec<String>,
}

impl Updater {
    /// A client by these settings. It checks them, and connects to nothing yet.
    pub fn new(settings: &HttpUpdater, credentials: Credentials) -> Result<Self, UpdaterError> {
        let url = parse(&settings.url)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UpdaterError::Url(
                "holds a user or a password: write them in a Secret of type \
                 kubernetes.io/basic-auth, and its name in httpUpdater.secretRef"
                    .to_owned(),
            ));
        }
        let roots = Arc::new(roots(settings.ca_bundle.as_deref())?);
        let stranger = client(tls(&roots)?.with_no_client_auth())?;
        let mut updater = Self {
            url,
            seconds: settings.timeout_seconds.max(1),
            client: stranger.clone(),
            stranger,
            authorization: None,
            secrets: Vec::new(),
        };
        match credentials {
            Credentials::None => {}
            Credentials::Bearer(token) => {
                updater.authorization = Some(authorization(&format!("Bearer {token}"))?);
                updater.secrets = vec![token];
            }
            Credentials::Basic { user, password } => {
                let both = BASE64.encode(format!("{user}:{password}").as_bytes());
                updater.authorization = Some(authorization(&format!("Basic {both}"))?);
                updater.secrets = vec![both, password];
            }
            Credentials::Certificate {
                certificate_pem,
                key_pem,
            } => {
                updater.client = client(identified(&roots, &certificate_pem, &key_pem)?)?;
            }
        }
        updater.secrets.retain(|secret| !secret.is_empty());
        Ok(updater)
    }

    /// Sends one request to a URL. Credentials go along only if it has the scheme, the host and
    /// the port of the updater's own.
    pub async fn send(&self, url: &str, method: Method, body: &Value) -> Result<(), UpdaterError> {
        let url = bare(parse(url)?);
        let own = url.origin() == self.url.origin();
        let shown = url.origin().ascii_serialization();
        let deadline = Instant::now() + Duration::from_secs(self.seconds.into());

        let client = if own { &self.client } else { &self.stranger };
        let mut request = match method {
            Method::Post => client.post(url),
            Method::Delete => client.delete(url),
        }
        .header(CONTENT_TYPE, "application/json")
        .body(body.to_string());
        if let Some(authorization) = self.authorization.as_ref().filter(|_| own) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = match timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(failure(&shown, &error)),
            Err(_) => {
                return Err(UpdaterError::Timeout {
                    updater: shown,
                    seconds: self.seconds,
                });
            }
        };
        self.judge(response, deadline).await
    }

    /// What an answer means. Its status decides; a body that breaks off changes nothing.
    async fn judge(&self, response: Response, deadline: Instant) -> Result<(), UpdaterError> {
        let status = response.status();
        if status.is_success() {
            read(response, deadline.min(Instant::now() + DRAIN)).await;
            return Ok(());
        }
        if status.is_redirection() && response.headers().contains_key(LOCATION) {
            return Err(UpdaterError::Redirect {
                status: status.as_u16(),
            });
        }
        Err(UpdaterError::Refused {
            status: status.as_u16(),
            message: message(&read(response, deadline).await, &self.secrets),
        })
    }
}

/// Names the place only.
impl fmt::Debug for Updater {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Updater({})",
            self.url.origin().ascii_serialization()
        )
    }
}

// --- What is checked before anything is sent.

fn parse(url: &str) -> Result<Url, UpdaterError> {
    let remedy = "write one that begins with http:// or https://";
    let url = Url::parse(url)
        .map_err(|error| UpdaterError::Url(format!("cannot be read ({error}): {remedy}")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err(UpdaterError::Url(format!("is not one of HTTP: {remedy}"))),
    }
}

/// Without a user and a password, which would become a header.
fn bare(mut url: Url) -> Url {
    // These fail for URLs without a host only, which those of HTTP all have.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

/// Whom to trust: the bundle, or else the authorities that browsers trust. They are part of the
/// program, since an image may have no files with them.
fn roots(bundle: Option<&str>) -> Result<RootCertStore, UpdaterError> {
    let Some(bundle) = bundle else {
        return Ok(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect());
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(bundle.as_bytes());
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if roots.is_empty() {
        return Err(UpdaterError::CaBundle);
    }
    Ok(roots)
}

type Builder = rustls::ConfigBuilder<ClientConfig, WantsClientCert>;

fn tls(roots: &Arc<RootCertStore>) -> Result<Builder, UpdaterError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| UpdaterError::Client(error.to_string()))?
        .with_root_certificates(Arc::clone(roots)))
}

/// TLS with a client certificate. The texts of what fails here are not used: they may quote
/// the PEM.
fn identified(
    roots: &Arc<RootCertStore>,
    certificate_pem: &[u8],
    key_pem: &[u8],
) -> Result<ClientConfig, UpdaterError> {
    let chain = CertificateDer::pem_slice_iter(certificate_pem)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or(UpdaterError::Certificate(
            "tls.crt cannot be read: write a client certificate there, as PEM",
        ))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| {
        UpdaterError::Certificate(
            "tls.key cannot be read: write the private key of tls.crt there, as PEM and not \
             encrypted",
        )
    })?;
    tls(roots)?.with_client_auth_cert(chain, key).map_err(|_| {
        UpdaterError::Certificate(
            "tls.crt and tls.key do not belong together or are of a kind that cannot be used: \
             write a certificate and its key there, of RSA or ECDSA (P-256, P-384) or Ed25519",
        )
    })
}

fn client(mut tls: ClientConfig) -> Result<Client, UpdaterError> {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_idle_timeout(IDLE)
        .user_agent(concat!("highwire/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| UpdaterError::Client(clean(&deepest(&error))))
}

/// A header that is printed nowhere.
fn authorization(value: &str) -> Result<HeaderValue, UpdaterError> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| UpdaterError::Client("the credentials fit in no header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

// --- What came back.

/// The first part of an answer, as far as it came in time.
async fn read(mut response: Response, deadline: Instant) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await {
        let room = MAX_ANSWER - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            break;
        }
    }
    body
}

/// What an answer says went wrong: its `err`, or else its first line. Without `secrets`,
/// fit for a log and a status.
#[must_use]
pub fn message(body: &[u8], secrets: &[String]) -> String {
    let said = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|body| Some(body.get("err")?.as_str()?.trim().to_owned()));
    let mut text = said.unwrap_or_else(|| {
        let body = String::from_utf8_lossy(body);
        let mut lines = body.lines().map(str::trim);
        lines
            .find(|line| !line.is_empty())
            .unwrap_or_default()
            .to_owned()
    });
    for secret in secrets {
        text = text.replace(secret, "***");
    }
    clean(&text)
}

#[cfg(test)]
#[path = "updater_tests.rs"]
mod tests;
