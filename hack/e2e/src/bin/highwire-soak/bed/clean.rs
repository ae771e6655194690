//! Puts a cluster back to what it was before a history.

use anyhow::Result;
use highwire_e2e::Unit;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, ListParams};
use nix::sys::signal::Signal;

use super::{Bed, CONTROLLERS, EXCLUDE, POOL, READY, SERVING, crash};
use crate::api_fault::ApiClient;

impl Bed {
    /// Ends every fault.
    pub(crate) fn heal(&mut self) -> Result<()> {
        self.networks.clear(ApiClient::All);
        for node in 1..=self.cluster.config().nodes {
            self.agent(node)?.unit().signal(Signal::SIGCONT)?;
        }
        for number in CONTROLLERS {
            self.controller(number)?.unit().signal(Signal::SIGCONT)?;
        }
        Ok(())
    }

    /// Puts everything as it was before a history.
    pub(crate) async fn clean(&mut self) -> Result<()> {
        self.heal()?;
        // What fell silent in the last history is not for this one to wait for.
        for client in self.networks.take_silenced() {
            match client {
                ApiClient::Agent(node) => crash(&self.agent(node)?)?,
                ApiClient::Controller(number) => crash(&self.controller(number)?)?,
                ApiClient::All => {}
            }
        }
        let services: Api<Service> = Api::namespaced(self.cluster.client(), self.scope.namespace());
        services
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await?;
        for slot in self.pods.keys().copied().collect::<Vec<_>>() {
            self.delete_pod(slot).await?;
        }
        // Those of an earlier run as well.
        let units = Unit::list(self.cluster.state()).into_iter();
        for listener in units.filter(|unit| unit.name().starts_with("host-")) {
            listener.remove()?;
        }
        self.listeners.clear();
        for node in 1..=self.cluster.config().nodes {
            self.label(node, EXCLUDE, None).await?;
            self.label(node, POOL, None).await?;
            self.name_address(node, false).await?;
            self.second_address(node, false)?;
            if let Some(mode) = self.cluster.config().proxy_modes.on(node) {
                self.proxy_mode(node, mode)?;
            }
            self.enable(node, SERVING.contains(&node)).await?;
        }
        for node in SERVING {
            self.agent(node)?.wait_ready(READY).await?;
        }
        Ok(())
    }
}
