//! Gathers the facts of a cluster, over the API and SSH, in parallel.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use kadence_core::apply::action::{EtcdGlance, Glance, NodeGlance};
use kadence_core::fact::Fact;
use kadence_core::ident::NodeName;
use kadence_core::inventory::assemble::assemble;
use kadence_core::inventory::{ApiNode, Inventory, Role};

use crate::Engine;
use crate::ports::{ApiError, HostAddress, HostGlance, Readyz};

impl Engine {
    /// Everything that can be known of the cluster now.
    ///
    /// # Errors
    /// Only if the API gave nothing at all; single facts that are missing are unknown in the inventory.
    pub async fn inspect(&self) -> Result<Inventory, ApiError> {
        let nodes = self.api.nodes().await?;
        let names = self.learn(&nodes);
        let hosts = join_all(names.iter().map(|name| async {
            let facts = Fact::from(self.hosts.facts(name).await);
            (name.clone(), facts)
        }));
        let (api, hosts) = tokio::join!(self.api.facts(), hosts);
        let hosts = hosts.into_iter().collect::<BTreeMap<_, _>>();
        Ok(assemble(&self.cluster, api?, hosts, &self.config.nodes, self.clock.now()))
    }

    /// What the API alone tells of the cluster now; the hosts are not asked.
    pub(crate) async fn inspect_api(&self) -> Result<Inventory, ApiError> {
        let facts = self.api.facts().await?;
        Ok(assemble(&self.cluster, facts, BTreeMap::new(), &self.config.nodes, self.clock.now()))
    }

    /// Tells the ports where the nodes are; returns every node that SSH should reach.
    pub(crate) fn learn(&self, nodes: &[ApiNode]) -> BTreeSet<NodeName> {
        let mut addresses = BTreeMap::new();
        for node in nodes {
            let address = node.internal_ip.clone().unwrap_or_default();
            addresses.insert(node.name.clone(), HostAddress { role: node.role(), address });
        }
        for (name, access) in &self.config.nodes {
            let known = addresses.get(name);
            let role = known.map(|a| a.role).or(access.role).unwrap_or(Role::Agent);
            let address = access.address.clone().or_else(|| known.map(|a| a.address.clone()));
            if let Some(address) = address {
                addresses.insert(name.clone(), HostAddress { role, address });
            }
        }
        let servers: Vec<String> =
            nodes.iter().filter(|n| n.control_plane).filter_map(|n| n.internal_ip.clone()).collect();
        self.api.learn_servers(&servers);
        if let Ok(mut known) = self.addresses.lock() {
            let told = addresses.iter().filter(|(_, a)| !a.address.is_empty());
            known.extend(told.map(|(name, a)| (name.clone(), a.address.clone())));
        }
        self.hosts.learn_nodes(&addresses);
        addresses.into_keys().collect()
    }

    /// The second look before a step: what can have changed since the plan was made.
    pub(crate) async fn glance(&self) -> Result<Glance, ApiError> {
        let at = self.clock.now();
        let (nodes, uid_now) = tokio::join!(self.api.nodes(), self.api.uid());
        let nodes = nodes?;
        let names = self.learn(&nodes);
        let nodes = &nodes;
        let looks = join_all(names.iter().map(|name| async move {
            let node = nodes.iter().find(|n| n.name == *name);
            let (host, apiserver) = tokio::join!(self.hosts.glance(name), self.serves(name, node));
            (name, node, host, apiserver)
        }))
        .await;

        let mut members = Fact::Known(BTreeSet::new());
        let mut glances = BTreeMap::new();
        for (name, node, host, apiserver) in looks {
            if let Some(list) = host.as_ref().ok().and_then(|h| h.etcd_members.as_ref()) {
                let ids = list.as_ref().map(|l| l.iter().map(|m| m.id.clone()).collect::<BTreeSet<_>>());
                // Any member's list is the membership: they agree, or etcd has no quorum and health says so.
                if members.known().is_none_or(BTreeSet::is_empty) {
                    members = ids;
                }
            }
            glances.insert(name.clone(), node_glance(node, host.map_err(|e| e.to_string()), apiserver));
        }
        let uid = uid_now.map_or_else(|error| Fact::unknown(error.to_string()), Fact::Known);
        Ok(Glance { at, uid, nodes: glances, etcd_members: members })
    }

    /// Whether a server's own API server is ready; `None` where none runs. A server without a Node runs one: it has
    /// been started with `--disable-agent`.
    async fn serves(&self, name: &NodeName, node: Option<&ApiNode>) -> Option<Fact<bool>> {
        if node.is_some_and(|n| !n.control_plane) {
            return None;
        }
        let configured = self.config.nodes.get(name).and_then(|access| access.address.clone());
        let address = node.and_then(|n| n.internal_ip.clone()).or(configured);
        let Some(address) = address else {
            return Some(Fact::unknown(format!(
                "no address of {name} is known: its Node has no InternalIP, and kadence.yaml no nodes.{name}.address"
            )));
        };
        Some(Fact::from(self.api.ready(&address).await.map(|r| r == Readyz::Ready)))
    }
}

/// One node, of what its Node, its host and its API server say.
fn node_glance(node: Option<&ApiNode>, host: Result<HostGlance, String>, apiserver: Option<Fact<bool>>) -> NodeGlance {
    let host: Fact<HostGlance> = host.into();
    let of_host = host.known();
    let is_member = node.is_some_and(|n| n.etcd_label) || of_host.is_some_and(|h| h.etcd.is_some());
    let etcd = is_member.then(|| {
        host.as_ref().and_then(|h| match &h.etcd {
            None => Fact::unknown("the host says that no etcd runs here, its Node says that one does"),
            Some(local) => local.as_ref().map(|e| EtcdGlance {
                healthy: e.healthy && e.has_leader,
                learner: e.learner,
                leader: e.leader,
            }),
        })
    });
    NodeGlance {
        role: node.map_or(Role::Server, ApiNode::role),
        uid: node.map(|n| n.uid.clone()),
        // Without a Node there is no kubelet whose word counts: the host says what runs.
        version: match node {
            Some(node) => node.version.clone(),
            None => host.as_ref().and_then(|h| h.running.clone()),
        },
        ready: match node {
            Some(node) => node.ready.clone(),
            None => host.as_ref().and_then(|h| h.unit.as_ref().map(|u| u.active == "active")),
        },
        cordon: node.map(|n| n.object.cordon.clone()).unwrap_or_default(),
        machine_id: host.as_ref().and_then(|h| match h.machine_id.as_str() {
            "" => Fact::unknown("the host has no /etc/machine-id"),
            id => Fact::Known(id.to_owned()),
        }),
        host_boot: of_host.map(|h| h.boot_id.clone()),
        node_boot: node.map(|n| n.object.boot_id.clone()),
        arguments: host.as_ref().and_then(|h| h.arguments.clone()),
        binary: host.as_ref().and_then(|h| h.binary.clone()),
        etcd,
        apiserver,
    }
}

#[cfg(test)]
mod tests {
    use kadence_core::ident::Digest;
    use kadence_core::inventory::{Arch, NodeObject, Unit};
    use kadence_core::version::Version;

    use super::*;

    fn host(active: &str) -> HostGlance {
        HostGlance {
            machine_id: "m".to_owned(),
            boot_id: "b".to_owned(),
            arguments: Fact::Known(Digest::of(b"arguments")),
            binary: Fact::Known(Digest::of(b"binary")),
            etcd: None,
            etcd_members: None,
            unit: Fact::Known(Unit {
                name: "k3s".to_owned(),
                enabled: true,
                active: active.to_owned(),
                sub: "running".to_owned(),
                restarts: 0,
                main_pid: 7,
                files: Vec::new(),
            }),
            running: Fact::Known(Version::new(1, 36, 3, 1)),
        }
    }

    fn node() -> ApiNode {
        ApiNode {
            name: "s1".into(),
            uid: "u".to_owned(),
            control_plane: true,
            etcd_label: true,
            version: Fact::Known(Version::new(1, 36, 4, 1)),
            ready: Fact::Known(false),
            reported: Fact::unknown("not told"),
            internal_ip: None,
            arch: Fact::Known(Arch::Amd64),
            etcd_member: None,
            object: NodeObject { boot_id: "b0".to_owned(), ..NodeObject::default() },
        }
    }

    #[test]
    fn a_server_without_a_node_is_what_its_host_says() {
        let glance = node_glance(None, Ok(host("active")), Some(Fact::Known(true)));
        assert_eq!((glance.role, glance.uid, glance.node_boot), (Role::Server, None, None));
        assert_eq!(glance.version, Fact::Known(Version::new(1, 36, 3, 1)));
        assert_eq!((glance.ready, glance.apiserver), (Fact::Known(true), Some(Fact::Known(true))));
        assert_eq!(node_glance(None, Ok(host("activating")), None).ready, Fact::Known(false));
        let away = node_glance(None, Err("no route".to_owned()), None);
        assert!(away.version.why().is_some() && away.ready.why() == Some("no route"));
    }

    #[test]
    fn a_node_is_what_its_kubelet_says_and_its_identity_is_of_both() {
        let glance = node_glance(Some(&node()), Ok(host("active")), None);
        assert_eq!((glance.version, glance.ready), (Fact::Known(Version::new(1, 36, 4, 1)), Fact::Known(false)));
        assert_eq!((glance.host_boot.as_deref(), glance.node_boot.as_deref()), (Some("b"), Some("b0")));
        assert!(glance.etcd.is_some_and(|e| e.why().is_some()), "its label says that it is a member");
        let nameless = node_glance(Some(&node()), Ok(HostGlance { machine_id: String::new(), ..host("active") }), None);
        assert!(nameless.machine_id.why().is_some());
    }
}
