//! A Node object, turned into words.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus, Taint};
use kadence_core::fact::Fact;
use kadence_core::ident::NodeName;
use kadence_core::inventory::{ApiNode, Arch, Cordon, Mark, NodeObject};
use kube::ResourceExt as _;

/// The annotation with Kadence's mark, as JSON.
pub(crate) const MARK: &str = "kadence.dev/mark";

/// Conditions of the kubelet and of the node problem detector for which True is bad.
const BAD_IF_TRUE: [&str; 6] =
    ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable", "KernelDeadlock", "ReadonlyFilesystem"];

/// Taints that Kubernetes itself derives from conditions and from the cordon, which have words of their own: they come
/// and go with those and are nobody's setting.
const DERIVED_TAINTS: &str = "node.kubernetes.io/";

/// A Node without the age of its lease, which is an object of its own.
pub(crate) fn api_node(node: &Node) -> ApiNode {
    let label = |key: &str| node.labels().contains_key(key);
    let annotation = |key: &str| node.annotations().get(key).cloned();
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.clone().unwrap_or_default();
    ApiNode {
        name: NodeName::new(node.name_any()),
        uid: node.uid().unwrap_or_default(),
        control_plane: label("node-role.kubernetes.io/control-plane"),
        etcd_label: label("node-role.kubernetes.io/etcd"),
        version: info.kubelet_version.parse().into(),
        ready: ready(&status),
        reported: reported(&status),
        internal_ip: status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP").map(|a| a.address.clone()),
        arch: Arch::parse(&info.architecture)
            .map_or_else(|| Fact::unknown(format!("K3s has no releases for `{}`", info.architecture)), Fact::Known),
        etcd_member: annotation("etcd.k3s.cattle.io/node-name"),
        object: NodeObject {
            labels: node.labels().clone(),
            taints: taints(node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()),
            cordon: cordon_of(node),
            pressures: status
                .conditions
                .iter()
                .flatten()
                .filter(|c| c.status == "True" && BAD_IF_TRUE.contains(&c.type_.as_str()))
                .map(|c| c.type_.clone())
                .collect(),
            machine_id: info.machine_id,
            boot_id: info.boot_id,
            kernel: info.kernel_version,
            os_image: info.os_image,
            runtime: info.container_runtime_version,
            args: annotation("k3s.io/node-args").map(|text| arguments(&text)).unwrap_or_default(),
            config_hash: annotation("k3s.io/node-config-hash"),
            encryption_hash: annotation("k3s.io/encryption-config-hash"),
            lease_age: None,
        },
    }
}

/// A condition whose status is Unknown means that the kubelet fell silent: the node is not ready, as `kubectl` says.
fn ready(status: &NodeStatus) -> Fact<bool> {
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    ready.map_or_else(|| Fact::unknown("the node has no condition Ready yet"), |c| Fact::Known(c.status == "True"))
}

fn reported(status: &NodeStatus) -> Fact<Timestamp> {
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    let told = ready.and_then(|c| c.last_heartbeat_time.as_ref());
    told.map_or_else(|| Fact::unknown("the node's condition Ready has no lastHeartbeatTime"), |at| Fact::Known(at.0))
}

fn taints(taints: &[Taint]) -> Vec<String> {
    let own = taints.iter().filter(|t| !t.key.starts_with(DERIVED_TAINTS));
    let mut words: Vec<_> = own
        .map(|t| match t.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{}={value}:{}", t.key, t.effect),
            _ => format!("{}:{}", t.key, t.effect),
        })
        .collect();
    words.sort();
    words
}

/// Who made the node unschedulable, if anybody. A mark that cannot be read is not ours: the cordon stays.
pub(crate) fn cordon_of(node: &Node) -> Cordon {
    let unschedulable = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or_default();
    match (unschedulable, mark_of(node)) {
        (false, _) => Cordon::None,
        (true, Some(mark)) => Cordon::Ours { mark },
        (true, None) => Cordon::Foreign,
    }
}

/// Kadence's mark, on a node that is cordoned or not.
pub(crate) fn mark_of(node: &Node) -> Option<Mark> {
    serde_json::from_str(node.annotations().get(MARK)?).ok()
}

/// K3s's own record of its arguments. K3s stars out what it knows to be secret; what looks like a secret to us too is
/// starred here, should a version forget one.
fn arguments(annotation: &str) -> Vec<String> {
    let mut words: Vec<String> = serde_json::from_str(annotation).unwrap_or_default();
    let mut star_next = false;
    for word in &mut words {
        if std::mem::take(&mut star_next) && !word.starts_with('-') {
            *word = STARS.to_owned();
            continue;
        }
        let (key, value) = word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value)));
        if secret(key) {
            match value {
                Some(_) => *word = format!("{key}={STARS}"),
                None => star_next = true,
            }
        }
    }
    words
}

const STARS: &str = "********";

fn secret(key: &str) -> bool {
    let key = key.trim_start_matches('-');
    ["token", "secret-key", "access-key", "password", "datastore-endpoint"].iter().any(|s| key.ends_with(s))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn server() -> serde_json::Value {
        json!({
            "metadata": {
                "name": "s1",
                "uid": "0b5f",
                "resourceVersion": "17",
                "labels": {
                    "kubernetes.io/hostname": "s1",
                    "node-role.kubernetes.io/control-plane": "true",
                    "node-role.kubernetes.io/etcd": "true",
                },
                "annotations": {
                    "etcd.k3s.cattle.io/node-name": "s1-1a2b3c4d",
                    "k3s.io/node-args": r#"["server","--cluster-init","--token","abc","--etcd-s3-secret-key=def","--tls-san","x"]"#,
                    "k3s.io/node-config-hash": "HASH====",
                },
            },
            "spec": {
                "taints": [
                    { "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" },
                    { "key": "dedicated", "value": "db", "effect": "NoSchedule" },
                    { "key": "CriticalAddonsOnly", "value": "true", "effect": "NoExecute" },
                ],
            },
            "status": {
                "addresses": [
                    { "type": "Hostname", "address": "s1" },
                    { "type": "InternalIP", "address": "10.0.0.11" },
                ],
                "conditions": [
                    { "type": "EtcdIsVoter", "status": "True" },
                    { "type": "DiskPressure", "status": "True" },
                    { "type": "MemoryPressure", "status": "False" },
                    { "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-25T02:00:07Z" },
                ],
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.3.2-k3s2",
                    "kernelVersion": "6.1", "kubeProxyVersion": "v1.36.3+k3s1", "kubeletVersion": "v1.36.3+k3s1",
                    "machineID": "m", "operatingSystem": "linux", "osImage": "Debian", "systemUUID": "u",
                },
            },
        })
    }

    fn parse(json: serde_json::Value) -> Node {
        serde_json::from_value(json).expect("a Node")
    }

    #[test]
    fn a_server_is_told_in_our_words() {
        let node = api_node(&parse(server()));
        assert_eq!(node.version, Fact::Known("v1.36.3+k3s1".parse().expect("version")));
        assert_eq!(node.ready, Fact::Known(true));
        assert_eq!(node.reported, Fact::Known("2026-11-25T02:00:07Z".parse().expect("a time")));
        assert!(node.control_plane && node.etcd_label);
        assert_eq!(node.internal_ip.as_deref(), Some("10.0.0.11"));
        assert_eq!(node.etcd_member.as_deref(), Some("s1-1a2b3c4d"));
        assert_eq!(node.object.taints, ["CriticalAddonsOnly=true:NoExecute", "dedicated=db:NoSchedule"]);
        assert_eq!(node.object.pressures, ["DiskPressure"]);
        assert_eq!(node.object.cordon, Cordon::None);
    }

    #[test]
    fn secrets_in_arguments_are_starred() {
        let node = api_node(&parse(server()));
        let expected =
            ["server", "--cluster-init", "--token", STARS, "--etcd-s3-secret-key=********", "--tls-san", "x"];
        assert_eq!(node.object.args, expected);
    }

    #[test]
    fn a_silent_kubelet_is_not_ready_and_a_new_node_is_unknown() {
        let mut silent = server();
        silent["status"]["conditions"] = json!([{ "type": "Ready", "status": "Unknown" }]);
        assert_eq!(api_node(&parse(silent)).ready, Fact::Known(false));
        let mut new = server();
        new["status"]["conditions"] = json!([]);
        let new = api_node(&parse(new));
        assert!(new.ready.why().is_some() && new.reported.why().is_some());
    }

    #[test]
    fn another_build_than_k3s_has_no_known_version() {
        let mut node = server();
        node["status"]["nodeInfo"]["kubeletVersion"] = json!("v1.36.3+rke2r1");
        assert!(api_node(&parse(node)).version.why().is_some_and(|why| why.contains("rke2r1")));
    }

    #[test]
    fn only_a_cordon_with_a_readable_mark_is_ours() {
        let mark = Mark { rollout: "r1".into(), plan: "p".into(), step: "s".into() };
        let written = serde_json::to_string(&mark).expect("json");
        for (unschedulable, annotation, expected) in [
            (true, Some(written.as_str()), Cordon::Ours { mark }),
            (true, Some("{\"rollout\":1}"), Cordon::Foreign),
            (true, None, Cordon::Foreign),
            (false, Some(written.as_str()), Cordon::None),
        ] {
            let mut node = server();
            node["spec"]["unschedulable"] = json!(unschedulable);
            node["metadata"]["annotations"][MARK] = json!(annotation);
            if annotation.is_none() {
                node["metadata"]["annotations"].as_object_mut().expect("map").remove(MARK);
            }
            assert_eq!(cordon_of(&parse(node)), expected);
        }
    }
}
