//! By what an updater knows the controller: read from a Secret, and never printed.

use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use thiserror::Error;

const USERNAME: &str = "username";
const PASSWORD: &str = "password";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const TOKEN: &str = "token";

/// What is sent to an updater so that it knows who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// A token, in the header `Authorization: Bearer`.
    Bearer(String),
    /// A user and a password, in the header `Authorization: Basic`.
    Basic {
        /// The user; may be empty.
        user: String,
        /// The password.
        password: String,
    },
    /// A client certificate, shown during the TLS handshake.
    Certificate {
        /// The certificate and those of intermediate authorities, as PEM.
        certificate_pem: Vec<u8>,
        /// Its private key, as PEM.
        key_pem: Vec<u8>,
    },
}

/// Why a Secret cannot be used. It names a key, never a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CredentialsError {
    /// The Secret lacks a key, or it is empty.
    #[error("the Secret has nothing in its key {key}: {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to write.
        remedy: &'static str,
    },
    /// The value of a key is not what can be sent.
    #[error("the key {key} of the Secret {problem}: {remedy}")]
    Unusable {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        problem: &'static str,
        /// What to write.
        remedy: &'static str,
    },
}

impl Credentials {
    /// What a Secret says, by its type.
    pub fn of(secret: &Secret) -> Result<Self, CredentialsError> {
        match secret.type_.as_deref() {
            Some("kubernetes.io/basic-auth") => basic(secret),
            Some("kubernetes.io/tls") => Ok(Self::Certificate {
                certificate_pem: required(secret, CERTIFICATE, "write a client certificate (PEM)")?
                    .to_vec(),
                key_pem: required(secret, KEY, "write the private key of tls.crt (PEM)")?.to_vec(),
            }),
            _ => bearer(secret),
        }
    }
}

/// Names the kind only.
impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "None",
            Self::Bearer(_) => "Bearer(..)",
            Self::Basic { .. } => "Basic { .. }",
            Self::Certificate { .. } => "Certificate { .. }",
        })
    }
}

fn basic(secret: &Secret) -> Result<Credentials, CredentialsError> {
    let remedy = "write the user that the updater expects, without colons or line breaks";
    let user = value(secret, USERNAME).unwrap_or_default();
    let user = text(USERNAME, user, remedy)?;
    if user.contains(':') {
        return Err(CredentialsError::Unusable {
            key: USERNAME,
            problem: "contains a colon",
            remedy,
        });
    }
    let remedy = "write the password that the updater expects, without line breaks";
    let password = text(PASSWORD, required(secret, PASSWORD, remedy)?, remedy)?;
    Ok(Credentials::Basic { user, password })
}

fn bearer(secret: &Secret) -> Result<Credentials, CredentialsError> {
    let remedy = "write the token that the updater expects, in printable ASCII without spaces; \
                  for other credentials make a Secret of type kubernetes.io/basic-auth or \
                  kubernetes.io/tls";
    let token = required(secret, TOKEN, remedy)?.trim_ascii_end();
    let legal = str::from_utf8(token)
        .ok()
        .filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
    match legal {
        Some("") => Err(CredentialsError::Missing { key: TOKEN, remedy }),
        Some(token) => Ok(Credentials::Bearer(token.to_owned())),
        None => Err(CredentialsError::Unusable {
            key: TOKEN,
            problem: "contains something else than printable ASCII, or a space",
            remedy,
        }),
    }
}

/// A user or a password: HTTP allows no control characters in them.
fn text(key: &'static str, value: &[u8], remedy: &'static str) -> Result<String, CredentialsError> {
    let unusable = |problem| CredentialsError::Unusable {
        key,
        problem,
        remedy,
    };
    let text = str::from_utf8(value).map_err(|_| unusable("is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(unusable("contains a control character or a line break"));
    }
    Ok(text.to_owned())
}

fn required<'a>(
    secret: &'a Secret,
    key: &'static str,
    remedy: &'static str,
) -> Result<&'a [u8], CredentialsError> {
    value(secret, key)
        .filter(|value| !value.is_empty())
        .ok_or(CredentialsError::Missing { key, remedy })
}

fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    Some(&secret.data.as_ref()?.get(key)?.0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use proptest::prelude::*;

    use super::*;

    const BASIC: &str = "kubernetes.io/basic-auth";
    const TLS: &str = "kubernetes.io/tls";

    type Data<'a> = &'a [(&'a str, &'a [u8])];

    fn of(kind: &str, data: Data<'_>) -> Result<Credentials, CredentialsError> {
        Credentials::of(&Secret {
            type_: Some(kind.to_owned()),
            data: Some(
                data.iter()
                    .map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec())))
                    .collect(),
            ),
            ..Secret::default()
        })
    }

    #[test]
    fn the_type_decides_which_keys_are_read() {
        let all: Data<'_> = &[
            ("username", b"admin"),
            ("password", b"pass word:"),
            ("tls.crt", b"certificate"),
            ("tls.key", b"key"),
            ("token", b"abc.def=\r\n"),
        ];
        let bearer = Credentials::Bearer("abc.def=".to_owned());
        for (kind, expected) in [
            (
                BASIC,
                Credentials::Basic {
                    user: "admin".to_owned(),
                    password: "pass word:".to_owned(),
                },
            ),
            (
                TLS,
                Credentials::Certificate {
                    certificate_pem: b"certificate".to_vec(),
                    key_pem: b"key".to_vec(),
                },
            ),
            ("Opaque", bearer.clone()),
            ("kubernetes.io/service-account-token", bearer.clone()),
            ("", bearer),
        ] {
            assert_eq!(of(kind, all), Ok(expected), "{kind}");
        }
    }

    #[test]
    fn a_user_may_be_left_out() {
        let expected = Credentials::Basic {
            user: String::new(),
            password: "p".to_owned(),
        };
        assert_eq!(of(BASIC, &[("password", b"p")]), Ok(expected));
    }

    #[test]
    fn an_error_names_the_key_and_what_to_write() {
        let cases: &[(&str, Data<'_>, &str)] = &[
            ("Opaque", &[], "token"),
            ("Opaque", &[("token", b"")], "token"),
            ("Opaque", &[("token", b"\n")], "token"),
            ("Opaque", &[("token", b"hidden\nhidden")], "token"),
            ("Opaque", &[("token", b"Bearer hidden")], "token"),
            ("Opaque", &[("token", "hidd\u{e9}n".as_bytes())], "token"),
            ("Opaque", &[("token", b"hidden\xff")], "token"),
            (BASIC, &[("username", b"hidden")], "password"),
            (BASIC, &[("password", b"")], "password"),
            (BASIC, &[("password", b"hidden\n")], "password"),
            (BASIC, &[("password", b"hidden\xff")], "password"),
            (
                BASIC,
                &[("username", b"hid:den"), ("password", b"hidden")],
                "username",
            ),
            (
                BASIC,
                &[("username", b"hidden\r"), ("password", b"hidden")],
                "username",
            ),
            (TLS, &[("tls.key", b"hidden")], "tls.crt"),
            (TLS, &[("tls.crt", b"hidden")], "tls.key"),
        ];
        for (kind, data, key) in cases {
            let error = of(kind, data).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(error.to_string().contains(&format!("key {key}")), "{shown}");
            assert!(error.to_string().contains(": write "), "{shown}");
            assert!(!shown.contains("hid"), "{shown}");
        }
        assert!(Credentials::of(&Secret::default()).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        for (credentials, expected) in [
            (Credentials::None, "None"),
            (Credentials::Bearer("hidden".to_owned()), "Bearer(..)"),
            (
                Credentials::Basic {
                    user: "hidden".to_owned(),
                    password: "hidden".to_owned(),
                },
                "Basic { .. }",
            ),
            (
                Credentials::Certificate {
                    certificate_pem: b"hidden".to_vec(),
                    key_pem: b"hidden".to_vec(),
                },
                "Certificate { .. }",
            ),
        ] {
            assert_eq!(format!("{credentials:?}"), expected);
            assert!(!format!("{credentials:#?}").contains("hidden"));
        }
    }

    proptest! {
        /// Whatever is in a Secret, what comes out can be a header's value.
        #[test]
        fn a_token_is_a_legal_header_value(token: Vec<u8>) {
            if let Ok(Credentials::Bearer(token)) = of("Opaque", &[("token", &token)]) {
                let value = format!("Bearer {token}");
                prop_assert!(!token.is_empty());
                prop_assert!(reqwest::header::HeaderValue::from_str(&value).is_ok());
            }
        }
    }
}
