//! Kubeconfigs of ServiceAccounts, for programs that run as those.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::cluster::controlplane::api_url;
use crate::cluster::handle::Cluster;
use crate::cluster::pki::token_kubeconfig;

/// A kubeconfig for the process of that name, with a token of a ServiceAccount.
pub(crate) fn kubeconfig(
    cluster: &Cluster,
    unit: &str,
    namespace: &str,
    account: &str,
) -> Result<PathBuf> {
    let token = cluster.kubectl(&["create", "token", account, "-n", namespace])?;
    let state = cluster.state();
    let file = state.path(format!("pki/{unit}.token"));
    fs::write(&file, token.trim())?;
    let path = state.path(format!("pki/{unit}.kubeconfig"));
    let server = api_url(cluster.config().ip_family);
    token_kubeconfig(state, &path, &server, &file)?;
    Ok(path)
}
