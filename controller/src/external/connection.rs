//! The connection to an updater, with the Secret that it asks for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use highwire_api::external::spec::HttpUpdater;
use highwire_runtime::errors::explain;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::sync::Mutex;

use super::{
    credentials::Credentials,
    updater::{Method, Updater},
};

/// The Secrets of Highwire's namespace.
pub type Secrets = Api<Secret>;

/// How long a Secret that was read counts, if the updater does not refuse it.
const SECRET_AGE: Duration = Duration::from_secs(60);

/// See the module; clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    settings: Arc<HttpUpdater>,
    secrets: Secrets,
    known: Arc<Mutex<Option<Known>>>,
}

/// An updater with credentials, and when these were read.
#[derive(Debug)]
struct Known {
    updater: Arc<Updater>,
    read: Instant,
}

impl Connection {
    /// One that has read nothing yet.
    #[must_use]
    pub fn new(settings: HttpUpdater, secrets: Secrets) -> Self {
        Self {
            settings: Arc::new(settings),
            secrets,
            known: Arc::default(),
        }
    }

    /// How the updater is reached.
    #[must_use]
    pub fn settings(&self) -> &HttpUpdater {
        &self.settings
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Why the updater did not take it, in words without secrets.
    pub async fn send(
        &self,
        url: &str,
        method: Method,
        body: &serde_json::Value,
    ) -> Result<(), String> {
        let updater = self.updater().await?;
        let Err(error) = updater.send(url, method, body).await else {
            return Ok(());
        };
        if !error.is_unauthorized() {
            return Err(error.to_string());
        }
        // The Secret may be mended by now.
        *self.known.lock().await = None;
        Err(match &self.settings.secret_ref {
            Some(secret) => format!("{error}; check the Secret {}", self.named(&secret.name)),
            None => format!("{error}; name a Secret in spec.httpUpdater.secretRef"),
        })
    }

    fn named(&self, secret: &str) -> String {
        let namespace = self.secrets.namespace().unwrap_or_default();
        format!("{namespace}/{secret} (spec.httpUpdater.secretRef)")
    }

    async fn updater(&self) -> Result<Arc<Updater>, String> {
        let mut known = self.known.lock().await;
        if let Some(known) = &*known
            && (self.settings.secret_ref.is_none() || known.read.elapsed() < SECRET_AGE)
        {
            return Ok(Arc::clone(&known.updater));
        }
        let credentials = match &self.settings.secret_ref {
            None => Credentials::None,
            Some(secret) => {
                let (name, named) = (&secret.name, self.named(&secret.name));
                let secret = self.secrets.get(name).await.map_err(|error| {
                    format!("cannot read the Secret {named}: {}", explain(&error))
                })?;
                Credentials::of(&secret).map_err(|error| format!("the Secret {named}: {error}"))?
            }
        };
        let updater = Updater::new(&self.settings, credentials).map_err(|it| it.to_string())?;
        let updater = Arc::new(updater);
        *known = Some(Known {
            updater: Arc::clone(&updater),
            read: Instant::now(),
        });
        Ok(updater)
    }
}
