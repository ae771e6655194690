//! What goes wrong with TLS, and who sees the client certificate.

use rcgen::{BasicConstraints, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{authority::server, *};

#[tokio::test]
async fn a_certificate_is_shown_to_the_own_place_only() {
    let authority = Authority::new("ours");
    let start = async || {
        let tls = authority.server(&named("127.0.0.1"));
        Lb::start_with(Answer::Bytes(ok("")), Some(tls)).await
    };
    let (lb, other) = (start().await, start().await);
    let (certificate, key) = authority.sign(&named("controller"));
    let settings = HttpUpdater {
        ca_bundle: Some(format!(
            "\n{}# and\n{}",
            Authority::new("theirs").pem,
            authority.pem
        )),
        ..settings(&lb.https())
    };
    let credentials = Credentials::Certificate {
        certificate_pem: certificate.clone().into_bytes(),
        key_pem: key.into_bytes(),
    };
    let updater = Updater::new(&settings, credentials).unwrap();
    for url in [lb.https(), other.https()] {
        assert_eq!(send(&updater, &url).await, Ok(()));
    }
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    assert_eq!(lb.seen()[0].certificate.as_deref(), Some(&*certificate));
    assert_eq!(other.seen()[0].certificate, None);
}

#[tokio::test]
async fn an_error_of_tls_says_what_is_wrong() {
    let authority = Authority::new("ours");
    let ours = Some(authority.pem.clone());
    let mut expired = named("127.0.0.1");
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    expired.not_before = rcgen::date_time_ymd(2000, 1, 1);
    let mut early = named("127.0.0.1");
    early.not_before = rcgen::date_time_ymd(4000, 1, 1);
    for (params, bundle, expected) in [
        (
            named("127.0.0.1"),
            None,
            "is of an unknown issuer; write the issuer's certificate",
        ),
        (
            named("127.0.0.1"),
            Some(Authority::new("theirs").pem),
            "is of an unknown issuer",
        ),
        (
            named("127.0.0.1"),
            Some(Authority::new("ours").pem),
            "is signed with another key",
        ),
        (
            named("other.example"),
            ours.clone(),
            "is not for this name or address",
        ),
        (expired, ours.clone(), "has expired"),
        (early, ours, "is not valid yet"),
    ] {
        let tls = authority.server(&params);
        let lb = Lb::start_with(Answer::Bytes(ok("")), Some(tls)).await;
        let settings = HttpUpdater {
            ca_bundle: bundle,
            ..settings(&lb.https())
        };
        let text = post(&settings, token()).await.unwrap_err().to_string();
        let start = format!(
            "no TLS connection to the updater at https://{}: ",
            lb.address
        );
        assert!(
            text.starts_with(&start) && text.contains(expected),
            "{text}"
        );
        assert_eq!(lb.seen().len(), 0);
    }
}

#[tokio::test]
async fn a_server_may_be_its_own_authority_unless_it_says_so() {
    for (is_ca, expected) in [
        (IsCa::NoCa, None),
        (
            IsCa::Ca(BasicConstraints::Unconstrained),
            Some("make one with CA:FALSE"),
        ),
    ] {
        let mut params = named("127.0.0.1");
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let tls = server(&(pem.clone(), key.serialize_pem()), None, true);
        let lb = Lb::start_with(Answer::Bytes(ok("")), Some(tls)).await;
        let settings = HttpUpdater {
            ca_bundle: Some(pem),
            ..settings(&lb.https())
        };
        let text = post(&settings, token())
            .await
            .err()
            .map(|error| error.to_string());
        match expected {
            None => assert_eq!(text, None),
            Some(expected) => assert!(text.clone().unwrap().contains(expected), "{text:?}"),
        }
    }
}

#[tokio::test]
async fn a_missing_client_certificate_is_asked_for() {
    let authority = Authority::new("ours");
    let tls = server(
        &authority.sign(&named("127.0.0.1")),
        Some(&authority),
        false,
    );
    let lb = Lb::start_with(Answer::Bytes(ok("")), Some(tls)).await;
    let settings = HttpUpdater {
        ca_bundle: Some(authority.pem),
        ..settings(&lb.https())
    };
    let text = post(&settings, token()).await.unwrap_err().to_string();
    assert!(text.contains("it wants a client certificate"), "{text}");
}

#[tokio::test]
async fn a_server_without_tls_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let _ = stream.read_u8().await;
    });
    let text = post(&settings(&url), token())
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("what answers there is not TLS"), "{text}");
}
