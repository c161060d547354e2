//! The Kubernetes API of one cluster, as the engine sees it: the port [`Api`].
//!
//! Each server is asked at its own address with the kubeconfig's credentials, because servers restart one after the
//! other. What the API says is turned at once into words of the domain; nothing is decided here.

mod act;
mod connect;
mod facts;
mod probe;
mod servers;
mod watch;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use kadence_core::apply::action::CordonWas;
use kadence_core::config::ConditionProbe;
use kadence_core::ident::{ClusterUid, Digest, NodeName, RolloutId};
use kadence_core::inventory::{ApiFacts, ApiNode, LeaseHolder, Mark, Pod};
use kadence_engine::ports::{Api, ApiError, Eviction, Readyz};

pub use crate::connect::ConnectError;
use crate::servers::Servers;

/// The API of the cluster that a kubeconfig names.
pub struct KubeApi {
    servers: Arc<Servers>,
    ca: Option<Digest>,
}

impl KubeApi {
    /// Reads the kubeconfig and prepares to call; nothing is sent yet. Without `context` its current one is taken.
    ///
    /// # Errors
    /// If the file is missing, malformed or incomplete, or its client certificate has expired.
    pub fn connect(kubeconfig: &Path, context: Option<&str>) -> Result<Self, ConnectError> {
        let access = connect::read(kubeconfig, context, Timestamp::now())?;
        Ok(Self { servers: Arc::new(Servers::new(access.config)), ca: access.ca })
    }
}

#[async_trait]
impl Api for KubeApi {
    fn learn_servers(&self, addresses: &[String]) {
        self.servers.learn(addresses);
    }

    async fn facts(&self) -> Result<ApiFacts, ApiError> {
        facts::gather(&self.servers, self.ca).await
    }

    async fn uid(&self) -> Result<ClusterUid, ApiError> {
        facts::uid(&self.servers).await
    }

    async fn revision(&self) -> Result<u64, ApiError> {
        facts::revision(&self.servers).await
    }

    async fn nodes(&self) -> Result<Vec<ApiNode>, ApiError> {
        facts::nodes(&self.servers).await
    }

    fn watch_node(&self, node: &NodeName) -> BoxStream<'static, ApiNode> {
        watch::node(self.servers.clone(), node.clone())
    }

    async fn ready(&self, address: &str) -> Result<Readyz, ApiError> {
        probe::ready(&self.servers.at(address)).await
    }

    async fn cordon(&self, node: &NodeName, mark: &Mark) -> Result<CordonWas, ApiError> {
        act::cordon(&self.servers, node, mark).await
    }

    async fn uncordon(&self, node: &NodeName, rollout: &RolloutId) -> Result<bool, ApiError> {
        act::uncordon(&self.servers, node, rollout).await
    }

    async fn pods_on(&self, node: &NodeName) -> Result<Vec<Pod>, ApiError> {
        facts::pods_on(&self.servers, node).await
    }

    async fn evict(&self, pod: &Pod, dry_run: bool) -> Result<Eviction, ApiError> {
        act::evict(&self.servers, pod, dry_run).await
    }

    async fn probe_read(&self, address: &str) -> Result<(), ApiError> {
        probe::read(&self.servers.at(address)).await
    }

    async fn probe_write(&self, address: &str) -> Result<(), ApiError> {
        probe::write(&self.servers.at(address)).await
    }

    async fn announce(&self, holder: Option<&LeaseHolder>) -> Result<(), ApiError> {
        act::announce(&self.servers, holder).await
    }

    async fn condition(&self, probe: &ConditionProbe) -> Result<bool, ApiError> {
        act::condition(&self.servers, probe).await
    }

    async fn restart_controllers(&self) -> Result<Vec<String>, ApiError> {
        act::restart_controllers(&self.servers).await
    }
}
