//! Which kinds are served, where, and what a path names.

use serde_json::{Value, json};

/// A kind of object. One version of each group is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
    short: &'static str,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    short: &'static str,
) -> Kind {
    Kind { group, version, plural, kind, namespaced, short }
}

const KINDS: &[Kind] = &[
    kind("", "v1", "configmaps", "ConfigMap", true, "cm"),
    kind("", "v1", "endpoints", "Endpoints", true, "ep"),
    kind("", "v1", "events", "Event", true, "ev"),
    kind("", "v1", "namespaces", "Namespace", false, "ns"),
    kind("", "v1", "nodes", "Node", false, "no"),
    kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true, "pvc"),
    kind("", "v1", "persistentvolumes", "PersistentVolume", false, "pv"),
    kind("", "v1", "pods", "Pod", true, "po"),
    kind("", "v1", "secrets", "Secret", true, ""),
    kind("", "v1", "serviceaccounts", "ServiceAccount", true, "sa"),
    kind("", "v1", "services", "Service", true, "svc"),
    kind(
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        false,
        "",
    ),
    kind(
        "admissionregistration.k8s.io",
        "v1",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        false,
        "",
    ),
    kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", false, "crd"),
    kind("apiregistration.k8s.io", "v1", "apiservices", "APIService", false, ""),
    kind("apps", "v1", "daemonsets", "DaemonSet", true, "ds"),
    kind("apps", "v1", "deployments", "Deployment", true, "deploy"),
    kind("apps", "v1", "replicasets", "ReplicaSet", true, "rs"),
    kind("apps", "v1", "statefulsets", "StatefulSet", true, "sts"),
    kind("batch", "v1", "jobs", "Job", true, ""),
    kind("coordination.k8s.io", "v1", "leases", "Lease", true, ""),
    kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true, ""),
    kind("helm.cattle.io", "v1", "helmcharts", "HelmChart", true, ""),
    kind("helm.cattle.io", "v1", "helmchartconfigs", "HelmChartConfig", true, ""),
    kind("k3s.cattle.io", "v1", "addons", "Addon", true, ""),
    kind("k3s.cattle.io", "v1", "etcdsnapshotfiles", "ETCDSnapshotFile", false, ""),
    kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", true, "pdb"),
    kind("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment", false, ""),
];

/// The kind by its plural, singular or short name, as a person writes it.
pub(crate) fn named(word: &str) -> Option<&'static Kind> {
    let word = word.to_ascii_lowercase();
    KINDS
        .iter()
        .find(|k| k.plural == word || k.kind.to_ascii_lowercase() == word || (k.short == word && !word.is_empty()))
}

pub(crate) fn of_plural(group: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.plural == plural)
}

impl Kind {
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// What all keys of this kind, or those in a namespace, begin with.
    pub(crate) fn prefix(&self, namespace: Option<&str>) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        match namespace {
            Some(namespace) => format!("/registry/{}{dot}{}/{namespace}/", self.plural, self.group),
            None => format!("/registry/{}{dot}{}/", self.plural, self.group),
        }
    }

    pub(crate) fn key(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}{name}", self.prefix(namespace.filter(|_| self.namespaced)))
    }

    /// The path of its objects, as a client asks for it.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", self.api_version()) };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }
}

/// The key of an object of a built-in kind, for those who know what they name.
pub(crate) fn key(plural: &str, namespace: Option<&str>, name: &str) -> String {
    KINDS.iter().find(|k| k.plural == plural).map(|k| k.key(namespace, name)).unwrap_or_default()
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Discovery(Value),
    Collection { kind: &'static Kind, namespace: Option<&'a str> },
    Object { kind: &'static Kind, namespace: Option<&'a str>, name: &'a str, sub: Option<&'a str> },
    Nothing,
}

pub(crate) fn route(path: &str) -> Route<'_> {
    let words: Vec<&str> = path.split('/').filter(|w| !w.is_empty()).collect();
    let (group, rest) = match words.as_slice() {
        ["api"] => return Route::Discovery(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ["apis"] => return Route::Discovery(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups() })),
        ["apis", group] => {
            let found = groups().into_iter().find(|g| g["name"] == *group);
            return found.map_or(Route::Nothing, Route::Discovery);
        }
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, version, rest @ ..] if KINDS.iter().any(|k| k.group == *group && k.version == *version) => {
            (*group, rest)
        }
        _ => return Route::Nothing,
    };
    let of = |plural: &str| of_plural(group, plural);
    match rest {
        [] => Route::Discovery(resources(group)),
        ["namespaces", namespace, plural, object @ ..] if of(plural).is_some_and(|k| k.namespaced) => {
            place(of(plural), Some(namespace), object)
        }
        [plural, object @ ..] => match of(plural) {
            Some(kind) if kind.namespaced && !object.is_empty() => Route::Nothing,
            kind => place(kind, None, object),
        },
    }
}

fn place<'a>(kind: Option<&'static Kind>, namespace: Option<&'a str>, object: &[&'a str]) -> Route<'a> {
    match (kind, object) {
        (Some(kind), []) => Route::Collection { kind, namespace },
        (Some(kind), [name]) => Route::Object { kind, namespace, name, sub: None },
        (Some(kind), [name, sub]) => Route::Object { kind, namespace, name, sub: Some(sub) },
        _ => Route::Nothing,
    }
}

fn groups() -> Vec<Value> {
    let mut names: Vec<(&str, &str)> =
        KINDS.iter().filter(|k| !k.group.is_empty()).map(|k| (k.group, k.version)).collect();
    names.dedup();
    names
        .into_iter()
        .map(|(group, version)| {
            let version = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
            json!({
                "kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": [version], "preferredVersion": version,
            })
        })
        .collect()
}

/// An APIService is there for each group, Available, as the aggregator makes them.
pub(crate) fn api_services() -> Vec<Value> {
    let mut names: Vec<(&str, &str)> = KINDS.iter().map(|k| (k.group, k.version)).collect();
    names.dedup();
    let services = names.into_iter().map(|(group, version)| {
        json!({
            "metadata": { "name": format!("{version}.{group}") },
            "spec": { "group": group, "version": version, "groupPriorityMinimum": 18000, "versionPriority": 1 },
            "status": { "conditions": [{
                "type": "Available", "status": "True", "reason": "Local", "message": "Local APIServices are always available",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }] },
        })
    });
    services.collect()
}

fn resources(group: &str) -> Value {
    let kinds = || KINDS.iter().filter(|k| k.group == group);
    let verbs = json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]);
    let mut all: Vec<Value> = kinds()
        .map(|k| {
            let short: Vec<&str> = Some(k.short).filter(|s| !s.is_empty()).into_iter().collect();
            json!({
                "name": k.plural, "singularName": k.kind.to_ascii_lowercase(), "namespaced": k.namespaced,
                "kind": k.kind, "verbs": verbs, "shortNames": short,
            })
        })
        .collect();
    all.extend(kinds().map(|k| {
        json!({
            "name": format!("{}/status", k.plural), "singularName": "", "namespaced": k.namespaced, "kind": k.kind,
            "verbs": ["get", "patch", "update"],
        })
    }));
    if group.is_empty() {
        all.push(json!({
            "name": "pods/eviction", "singularName": "", "namespaced": true, "group": "policy", "version": "v1",
            "kind": "Eviction", "verbs": ["create"],
        }));
    }
    let version = kinds().next().map(Kind::api_version).unwrap_or_default();
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_what_it_names() {
        let pods = named("po").expect("a kind");
        let nodes = named("node").expect("a kind");
        for (path, expected) in [
            ("/api/v1/pods", Route::Collection { kind: pods, namespace: None }),
            ("/api/v1/namespaces/shop/pods", Route::Collection { kind: pods, namespace: Some("shop") }),
            (
                "/api/v1/namespaces/shop/pods/web/eviction",
                Route::Object { kind: pods, namespace: Some("shop"), name: "web", sub: Some("eviction") },
            ),
            ("/api/v1/nodes/s1", Route::Object { kind: nodes, namespace: None, name: "s1", sub: None }),
            ("/api/v1/pods/web", Route::Nothing),
            ("/api/v1/nodules", Route::Nothing),
            ("/apis/example.org/v1/pods", Route::Nothing),
            ("/apis/apps/v2/deployments", Route::Nothing),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
        let namespace = named("ns").expect("a kind");
        let expected = Route::Object { kind: namespace, namespace: None, name: "shop", sub: None };
        assert_eq!(route("/api/v1/namespaces/shop"), expected);
        assert!(matches!(route("/apis/apps/v1"), Route::Discovery(_)));
        assert_eq!(pods.key(Some("shop"), "web"), "/registry/pods/shop/web");
    }
}
