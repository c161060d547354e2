//! Joins facts from the API, the hosts and the configuration to one inventory.
//!
//! The servers are the union of the Nodes, the etcd members, the `kubernetes` EndpointSlice and `kadence.yaml`: a
//! server started with `--disable-agent` has no Node, one that is down has no endpoint, and one that was removed by
//! hand may still be an etcd member. A difference that nothing explains is a contradiction, and blocks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::config::NodeAccess;
use crate::fact::Fact;
use crate::ident::{ClusterName, NodeName};
use crate::inventory::{
    ApiFacts, ApiNode, Datastore, EtcdMember, EtcdRole, HostFacts, Inventory, Node, Role, UnknownFact,
};

/// Joins the facts. `hosts` has an entry for every node that was asked over SSH, unknown where that failed.
pub fn assemble(
    cluster: &ClusterName,
    api: ApiFacts,
    hosts: BTreeMap<NodeName, Fact<HostFacts>>,
    configured: &BTreeMap<NodeName, NodeAccess>,
    taken: Timestamp,
) -> Inventory {
    let mut contradictions = Vec::new();
    let members = members(&hosts, &mut contradictions);
    let api_nodes = api.nodes.known().map(Vec::as_slice).unwrap_or_default();
    let datastore = datastore(api_nodes, &hosts, members);

    let mut nodes: Vec<Node> = api_nodes.iter().map(|n| node(n, &hosts, &api, &mut contradictions)).collect();
    // Servers without a Node: they are only known from the configuration and from their host.
    for (name, access) in configured {
        if nodes.iter().any(|n| n.name == *name) {
            continue;
        }
        let Some(Role::Server) = access.role else {
            contradictions.push(format!(
                "{name} is in kadence.yaml and has no Node; if it is a server with --disable-agent, say `role: server`"
            ));
            continue;
        };
        nodes.push(server_without_node(name, access, &hosts, &datastore));
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));

    check_servers(&nodes, &datastore, &api, &mut contradictions);
    check_machines(api_nodes, &mut contradictions);
    let mut inventory = Inventory {
        schema: Inventory::SCHEMA,
        cluster: cluster.clone(),
        uid: api.uid,
        taken,
        datastore,
        nodes,
        workload: api.workload,
        surroundings: api.surroundings,
        contradictions,
        unknown: Vec::new(),
    };
    if let Fact::Unknown(why) = &api.nodes {
        inventory.unknown.push(UnknownFact { of: "cluster".into(), fact: "nodes".into(), why: why.clone() });
    }
    if let Fact::Unknown(why) = api.ca_hash {
        inventory.unknown.push(UnknownFact { of: "cluster".into(), fact: "cluster CA of the kubeconfig".into(), why });
    }
    list_unknown(&mut inventory);
    inventory
}

fn node(
    api_node: &ApiNode,
    hosts: &BTreeMap<NodeName, Fact<HostFacts>>,
    api: &ApiFacts,
    contradictions: &mut Vec<String>,
) -> Node {
    let role = api_node.role();
    let mut host = hosts.get(&api_node.name).cloned().unwrap_or_else(|| Fact::unknown("it was not asked over SSH"));
    // A name proves nothing: the host must be the machine that the Node speaks of, and of this cluster.
    if let Fact::Known(facts) = &host
        && let Some(why) = not_this_node(api_node, facts, api)
    {
        contradictions.push(format!("{}: {why}", api_node.name));
        host = Fact::unknown(why);
    }
    let etcd = match host.known().map(|h| &h.etcd) {
        None => Fact::unknown(host.why().unwrap_or_default()),
        Some(None) => Fact::Known(EtcdRole::None),
        Some(Some(local)) => local.as_ref().map(|l| if l.learner { EtcdRole::Learner } else { EtcdRole::Voter }),
    };
    let etcd = if role == Role::Agent { Fact::Known(EtcdRole::None) } else { etcd };
    let apiserver = match (&api.endpoints, role) {
        (_, Role::Agent) => Fact::Known(false),
        // A server that is down at the moment has no endpoint: its role's label says what it is meant to run.
        (Fact::Known(_), Role::Server) => Fact::Known(api_node.control_plane),
        (Fact::Unknown(why), Role::Server) => Fact::unknown(why.clone()),
    };
    Node {
        name: api_node.name.clone(),
        uid: Some(api_node.uid.clone()),
        role,
        etcd,
        apiserver,
        version: api_node.version.clone(),
        ready: api_node.ready.clone(),
        address: api_node.internal_ip.clone().unwrap_or_default(),
        arch: api_node.arch.clone(),
        object: Some(api_node.object.clone()),
        host,
    }
}

/// Why the host behind SSH is not the node of that name, or cannot be told to be it; `None` if it is.
fn not_this_node(node: &ApiNode, host: &HostFacts, api: &ApiFacts) -> Option<String> {
    if host.machine_id.is_empty() || host.machine_id != node.object.machine_id {
        return Some(format!(
            "SSH reaches another machine than this Node: its machine id is {}, the Node's is {}",
            or_none(&host.machine_id),
            or_none(&node.object.machine_id)
        ));
    }
    // A kubelet that is alive has reported the boot it is in; a Node that is not Ready may speak of the boot before.
    let reported = node.ready.is(&true);
    if reported && (host.boot_id.is_empty() || host.boot_id != node.object.boot_id) {
        return Some(format!(
            "SSH reaches another machine than this Node, or one whose kubelet has not reported since it booted: it is in \
             boot {}, the Node's is {}",
            or_none(&host.boot_id),
            or_none(&node.object.boot_id)
        ));
    }
    // A kubeconfig without a CA of its own has nothing to compare with; that is said among what is unknown.
    let Fact::Known(ours) = &api.ca_hash else { return None };
    match &host.ca_hash {
        Fact::Known(theirs) if theirs == ours => None,
        Fact::Known(_) => {
            Some("the host belongs to another cluster than the kubeconfig: its cluster CA is another one".to_owned())
        }
        Fact::Unknown(why) => Some(format!("whether the host belongs to this cluster cannot be told: {why}")),
    }
}

fn or_none(id: &str) -> &str {
    if id.is_empty() { "(none)" } else { id }
}

/// Machines that were cloned with their id cannot be told apart by it.
fn check_machines(nodes: &[ApiNode], contradictions: &mut Vec<String>) {
    let mut machines: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in nodes.iter().filter(|n| !n.object.machine_id.is_empty()) {
        machines.entry(&node.object.machine_id).or_default().push(node.name.as_str());
    }
    for (id, names) in machines.into_iter().filter(|(_, names)| names.len() > 1) {
        contradictions.push(format!(
            "{} have the same machine id {id}: they were cloned. Give each its own (remove /etc/machine-id, run \
             systemd-machine-id-setup, reboot)",
            names.join(" and ")
        ));
    }
}

fn server_without_node(
    name: &NodeName,
    access: &NodeAccess,
    hosts: &BTreeMap<NodeName, Fact<HostFacts>>,
    datastore: &Fact<Datastore>,
) -> Node {
    let host = hosts.get(name).cloned().unwrap_or_else(|| Fact::unknown("it was not asked over SSH"));
    let etcd = match (host.known(), datastore) {
        (Some(h), _) => h.etcd.as_ref().map_or(Fact::Known(EtcdRole::None), |local| {
            local.as_ref().map(|l| if l.learner { EtcdRole::Learner } else { EtcdRole::Voter })
        }),
        (None, _) => Fact::unknown(host.why().unwrap_or_default()),
    };
    let install = host.as_ref().and_then(|h| h.install.as_ref());
    Node {
        name: name.clone(),
        uid: None,
        role: Role::Server,
        etcd,
        apiserver: Fact::unknown("it has no Node that would say so"),
        version: install.clone().and_then(|i| i.version.clone()),
        ready: install.map(|i| i.unit.active == "active"),
        address: access.address.clone().unwrap_or_default(),
        arch: host.as_ref().and_then(|h| h.arch.clone()),
        object: None,
        host,
    }
}

/// The membership, if every member that was asked lists the same one.
fn members(
    hosts: &BTreeMap<NodeName, Fact<HostFacts>>,
    contradictions: &mut Vec<String>,
) -> Option<Fact<Vec<EtcdMember>>> {
    let lists: Vec<_> =
        hosts.iter().filter_map(|(name, host)| Some((name, host.known()?.etcd_members.as_ref()?))).collect();
    let mut known = lists.iter().filter_map(|(name, list)| Some((*name, list.known()?)));
    let Some((first, list)) = known.next() else {
        return lists.first().map(|(name, list)| Fact::unknown(format!("{name}: {}", list.why().unwrap_or_default())));
    };
    let ordered = |members: &[EtcdMember]| members.iter().cloned().collect::<BTreeSet<_>>();
    for (other, theirs) in known {
        if ordered(theirs) != ordered(list) {
            contradictions.push(format!("{first} and {other} list different etcd members"));
        }
    }
    Some(Fact::Known(list.clone()))
}

/// As K3s chooses it: etcd on disk or an etcd label wins over flags; else an endpoint means external; else one
/// server means SQLite; anything else is unknown.
fn datastore(
    nodes: &[ApiNode],
    hosts: &BTreeMap<NodeName, Fact<HostFacts>>,
    members: Option<Fact<Vec<EtcdMember>>>,
) -> Fact<Datastore> {
    let servers: Vec<_> = nodes.iter().filter(|n| n.role() == Role::Server).collect();
    if let Some(members) = members {
        return Fact::Known(Datastore::EmbeddedEtcd { members });
    }
    if servers.iter().any(|n| n.etcd_label) {
        let members = Fact::unknown("no server could be asked over SSH");
        return Fact::Known(Datastore::EmbeddedEtcd { members });
    }
    let endpoint_in_arguments = hosts
        .values()
        .filter_map(Fact::known)
        .any(|h| h.arguments.known().is_some_and(|a| a.entries.iter().any(|e| e.key == "datastore-endpoint")));
    let endpoint_in_annotation =
        servers.iter().any(|n| n.object.args.iter().any(|a| a.starts_with("--datastore-endpoint")));
    if endpoint_in_arguments || endpoint_in_annotation {
        return Fact::Known(Datastore::External);
    }
    let sqlite = hosts.values().filter_map(Fact::known).any(|h| h.sqlite.is_some());
    match (servers.len(), sqlite) {
        (1, true) => Fact::Known(Datastore::Sqlite),
        (1, false) => Fact::unknown("one server without etcd, and its database could not be looked at over SSH"),
        (0, _) => Fact::unknown("no server is known"),
        (n, _) => Fact::unknown(format!("{n} servers, none with etcd and none with a datastore endpoint")),
    }
}

fn check_servers(nodes: &[Node], datastore: &Fact<Datastore>, api: &ApiFacts, contradictions: &mut Vec<String>) {
    if let Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) = datastore {
        let names: BTreeSet<NodeName> = members.iter().filter_map(EtcdMember::node).collect();
        for member in members {
            let is_server = member.node().is_some_and(|n| nodes.iter().any(|s| s.role == Role::Server && s.name == n));
            if !is_server {
                contradictions.push(format!(
                    "etcd member {} ({}) belongs to no server that is known: name it under `nodes:` with `role: \
                     server` if it has no Node, else remove the member",
                    member.name, member.id
                ));
            }
        }
        for server in nodes.iter().filter(|n| n.role == Role::Server) {
            let runs_etcd = matches!(server.etcd, Fact::Known(EtcdRole::Voter | EtcdRole::Learner));
            if runs_etcd && !names.contains(&server.name) {
                contradictions.push(format!("{} runs etcd and is not in the list of etcd's members", server.name));
            }
        }
    }
    if let Fact::Known(endpoints) = &api.endpoints {
        for endpoint in endpoints {
            let known = nodes.iter().any(|n| n.role == Role::Server && n.address == *endpoint);
            if !known {
                contradictions.push(format!(
                    "an API server serves at {endpoint}, and no server with that address is known: name it under \
                     `nodes:` with `role: server` and its address"
                ));
            }
        }
    }
}

fn list_unknown(inventory: &mut Inventory) {
    let mut unknown = Vec::new();
    let mut note = |of: &str, fact: &str, why: Option<&str>| {
        if let Some(why) = why {
            unknown.push(UnknownFact { of: of.to_owned(), fact: fact.to_owned(), why: why.to_owned() });
        }
    };
    note("cluster", "uid", inventory.uid.why());
    note("cluster", "datastore", inventory.datastore.why());
    if let Fact::Known(Datastore::EmbeddedEtcd { members }) = &inventory.datastore {
        note("cluster", "etcd members", members.why());
    }
    note("cluster", "workloads", inventory.workload.controllers.why());
    note("cluster", "pods", inventory.workload.pods.why());
    note("cluster", "disruption budgets", inventory.workload.budgets.why());
    note("cluster", "services", inventory.workload.services.why());
    let s = &inventory.surroundings;
    note("cluster", "webhooks", s.webhooks.why());
    note("cluster", "API services", s.broken_api_services.why());
    note("cluster", "packaged components", s.packaged.why());
    note("cluster", "Helm releases", s.helm_releases.why());
    note("cluster", "HelmChartConfigs", s.chart_configs.why());
    note("cluster", "storage", s.storage.why());
    note("cluster", "other managers of versions", s.managers.why());
    note("cluster", "newest snapshot", s.newest_snapshot.why());
    note("cluster", "lease", s.lease.why());
    note("cluster", "size of the datastore", s.storage_size.why());
    for node in &inventory.nodes {
        let of = node.name.as_str();
        note(of, "version", node.version.why());
        note(of, "ready", node.ready.why());
        note(of, "architecture", node.arch.why());
        note(of, "host", node.host.why());
        let Some(host) = node.host.known() else { continue };
        note(of, "installation", host.install.why());
        note(of, "arguments", host.arguments.why());
        note(of, "cgroup version", host.cgroup.why());
        note(of, "disks", host.disks.why());
        note(of, "clock offset", host.clock_offset.why());
        note(of, "clock synchronisation", host.ntp_synchronised.why());
        note(of, "certificates", host.certificates.why());
        note(of, "etcd", host.etcd.as_ref().and_then(Fact::why));
        note(of, "etcd members", host.etcd_members.as_ref().and_then(Fact::why));
        note(of, "SQLite files", host.sqlite.as_ref().and_then(Fact::why));
        note(of, "secrets encryption", host.secrets_encryption.as_ref().and_then(Fact::why));
        note(of, "last start of K3s", host.last_start.why());
        note(of, "addresses", host.addresses.why());
        if node.role == Role::Server {
            note(of, "token", host.token.why());
        }
    }
    inventory.unknown.extend(unknown);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::Digest;
    use crate::inventory::example::{ha, now};
    use crate::inventory::{NodeObject, Workload};

    /// What the API and the hosts would have to say for this inventory.
    fn taken_apart(inventory: &Inventory) -> (ApiFacts, BTreeMap<NodeName, Fact<HostFacts>>) {
        let nodes = inventory.nodes.iter().map(|n| ApiNode {
            name: n.name.clone(),
            uid: n.uid.clone().unwrap_or_default(),
            control_plane: n.role == Role::Server,
            etcd_label: n.role == Role::Server,
            version: n.version.clone(),
            ready: n.ready.clone(),
            reported: Fact::Known(now()),
            internal_ip: Some(n.address.clone()),
            arch: n.arch.clone(),
            etcd_member: None,
            object: n.object.clone().unwrap_or_default(),
        });
        let api = ApiFacts {
            uid: inventory.uid.clone(),
            ca_hash: Fact::Known(Digest::of(b"ca")),
            nodes: Fact::Known(nodes.collect()),
            endpoints: Fact::Known(Vec::new()),
            workload: Workload { ..inventory.workload.clone() },
            surroundings: inventory.surroundings.clone(),
        };
        (api, inventory.nodes.iter().map(|n| (n.name.clone(), n.host.clone())).collect())
    }

    fn joined(change: impl FnOnce(&mut NodeObject, &mut Fact<bool>, &mut HostFacts)) -> Inventory {
        let whole = ha("v1.36.3+k3s1");
        let (mut api, mut hosts) = taken_apart(&whole);
        let mut nodes = api.nodes.known().cloned().unwrap_or_default();
        let node = nodes.iter_mut().find(|n| n.name.as_str() == "s2").expect("s2");
        let mut host = hosts[&node.name].known().expect("a host").clone();
        change(&mut node.object, &mut node.ready, &mut host);
        hosts.insert(node.name.clone(), Fact::Known(host));
        api.nodes = Fact::Known(nodes);
        assemble(&whole.cluster, api, hosts, &BTreeMap::new(), now())
    }

    fn said(inventory: &Inventory, words: &str) {
        let s2 = inventory.node(&"s2".into()).expect("s2");
        assert!(s2.host.why().is_some_and(|why| why.contains(words)), "{:?}", s2.host.why());
        assert!(inventory.contradictions.iter().any(|c| c.contains(words)), "{:?}", inventory.contradictions);
    }

    #[test]
    fn a_host_is_its_node_by_machine_boot_and_ca() {
        let whole = joined(|_, _, _| {});
        assert_eq!(whole.contradictions, Vec::<String>::new());
        assert!(whole.nodes.iter().all(|n| n.host.known().is_some()));
        said(&joined(|_, _, host| host.machine_id = "another".to_owned()), "another machine");
        said(&joined(|_, _, host| host.boot_id = "another".to_owned()), "another machine");
        said(&joined(|_, _, host| host.ca_hash = Fact::Known(Digest::of(b"other"))), "another cluster");
    }

    #[test]
    fn what_cannot_be_told_is_not_the_same() {
        said(&joined(|node, _, host| (node.machine_id, host.machine_id) = Default::default()), "another machine");
        said(&joined(|node, _, host| (node.boot_id, host.boot_id) = Default::default()), "another machine");
        said(&joined(|_, _, host| host.ca_hash = Fact::unknown("no file")), "cannot be told: no file");
    }

    /// A node that has booted and does not come back is the one that a person, or the way back, has to reach.
    #[test]
    fn a_node_that_is_not_ready_may_be_in_another_boot_than_it_reported() {
        let down = joined(|_, ready, host| (*ready, host.boot_id) = (Fact::Known(false), "next".to_owned()));
        assert_eq!(down.contradictions, Vec::<String>::new());
    }

    #[test]
    fn cloned_machines_are_a_contradiction_and_a_kubeconfig_without_ca_is_said() {
        let whole = ha("v1.36.3+k3s1");
        let (mut api, hosts) = taken_apart(&whole);
        let id = whole.nodes[0].object.as_ref().expect("a Node").machine_id.clone();
        let mut nodes = api.nodes.known().cloned().unwrap_or_default();
        nodes.iter_mut().for_each(|n| n.object.machine_id.clone_from(&id));
        api.nodes = Fact::Known(nodes);
        api.ca_hash = Fact::unknown("the kubeconfig has none");
        let inventory = assemble(&whole.cluster, api, hosts, &BTreeMap::new(), now());
        assert!(inventory.contradictions.iter().any(|c| c.contains("the same machine id")));
        assert!(inventory.unknown.iter().any(|u| u.fact == "cluster CA of the kubeconfig"));
    }
}
