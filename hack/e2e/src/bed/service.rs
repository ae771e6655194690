//! Services: a builder, and a handle to one that was created.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

use crate::cluster::handle::Cluster;

/// A Service to be; see [`crate::Scope::service`].
pub struct ServiceBuilder {
    cluster: Cluster,
    namespace: String,
    name: String,
    kind: &'static str,
    ports: Vec<Value>,
    annotations: Map<String, Value>,
    selector: Map<String, Value>,
    spec: Vec<(&'static str, Value)>,
}

/// A Service that was created: the object as it was then, and requests about it.
#[derive(Clone)]
pub struct Svc {
    api: Api<Service>,
    /// The object as the API server answered it.
    pub object: Service,
}

impl ServiceBuilder {
    /// A ClusterIP Service of that name that selects `app=<name>` and has no ports.
    pub fn new(cluster: &Cluster, namespace: &str, name: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kind: "ClusterIP",
            ports: Vec::new(),
            annotations: Map::new(),
            selector: [("app".to_owned(), json!(name))].into_iter().collect(),
            spec: Vec::new(),
        }
    }

    /// Type LoadBalancer.
    pub fn load_balancer(mut self) -> Self {
        self.kind = "LoadBalancer";
        self
    }

    /// Type NodePort.
    pub fn node_port(mut self) -> Self {
        self.kind = "NodePort";
        self
    }

    /// A TCP port and the Pods' port behind it.
    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target)
    }

    /// A UDP port and the Pods' port behind it.
    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port("UDP", port, target)
    }

    /// An SCTP port and the Pods' port behind it.
    pub fn sctp(self, port: u16, target: u16) -> Self {
        self.port("SCTP", port, target)
    }

    /// Selects Pods by this label instead of `app=<name>`.
    pub fn select(mut self, key: &str, value: &str) -> Self {
        self.selector = [(key.to_owned(), json!(value))].into_iter().collect();
        self
    }

    /// Sets an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), json!(value));
        self
    }

    /// Sets `spec.loadBalancerClass`.
    pub fn class(self, class: &str) -> Self {
        self.spec("loadBalancerClass", json!(class))
    }

    /// Asks for both families.
    pub fn dual_stack(self) -> Self {
        self.spec("ipFamilyPolicy", json!("RequireDualStack"))
    }

    /// Sets `externalTrafficPolicy: Local`.
    pub fn external_local(self) -> Self {
        self.spec("externalTrafficPolicy", json!("Local"))
    }

    /// Sets any other field of the spec.
    pub fn spec(mut self, field: &'static str, value: Value) -> Self {
        self.spec.push((field, value));
        self
    }

    /// Creates it.
    pub async fn create(self) -> Result<Svc> {
        let mut object = json!({
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "annotations": self.annotations,
            },
            "spec": { "type": self.kind, "selector": self.selector, "ports": self.ports },
        });
        for (field, value) in self.spec {
            object["spec"][field] = value;
        }
        let object: Service = serde_json::from_value(object)?;
        let api: Api<Service> = Api::namespaced(self.cluster.client(), &self.namespace);
        let object = match api.create(&PostParams::default(), &object).await {
            // The client repeats a request that a busy API server has not answered.
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(&self.name).await,
            created => created,
        };
        let object =
            object.with_context(|| format!("create Service {}/{}", self.namespace, self.name))?;
        Ok(Svc { api, object })
    }

    fn port(mut self, protocol: &str, port: u16, target: u16) -> Self {
        self.ports.push(json!({
            "name": format!("{}-{port}", protocol.to_lowercase()),
            "protocol": protocol,
            "port": port,
            "targetPort": target,
        }));
        self
    }
}

impl Svc {
    /// Its name.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its primary ClusterIP.
    pub fn cluster_ip(&self) -> Result<std::net::IpAddr> {
        let spec = self.object.spec.as_ref();
        let address = spec
            .and_then(|spec| spec.cluster_ip.as_deref())
            .context("no ClusterIP")?;
        address
            .parse()
            .with_context(|| format!("ClusterIP {address}"))
    }

    /// All its ClusterIPs.
    pub fn cluster_ips(&self) -> Vec<std::net::IpAddr> {
        let spec = self.object.spec.as_ref();
        let addresses = spec.and_then(|spec| spec.cluster_ips.as_ref());
        addresses
            .into_iter()
            .flatten()
            .filter_map(|address| address.parse().ok())
            .collect()
    }

    /// The NodePort of a port (of the first protocol that has it).
    pub fn node_port(&self, port: u16) -> Result<u16> {
        let wanted = |candidate: &&ServicePort| candidate.port == i32::from(port);
        let ports = self
            .object
            .spec
            .as_ref()
            .and_then(|spec| spec.ports.as_ref());
        let found = ports
            .into_iter()
            .flatten()
            .find(wanted)
            .and_then(|port| port.node_port);
        let found = found.with_context(|| format!("{} has no NodePort for {port}", self.name()))?;
        Ok(u16::try_from(found)?)
    }

    /// Its healthCheckNodePort, which Services with `externalTrafficPolicy: Local` have.
    pub fn health_check_node_port(&self) -> Result<u16> {
        let spec = self.object.spec.as_ref();
        let port = spec
            .and_then(|spec| spec.health_check_node_port)
            .with_context(|| format!("{} has no healthCheckNodePort", self.name()))?;
        Ok(u16::try_from(port)?)
    }

    /// The object as it is now.
    pub async fn get(&self) -> Result<Service> {
        self.api
            .get(self.name())
            .await
            .with_context(|| format!("get Service {}", self.name()))
    }

    /// `status.loadBalancer.ingress` as it is now.
    pub async fn ingress(&self) -> Result<Vec<LoadBalancerIngress>> {
        let status = self
            .get()
            .await?
            .status
            .and_then(|status| status.load_balancer);
        Ok(status
            .and_then(|balancer| balancer.ingress)
            .unwrap_or_default())
    }

    /// Its ingress addresses as they are now, in their order.
    pub async fn ingress_ips(&self) -> Result<Vec<String>> {
        Ok(self
            .ingress()
            .await?
            .into_iter()
            .filter_map(|ingress| ingress.ip)
            .collect())
    }

    /// Merges a patch into the object, such as `{"spec": {"type": "ClusterIP"}}`.
    pub async fn patch(&self, patch: Value) -> Result<Service> {
        self.api
            .patch(self.name(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("patch Service {}", self.name()))
    }

    /// Changes what nobody reads, so that whoever watches it works on it once more.
    pub async fn touch(&self) -> Result<()> {
        const TOUCHED: &str = "highwire-e2e/touched";
        let now = self.get().await?;
        let touched = now.annotations().get(TOUCHED).map(String::as_str);
        let other = if touched == Some("once") {
            "again"
        } else {
            "once"
        };
        let annotations = json!({ TOUCHED: other });
        let patch = json!({ "metadata": { "annotations": annotations } });
        self.patch(patch).await.map(drop)
    }

    /// Its EndpointSlices as they are now.
    pub async fn slices(&self) -> Result<Vec<EndpointSlice>> {
        let namespace = self.object.namespace().unwrap_or_default();
        let slices: Api<EndpointSlice> =
            Api::namespaced(self.api.clone().into_client(), &namespace);
        let own = format!("kubernetes.io/service-name={}", self.name());
        let listed = slices.list(&ListParams::default().labels(&own)).await;
        let listed = listed.with_context(|| format!("list EndpointSlices of {}", self.name()))?;
        Ok(listed.items)
    }

    /// Writes `status.loadBalancer.ingress` as another load balancer would, under the
    /// name `manager`.
    pub async fn write_ingress(&self, manager: &str, ingress: Value) -> Result<Service> {
        let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        let params = PatchParams {
            field_manager: Some(manager.to_owned()),
            ..PatchParams::default()
        };
        let written = self
            .api
            .patch_status(self.name(), &params, &Patch::Merge(patch))
            .await;
        written.with_context(|| format!("{manager} writes the status of {}", self.name()))
    }

    /// Deletes it.
    pub async fn delete(&self) -> Result<()> {
        match self.api.delete(self.name(), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome
                .map(drop)
                .with_context(|| format!("delete Service {}", self.name())),
        }
    }
}
