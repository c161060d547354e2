//! Gathers the facts of a cluster, over the API and SSH, in parallel.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use kadence_core::apply::action::{EtcdGlance, Glance, NodeGlance};
use kadence_core::fact::Fact;
use kadence_core::ident::NodeName;
use kadence_core::inventory::assemble::assemble;
use kadence_core::inventory::{ApiNode, Inventory, Role};

use crate::Engine;
use crate::ports::{ApiError, HostAddress, Readyz};

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

    /// Tells the ports where the nodes are; returns every node that SSH should reach.
    pub(crate) fn learn(&self, nodes: &[ApiNode]) -> BTreeSet<NodeName> {
        let mut addresses = BTreeMap::new();
        for node in nodes {
            let role = if node.control_plane || node.etcd_label { Role::Server } else { Role::Agent };
            let address = node.internal_ip.clone().unwrap_or_default();
            addresses.insert(node.name.clone(), HostAddress { role, address });
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
            known.extend(addresses.iter().map(|(name, a)| (name.clone(), a.address.clone())));
        }
        self.hosts.learn_nodes(&addresses);
        addresses.into_keys().collect()
    }

    /// The second look before a step: what can have changed since the plan was made.
    pub(crate) async fn glance(&self) -> Result<Glance, ApiError> {
        let (nodes, uid_now) = tokio::join!(self.api.nodes(), self.api.uid());
        let nodes = nodes?;
        let names = self.learn(&nodes);
        let nodes = &nodes;
        let looks = join_all(names.iter().map(|name| async move {
            let node = nodes.iter().find(|n| n.name == *name);
            let serves = node.filter(|n| n.control_plane).and_then(|n| n.internal_ip.clone());
            let ready = async {
                match serves {
                    Some(address) => Some(Fact::from(self.api.ready(&address).await.map(|r| r == Readyz::Ready))),
                    None => None,
                }
            };
            let (host, apiserver) = tokio::join!(self.hosts.glance(name), ready);
            (name, node, host, apiserver)
        }))
        .await;

        let mut members = Fact::Known(BTreeSet::new());
        let mut glances = BTreeMap::new();
        for (name, node, host, apiserver) in looks {
            let role =
                node.map_or(Role::Server, |n| if n.control_plane || n.etcd_label { Role::Server } else { Role::Agent });
            let why = host.as_ref().err().map(ToString::to_string).unwrap_or_default();
            let host = host.ok();
            if let Some(list) = host.as_ref().and_then(|h| h.etcd_members.as_ref()) {
                let ids = list.as_ref().map(|l| l.iter().map(|m| m.id.clone()).collect::<BTreeSet<_>>());
                // Any member's list is the membership: they agree, or etcd has no quorum and health says so.
                if members.known().is_none_or(BTreeSet::is_empty) {
                    members = ids;
                }
            }
            let is_member = node.is_some_and(|n| n.etcd_label) || host.as_ref().is_some_and(|h| h.etcd.is_some());
            let etcd = is_member.then(|| match &host {
                None => Fact::unknown(why.clone()),
                Some(h) => match &h.etcd {
                    None => Fact::unknown("the host says that no etcd runs here, its Node says that one does"),
                    Some(local) => local.as_ref().map(|e| EtcdGlance {
                        healthy: e.healthy && e.has_leader,
                        learner: e.learner,
                        leader: e.leader,
                    }),
                },
            });
            let unknown = || Fact::unknown(why.clone());
            let glance = NodeGlance {
                role,
                uid: node.map(|n| n.uid.clone()),
                version: node.map_or_else(|| Fact::unknown("it has no Node"), |n| n.version.clone()),
                ready: node.map_or_else(|| Fact::unknown("it has no Node"), |n| n.ready.clone()),
                cordon: node.map(|n| n.object.cordon.clone()).unwrap_or_default(),
                machine_id: host
                    .as_ref()
                    .map_or_else(|| Fact::unknown(why.clone()), |h| Fact::Known(h.machine_id.clone())),
                arguments: host.as_ref().map_or_else(unknown, |h| h.arguments.clone()),
                binary: host.as_ref().map_or_else(|| Fact::unknown(why.clone()), |h| h.binary.clone()),
                etcd,
                apiserver,
            };
            glances.insert(name.clone(), glance);
        }
        let uid = uid_now.map_or_else(|error| Fact::unknown(error.to_string()), Fact::Known);
        Ok(Glance { at: self.clock.now(), uid, nodes: glances, etcd_members: members })
    }
}
