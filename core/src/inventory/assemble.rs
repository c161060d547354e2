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
    list_unknown(&mut inventory);
    inventory
}

fn node(
    api_node: &ApiNode,
    hosts: &BTreeMap<NodeName, Fact<HostFacts>>,
    api: &ApiFacts,
    contradictions: &mut Vec<String>,
) -> Node {
    let role = if api_node.control_plane || api_node.etcd_label { Role::Server } else { Role::Agent };
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

/// Why the host behind SSH is not the node of that name; `None` if it is.
fn not_this_node(node: &ApiNode, host: &HostFacts, api: &ApiFacts) -> Option<String> {
    if host.machine_id != node.object.machine_id {
        return Some(format!(
            "SSH reaches another machine than this Node: its machine id is {}, the Node's is {}",
            host.machine_id, node.object.machine_id
        ));
    }
    if let (Fact::Known(ours), Fact::Known(theirs)) = (&api.ca_hash, &host.ca_hash)
        && ours != theirs
    {
        return Some(
            "the host belongs to another cluster than the kubeconfig: its cluster CA is another one".to_owned(),
        );
    }
    None
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

/// By `k3s-updates.md` 7.1: etcd on disk or an etcd label wins over flags; else an endpoint means external; else one
/// server means SQLite; anything else is unknown.
fn datastore(
    nodes: &[ApiNode],
    hosts: &BTreeMap<NodeName, Fact<HostFacts>>,
    members: Option<Fact<Vec<EtcdMember>>>,
) -> Fact<Datastore> {
    let servers: Vec<_> = nodes.iter().filter(|n| n.control_plane || n.etcd_label).collect();
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
        if node.role == Role::Server {
            note(of, "token", host.token.why());
        }
    }
    inventory.unknown.extend(unknown);
}
