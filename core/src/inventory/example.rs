//! Clean clusters for tests: every fact known, everything healthy. A test changes the one fact it is about.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use crate::config::{Cluster, Ssh, Update};
use crate::fact::Fact;
use crate::ident::{ClusterName, ClusterUid, Digest, NodeName};
use crate::inventory::{
    Addresses, Arch, Argument, Arguments, Budget, Certificate, Cgroup, Controller, ControllerKind, Cordon, Datastore,
    Disk, EtcdLocal, EtcdMember, EtcdRole, HelmRelease, HostFacts, Install, Inventory, LastStart, Node, NodeObject,
    Origin, Packaged, PackagedKind, Pod, PodPhase, Role, SecretsEncryption, SqliteFiles, StartFile, Storage,
    Surroundings, Tools, Unit, Workload,
};
use crate::knowledge::Knowledge;
use crate::knowledge::components::Component;
use crate::track::catalog::{Catalog, Release};
use crate::version::Version;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// When the example clusters were looked at: 2026-11-24 01:05 UTC.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_795_482_300).expect("a time")
}

/// Three servers with embedded etcd (`s1` leads) and the agent `a1`.
pub(crate) fn ha(version: &str) -> Inventory {
    etcd(3, 1, version)
}

/// Servers `s1`, `s2` and so on with embedded etcd (`s1` leads), and agents `a1`, `a2` and so on.
pub(crate) fn etcd(servers: u8, agents: u8, version: &str) -> Inventory {
    let members: Vec<EtcdMember> = (1..=servers).map(member).collect();
    let mut inventory = of(Datastore::EmbeddedEtcd { members: Fact::Known(members.clone()) }, servers, agents, version);
    for i in 1..=servers {
        let server = node_mut(&mut inventory, &format!("s{i}"));
        server.etcd = Fact::Known(EtcdRole::Voter);
        let host = host(server);
        host.etcd = Some(Fact::Known(etcd_local(i, &parse(version))));
        host.etcd_members = Some(Fact::Known(members.clone()));
    }
    inventory
}

/// Servers `s1`, `s2` and so on and agents `a1`, `a2` and so on, with a datastore that leaves no trace on them.
pub(crate) fn of(datastore: Datastore, servers: u8, agents: u8, version: &str) -> Inventory {
    let version = parse(version);
    let agents = (1..=agents).map(|i| node(&format!("a{i}"), Role::Agent, 20 + i, &version));
    let servers = (1..=servers).map(|i| node(&format!("s{i}"), Role::Server, 10 + i, &version));
    inventory(datastore, agents.chain(servers).collect())
}

/// One server with SQLite, and nothing else.
pub(crate) fn sqlite(version: &str) -> Inventory {
    let mut server = node("s1", Role::Server, 11, &parse(version));
    let files = SqliteFiles {
        path: "/var/lib/rancher/k3s/server/db/state.db".to_owned(),
        db_bytes: 9 * MIB,
        wal_bytes: 4 * MIB,
    };
    host(&mut server).sqlite = Some(Fact::Known(files));
    inventory(Datastore::Sqlite, vec![server])
}

/// The host's facts of a node, to be changed.
pub(crate) fn host(node: &mut Node) -> &mut HostFacts {
    match &mut node.host {
        Fact::Known(host) => host,
        Fact::Unknown(why) => unreachable!("the example's host is known: {why}"),
    }
}

/// A node by its name, to be changed.
pub(crate) fn node_mut<'a>(inventory: &'a mut Inventory, name: &str) -> &'a mut Node {
    inventory.nodes.iter_mut().find(|n| n.name.as_str() == name).expect("a node of the example")
}

/// The facts of a node's host by the node's name, to be changed.
pub(crate) fn host_mut<'a>(inventory: &'a mut Inventory, name: &str) -> &'a mut HostFacts {
    host(node_mut(inventory, name))
}

/// A release source that has these versions, each for amd64 and arm64.
pub(crate) fn catalog(versions: &[&str]) -> Catalog {
    let releases = versions.iter().map(|text| {
        let version = parse(text);
        let binaries = [Arch::Amd64, Arch::Arm64].map(|arch| (arch, binary(&version, arch))).into();
        let published = Some(now() - SignedDuration::from_hours(12 * 24));
        (version.clone(), Release { version, published, prerelease: false, binaries })
    });
    Catalog { source: "/srv/releases".to_owned(), fetched: now(), releases: releases.collect(), unreadable: Vec::new() }
}

/// The digest of the binary that [`catalog`] has, and that the nodes of a version have installed.
pub(crate) fn binary(version: &Version, arch: Arch) -> Digest {
    Digest::of(format!("k3s {version} {arch}").as_bytes())
}

/// What `kadence init` writes for such a cluster.
pub(crate) fn cluster() -> Cluster {
    Cluster {
        environment: "production".to_owned(),
        kubeconfig: "kubeconfig".into(),
        context: None,
        ssh: Ssh::default(),
        nodes: BTreeMap::new(),
        probes: Vec::new(),
        update: Update::default(),
        datastore: None,
        waivers: Vec::new(),
        exclude: Vec::new(),
    }
}

/// A pod of `shop` that a ReplicaSet owns.
pub(crate) fn pod(name: &str, node: &str) -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        node: Some(node.into()),
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        phase: PodPhase::Running,
        owner: Some("ReplicaSet".to_owned()),
        mirror: false,
        ready: true,
        restarts: 0,
        waiting: Vec::new(),
        terminating: false,
        empty_dirs: Vec::new(),
        node_bound_claims: Vec::new(),
        host_network: false,
        pinned_to: None,
        tolerates_unschedulable: false,
        grace_seconds: 30,
    }
}

/// An argument in a node's `config.yaml`.
pub(crate) fn argument(key: &str, value: &str) -> Argument {
    Argument {
        key: key.to_owned(),
        value: Some(value.to_owned()),
        origin: Origin::ConfigFile,
        place: "/etc/rancher/k3s/config.yaml:7".to_owned(),
    }
}

fn parse(version: &str) -> Version {
    version.parse().expect("a version")
}

fn member(i: u8) -> EtcdMember {
    EtcdMember {
        id: format!("8e9e05c52164694{i}"),
        name: format!("s{i}-0a1b2c3{i}"),
        peer_urls: vec![format!("https://10.0.0.{}:2380", 10 + i)],
        learner: false,
    }
}

fn etcd_local(i: u8, version: &Version) -> EtcdLocal {
    let etcd = Knowledge::embedded().components(version).and_then(|c| c.get(Component::Etcd));
    let etcd = etcd.map_or("3.6.14".to_owned(), ToString::to_string);
    EtcdLocal {
        healthy: true,
        leader: i == 1,
        learner: false,
        has_leader: true,
        version: Fact::Known(etcd.split('-').next().unwrap_or_default().to_owned()),
        db_bytes: Fact::Known(41 * MIB),
        quota_bytes: Fact::Known(2 * GIB),
        applied_index: Fact::Known(123_456),
        alarms: Fact::Known(Vec::new()),
        fsync_p99_micros: Fact::Known(4_000),
        member_id: Fact::Known(format!("8e9e05c52164694{i}")),
    }
}

fn machine_id(last: u8) -> String {
    format!("{last:032x}")
}

fn boot_id(last: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{last:02}")
}

fn node(name: &str, role: Role, last: u8, version: &Version) -> Node {
    let labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), name.to_owned()),
        ("kubernetes.io/arch".to_owned(), "amd64".to_owned()),
    ]);
    let object = NodeObject {
        labels,
        taints: Vec::new(),
        cordon: Cordon::None,
        pressures: Vec::new(),
        machine_id: machine_id(last),
        boot_id: boot_id(last),
        kernel: "6.12.48".to_owned(),
        os_image: "Debian GNU/Linux 13".to_owned(),
        runtime: "containerd://2.3.2-k3s2".to_owned(),
        args: match role {
            Role::Server => ["server", "--write-kubeconfig-mode", "0640"].map(str::to_owned).into(),
            Role::Agent => vec!["agent".to_owned()],
        },
        config_hash: Some("3TZH".to_owned()),
        encryption_hash: (role == Role::Server).then(|| "start-1a2b".to_owned()),
        lease_age: Some(SignedDuration::from_secs(4)),
    };
    Node {
        name: name.into(),
        uid: Some(format!("uid-{name}")),
        role,
        etcd: Fact::Known(EtcdRole::None),
        apiserver: Fact::Known(role == Role::Server),
        version: Fact::Known(version.clone()),
        ready: Fact::Known(true),
        address: format!("10.0.0.{last}"),
        arch: Fact::Known(Arch::Amd64),
        object: Some(object),
        host: Fact::Known(host_facts(name, role, version, last)),
    }
}

fn host_facts(name: &str, role: Role, version: &Version, last: u8) -> HostFacts {
    let disk = |holds: &str| Disk {
        holds: holds.to_owned(),
        mount: "/".to_owned(),
        total: 40 * GIB,
        free: 25 * GIB,
        inodes: 2_600_000,
        inodes_free: 2_400_000,
    };
    let certificate = |path: &str, days: i64, ca: bool| Certificate {
        path: format!("/var/lib/rancher/k3s/{path}"),
        not_after: now() + SignedDuration::from_hours(24 * days),
        ca,
    };
    let certificates = match role {
        Role::Server => vec![
            certificate("server/tls/server-ca.crt", 3_500, true),
            certificate("server/tls/client-admin.crt", 300, false),
        ],
        Role::Agent => {
            vec![certificate("agent/server-ca.crt", 3_500, true), certificate("agent/client-kubelet.crt", 300, false)]
        }
    };
    let server = role == Role::Server;
    HostFacts {
        hostname: name.to_owned(),
        machine_id: machine_id(last),
        boot_id: boot_id(last),
        arch: Fact::Known(Arch::Amd64),
        ca_hash: Fact::Known(Digest::of(b"ca")),
        install: Fact::Known(Install {
            role,
            binary: "/usr/local/bin/k3s".to_owned(),
            digest: binary(version, Arch::Amd64),
            size: 66 * MIB,
            version: Fact::Known(version.clone()),
            unit: Unit {
                name: role.unit().to_owned(),
                enabled: true,
                active: "active".to_owned(),
                sub: "running".to_owned(),
                restarts: 0,
                main_pid: 812,
                files: vec![format!("/etc/systemd/system/{}.service", role.unit())],
            },
            other_unit_enabled: false,
            data_dir: "/var/lib/rancher/k3s".to_owned(),
        }),
        arguments: Fact::Known(Arguments {
            entries: vec![argument("write-kubeconfig-mode", "0640")].into_iter().filter(|_| server).collect(),
            digest: Some(Digest::of(name.as_bytes())),
            unreadable: Vec::new(),
        }),
        cgroup: Fact::Known(Cgroup::V2),
        disks: Fact::Known(vec![disk("data"), disk("binary"), disk("kadence")]),
        clock_offset: Fact::Known(SignedDuration::from_millis(40)),
        ntp_synchronised: Fact::Known(true),
        certificates: Fact::Known(certificates),
        token: Fact::Known(server.then(|| Digest::of(b"token"))),
        etcd: None,
        etcd_members: None,
        sqlite: None,
        secrets_encryption: server
            .then(|| Fact::Known(SecretsEncryption { enabled: false, stage: "start".to_owned(), hashes_match: true })),
        tools: Tools { systemd_run: true, sqlite3: true, python3: true, restorecon: false, selinux_enforcing: false },
        turn: 0,
        records: Vec::new(),
        containerd_templates: Vec::new(),
        last_start: Fact::Known(LastStart {
            at: Some(now() - SignedDuration::from_hours(24 * 9)),
            reads: vec![start_file("/etc/rancher/k3s/config.yaml", 24 * 10)],
            needs_daemon_reload: Fact::Known(false),
        }),
        addresses: Fact::Known(Addresses {
            default_route: Some("eth0".to_owned()),
            interfaces: BTreeMap::from([
                ("cni0".to_owned(), vec![IpAddr::from([10, 42, 0, 1])]),
                ("eth0".to_owned(), vec![IpAddr::from([10, 0, 0, last])]),
            ]),
        }),
    }
}

/// A file that K3s reads when it starts, changed that many hours ago.
pub(crate) fn start_file(path: &str, hours_ago: i64) -> StartFile {
    let changed = now() - SignedDuration::from_hours(hours_ago);
    StartFile { path: path.to_owned(), written: changed, changed }
}

fn inventory(datastore: Datastore, nodes: Vec<Node>) -> Inventory {
    let on: Vec<NodeName> = nodes.iter().map(|n| n.name.clone()).collect();
    let controller = |kind, namespace: &str, name: &str, count| Controller {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        desired: count,
        available: count,
        images: vec![format!("registry.example/{name}:1")],
        observed: true,
    };
    let log = Pod {
        namespace: "kube-system".to_owned(),
        owner: Some("DaemonSet".to_owned()),
        ..pod("svclb-traefik-x7k2p", on[0].as_str())
    };
    let pods = vec![pod("web-6d5f-2", on[0].as_str()), pod("web-6d5f-1", on[on.len() - 1].as_str()), log];
    let budget = Budget {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        disruptions_allowed: 1,
        expected_pods: 2,
        pods: vec!["shop/web-6d5f-1".to_owned(), "shop/web-6d5f-2".to_owned()],
    };
    Inventory {
        schema: Inventory::SCHEMA,
        cluster: ClusterName::new("shop"),
        uid: Fact::Known(ClusterUid::new("7b1e4a52-3c5e-4f0a-9d52-0a2c9b1f7e10")),
        taken: now(),
        datastore: Fact::Known(datastore),
        nodes,
        workload: Workload {
            controllers: Fact::Known(vec![
                controller(ControllerKind::Deployment, "kube-system", "coredns", 1),
                controller(ControllerKind::Deployment, "shop", "web", 2),
            ]),
            pods: Fact::Known(pods),
            budgets: Fact::Known(vec![budget]),
            services: Fact::Known(BTreeMap::from([("shop/web".to_owned(), 2)])),
        },
        surroundings: Surroundings {
            webhooks: Fact::Known(Vec::new()),
            broken_api_services: Fact::Known(Vec::new()),
            packaged: Fact::Known(vec![Packaged {
                kind: PackagedKind::Addon,
                name: "coredns".to_owned(),
                version: "1a2b3c".to_owned(),
                settled: true,
                detail: String::new(),
            }]),
            helm_releases: Fact::Known(vec![HelmRelease {
                namespace: "kube-system".to_owned(),
                name: "traefik".to_owned(),
                revision: 3,
                status: "deployed".to_owned(),
            }]),
            chart_configs: Fact::Known(Vec::new()),
            storage: Fact::Known(Storage::default()),
            managers: Fact::Known(Vec::new()),
            newest_snapshot: Fact::Known(None),
            lease: Fact::Known(None),
            storage_size: Fact::Known(41 * MIB),
        },
        contradictions: Vec::new(),
        unknown: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_has_no_fact_that_is_unknown() {
        for inventory in [ha("v1.36.3+k3s1"), sqlite("v1.35.7+k3s1")] {
            let text = serde_json::to_string(&inventory).expect("json");
            assert!(!text.contains("\"unknown\":\""), "{text}");
        }
    }

    #[test]
    fn now_is_in_november_2026() {
        assert_eq!(now().to_string(), "2026-11-24T01:05:00Z");
    }
}
