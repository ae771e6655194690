//! A program replaced as an update of its DaemonSet or Deployment replaces it.

use std::time::Duration;

use anyhow::Result;
use highwire_e2e::{Cluster, Kubelet, Program, highwire, wait_for};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};

/// How long an old process may take to end.
const ENDED: Duration = Duration::from_secs(60);

/// Deletes the Pod of the program, whose kubelet sends SIGTERM; starts a new one in a Pod of its
/// own once the old one has ended, and waits until that is ready. Its DaemonSet or Deployment, its
/// node and its label stay.
pub(crate) async fn replace(cluster: &Cluster, program: &Program) -> Result<()> {
    let kubelet = Kubelet::of(cluster, vec![program.clone()]);
    let workload = program.workload();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), &workload.install.namespace);
    let name = workload.pod_name();
    pods.delete(&name, &DeleteParams::default()).await?;
    wait_for(&format!("{name} to end"), ENDED, || async {
        match pods.get_opt(&name).await {
            Ok(None) => Ok(()),
            other => Err(other.map(|_| "still there")),
        }
    })
    .await;
    drop(kubelet);
    program.start(&[]).await?;
    program.wait_ready(highwire::READY).await
}
