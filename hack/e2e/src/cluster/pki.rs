//! Certificates and kubeconfigs of a cluster, made anew for each.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

use crate::cluster::layout::{
    CONTROL_PLANE_V4, CONTROL_PLANE_V6, FIRST_SERVICE_V4, FIRST_SERVICE_V6,
};
use crate::lab::state::{State, write_json, write_private};

/// Who a client certificate says its holder is: user name and group.
const CLIENTS: [(&str, &str, Option<&str>); 4] = [
    ("admin", "highwire-admin", Some("system:masters")),
    (
        "kube-controller-manager",
        "system:kube-controller-manager",
        None,
    ),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kube-proxy", "system:kube-proxy", None),
];

/// Writes the CA, the API server's certificate, the client certificates, one for each
/// node's kubelet among them, and the key that signs service-account tokens into `pki/`.
pub fn create(state: &State, nodes: &[String]) -> Result<()> {
    let dir = state.path("pki");
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name
        .push(DnType::CommonName, "highwire-test-ca");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    write_private(
        &dir.join("ca.crt"),
        ca.self_signed(&ca_key)?.pem().as_bytes(),
    )?;
    let issuer = Issuer::new(ca, ca_key);

    let mut server = CertificateParams::new(
        [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ]
        .map(String::from),
    )?;
    let addresses: [IpAddr; 5] = [
        IpAddr::from([127, 0, 0, 1]),
        CONTROL_PLANE_V4.into(),
        CONTROL_PLANE_V6.into(),
        FIRST_SERVICE_V4.into(),
        FIRST_SERVICE_V6.into(),
    ];
    server
        .subject_alt_names
        .extend(addresses.map(SanType::IpAddress));
    server
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign(&dir, "apiserver", server, &issuer)?;

    for (file, user, group) in CLIENTS {
        sign_client(&dir, file, user, group, &issuer)?;
    }
    for node in nodes {
        let user = format!("system:node:{node}");
        sign_client(&dir, node, &user, Some("system:nodes"), &issuer)?;
    }

    token_key(state)
}

/// Writes a key that signs service-account tokens. The API server reads it when it starts,
/// and takes none that another one has signed.
pub fn token_key(state: &State) -> Result<()> {
    let (dir, tokens) = (state.path("pki"), KeyPair::generate()?);
    write_private(&dir.join("tokens.key"), tokens.serialize_pem().as_bytes())?;
    write_private(&dir.join("tokens.pub"), tokens.public_key_pem().as_bytes())
}

fn sign_client(
    dir: &Path,
    file: &str,
    user: &str,
    group: Option<&str>,
    by: &Issuer<'_, KeyPair>,
) -> Result<()> {
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        client
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(dir, file, client, by)
}

fn sign(dir: &Path, file: &str, of: CertificateParams, by: &Issuer<'_, KeyPair>) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = of.signed_by(&key, by)?;
    write_private(
        &dir.join(format!("{file}.crt")),
        certificate.pem().as_bytes(),
    )?;
    write_private(
        &dir.join(format!("{file}.key")),
        key.serialize_pem().as_bytes(),
    )
}

/// Writes a kubeconfig for the holder of the client certificate `client`.
pub fn certificate_kubeconfig(state: &State, to: &Path, server: &str, client: &str) -> Result<()> {
    let user = json!({
        "client-certificate": state.path(format!("pki/{client}.crt")),
        "client-key": state.path(format!("pki/{client}.key")),
    });
    kubeconfig(state, to, server, &user)
}

/// Writes a kubeconfig for the holder of the service-account token in a file.
pub fn token_kubeconfig(state: &State, to: &Path, server: &str, token: &Path) -> Result<()> {
    kubeconfig(state, to, server, &json!({ "tokenFile": token }))
}

/// JSON is YAML, so this is a kubeconfig like any other.
fn kubeconfig(state: &State, to: &Path, server: &str, user: &Value) -> Result<()> {
    let context = format!("highwire-{}", state.name());
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": context, "cluster": {
            "server": server,
            "certificate-authority": state.path("pki/ca.crt"),
        }}],
        "users": [{ "name": context, "user": user }],
        "contexts": [{ "name": context, "context": { "cluster": context, "user": context } }],
        "current-context": context,
    });
    write_json(to, &content)
}
