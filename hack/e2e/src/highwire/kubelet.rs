//! What a kubelet does when a Pod of ours is deleted: SIGTERM, and the Pod's object goes
//! when the process has ended.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::cluster::handle::Cluster;
use crate::highwire::program::Program;
use crate::lab::unit::Unit;
use crate::lab::wait::POLL;

/// The kubelet of some programs, until it is dropped.
pub struct Kubelet {
    task: JoinHandle<()>,
    asked: Asked,
}

/// The UIDs of the Pods that were sent SIGTERM; a second one would end the program at once.
type Asked = Arc<Mutex<BTreeSet<String>>>;

impl Kubelet {
    /// That of these programs, in whatever namespace they are.
    pub fn of(cluster: &Cluster, programs: Vec<Program>) -> Self {
        let client = cluster.client();
        let asked = Asked::default();
        let all = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                for program in &programs {
                    // While the API server is away, a kubelet learns nothing.
                    stop_if_deleted(&client, program, &all).await.ok();
                }
                sleep(POLL).await;
            }
        });
        Self { task, asked }
    }

    /// Waits until so many programs were asked to stop.
    pub async fn asked(&self, programs: usize) {
        while self
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
            < programs
        {
            sleep(POLL).await;
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Stops the program if its Pod is being deleted, and removes the Pod once it has ended.
async fn stop_if_deleted(client: &Client, program: &Program, asked: &Asked) -> Result<()> {
    let (workload, unit): (_, &Unit) = (program.workload(), program.unit());
    let pods: Api<Pod> = Api::namespaced(client.clone(), &workload.install.namespace);
    let name = workload.pod_name();
    let own = ListParams::default().fields(&format!("metadata.name={name}"));
    for pod in pods.list(&own).await? {
        if pod.metadata.deletion_timestamp.is_none() {
            continue;
        }
        if !unit.is_running() {
            pods.delete(&name, &DeleteParams::default().grace_period(0))
                .await?;
            continue;
        }
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.insert(pod.uid().unwrap_or_default()) {
            unit.signal(nix::sys::signal::Signal::SIGTERM)?;
        }
    }
    Ok(())
}
