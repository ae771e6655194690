//! Why an updater did not do what it was asked to do, in words for an admin.

use std::{error::Error as StdError, io};

use highwire_runtime::printable::printable;
use rustls::{AlertDescription, CertificateError, InvalidMessage};
use thiserror::Error;

/// How many characters of what others say are shown.
const MAX_MESSAGE: usize = 200;

/// Why an updater did not do what it was asked to do. The text is for an admin: it has no
/// secrets in it, and no control characters.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpdaterError {
    /// The URL is not one that can be used.
    #[error("the updater's URL {0}")]
    Url(String),
    /// The CA bundle holds no certificate.
    #[error(
        "httpUpdater.caBundle holds no certificate that can be read: write one or more there, \
         each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
    )]
    CaBundle,
    /// The client certificate or its key cannot be used.
    #[error("the Secret's {0}")]
    Certificate(&'static str),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
    /// There was no answer in time.
    #[error("the updater at {updater} did not answer within {seconds} s")]
    Timeout {
        /// Its scheme, host and port.
        updater: String,
        /// How long was waited.
        seconds: u16,
    },
    /// There is no connection.
    #[error("cannot connect to the updater at {updater}: {cause}")]
    Connect {
        /// Its scheme, host and port.
        updater: String,
        /// Why not.
        cause: String,
    },
    /// The two sides do not agree on TLS.
    #[error("no TLS connection to the updater at {updater}: {cause}")]
    Tls {
        /// Its scheme, host and port.
        updater: String,
        /// Why not, and what to do.
        cause: String,
    },
    /// There is a connection, but no answer came on it that is HTTP.
    #[error("the updater at {updater} gave no valid answer: {cause}")]
    Broken {
        /// Its scheme, host and port.
        updater: String,
        /// Why not.
        cause: String,
    },
    /// It sent a redirect.
    #[error(
        "the updater answered {status} with a Location, and redirects are not followed: \
         write the URL that it leads to in httpUpdater.url"
    )]
    Redirect {
        /// The HTTP status.
        status: u16,
    },
    /// It said no.
    #[error("the updater answered {status}{separator}{message}", separator = separator(.message))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said, escaped and cut; may be empty.
        message: String,
    },
}

impl UpdaterError {
    /// Whether the updater did not accept the credentials.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                status: 401 | 403,
                ..
            }
        )
    }
}

/// Text of others, fit for a log and a status: nothing in it that cannot be printed, and short.
pub(super) fn clean(text: &str) -> String {
    // Who sends megabytes is read no further than what is kept.
    let head: String = text.chars().take(MAX_MESSAGE).collect();
    let clean = printable(&head);
    match clean.char_indices().nth(MAX_MESSAGE - 1) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}

fn separator(message: &str) -> &'static str {
    if message.is_empty() { "" } else { ": " }
}

/// Why there was no answer.
pub(super) fn failure(updater: &str, error: &reqwest::Error) -> UpdaterError {
    let updater = updater.to_owned();
    if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
        let cause = clean(&explain_tls(error));
        return UpdaterError::Tls { updater, cause };
    }
    let cause = clean(&deepest(error));
    if error.is_connect() {
        UpdaterError::Connect { updater, cause }
    } else {
        UpdaterError::Broken { updater, cause }
    }
}

/// An error and what caused it, in turn.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn StdError + 'static)| {
        // An I/O error gives as its source that of the error in it, and leaves that one out.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

/// What the first of all causes says.
pub(super) fn deepest(error: &(dyn StdError + 'static)) -> String {
    let Some(cause) = causes(error).last() else {
        return error.to_string();
    };
    match cause.downcast_ref::<io::Error>() {
        // Without "(os error 111)".
        Some(error) if error.raw_os_error().is_some() => error.kind().to_string(),
        _ => cause.to_string(),
    }
}

/// What is wrong with TLS, and what to do.
fn explain_tls(error: &rustls::Error) -> String {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(error) => explain_certificate(error),
        Tls::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a client certificate; write the name of a Secret of type \
             kubernetes.io/tls in httpUpdater.secretRef"
                .to_owned()
        }
        Tls::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError),
        ) => format!(
            "it did not accept the client certificate (alert {alert:?}); check the Secret in \
             httpUpdater.secretRef"
        ),
        Tls::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what answers there is not TLS; does httpUpdater.url begin with http:// instead?"
                .to_owned()
        }
        other => other.to_string(),
    }
}

/// What is wrong with the updater's certificate, and what to do.
fn explain_certificate(error: &CertificateError) -> String {
    use CertificateError as Certificate;
    let text = match error {
        Certificate::UnknownIssuer => {
            "its certificate is of an unknown issuer; write the issuer's certificate in \
             httpUpdater.caBundle"
        }
        // Two authorities of one name: as a rule one was made anew.
        Certificate::BadSignature => {
            "its certificate is signed with another key than that of the authority of this name \
             in httpUpdater.caBundle; write the certificate of the one that signed it there"
        }
        Certificate::Expired | Certificate::ExpiredContext { .. } => {
            "its certificate has expired; renew it"
        }
        Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
            "its certificate is not valid yet; are the clocks right?"
        }
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
            "its certificate is not for this name or address; write a host in httpUpdater.url \
             that is among the certificate's subjectAltNames"
        }
        // rustls has no variant of its own for this, which `openssl req -x509` leads to.
        Certificate::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is one for an authority (CA:TRUE); make one with CA:FALSE"
        }
        other => return format!("its certificate cannot be used: {other}"),
    };
    text.to_owned()
}
