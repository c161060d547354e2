//! How the cluster was before anything was touched, and what became worse since.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fact::Fact;
use crate::ident::NodeName;
use crate::inventory::{Controller, ControllerKind, Cordon, HelmRelease, Inventory, Packaged, Pod};

/// What is compared after an update. Taken before the first node is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    pub taken: Timestamp,
    pub controllers: Fact<Vec<Controller>>,
    /// Ready endpoints by Service.
    pub services: Fact<BTreeMap<String, u32>>,
    /// Pods that were in trouble already, `namespace/name`, with the reasons.
    pub troubled: Fact<BTreeMap<String, Vec<String>>>,
    pub packaged: Fact<Vec<Packaged>>,
    pub helm_releases: Fact<Vec<HelmRelease>>,
    /// APIServices that were not served.
    pub broken_api_services: Fact<Vec<String>>,
    pub nodes: BTreeMap<NodeName, NodeBaseline>,
    /// Results of the user's probes: name to passed.
    pub probes: BTreeMap<String, bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBaseline {
    pub cordon: Cordon,
    pub taints: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub config_hash: Option<String>,
}

/// Something that was well in the baseline and is not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regression {
    pub about: String,
    pub before: String,
    pub now: String,
}

/// The reasons for which a pod counts as in trouble.
fn trouble(pod: &Pod) -> Vec<String> {
    pod.waiting.clone()
}

impl Baseline {
    pub fn of(inventory: &Inventory, probes: BTreeMap<String, bool>) -> Self {
        Self {
            taken: inventory.taken,
            controllers: inventory.workload.controllers.clone(),
            services: inventory.workload.services.clone(),
            troubled: inventory.workload.pods.as_ref().map(|pods| {
                pods.iter()
                    .filter(|p| !trouble(p).is_empty())
                    .map(|p| (format!("{}/{}", p.namespace, p.name), trouble(p)))
                    .collect()
            }),
            packaged: inventory.surroundings.packaged.clone(),
            helm_releases: inventory.surroundings.helm_releases.clone(),
            broken_api_services: inventory.surroundings.broken_api_services.clone(),
            nodes: inventory
                .nodes
                .iter()
                .filter_map(|n| {
                    let object = n.object.as_ref()?;
                    // A cordon of ours is lifted again, whichever of our rollouts set it: it is no state to keep.
                    let ours = matches!(object.cordon, Cordon::Ours { .. });
                    let kept = |taint: &&String| !(ours && taint.starts_with("node.kubernetes.io/unschedulable"));
                    let baseline = NodeBaseline {
                        cordon: if ours { Cordon::None } else { object.cordon.clone() },
                        taints: object.taints.iter().filter(kept).cloned().collect(),
                        labels: object.labels.clone(),
                        config_hash: object.config_hash.clone(),
                    };
                    Some((n.name.clone(), baseline))
                })
                .collect(),
            probes,
        }
    }
}

/// What is worse in `now` than in `before`: only what was well before can regress.
///
/// # Errors
/// Names the facts that are missing on either side: then nothing may be concluded.
pub fn regressions(before: &Baseline, now: &Baseline) -> Result<Vec<Regression>, Vec<String>> {
    let mut unknown = Vec::new();
    let mut worse = Vec::new();
    if let Some((before, now)) = both("workloads", &before.controllers, &now.controllers, &mut unknown) {
        worse.extend(before.iter().filter_map(|was| workload(was, now)));
    }
    if let Some((before, now)) = both("services", &before.services, &now.services, &mut unknown) {
        let gone = before.iter().filter(|(name, count)| **count > 0 && now.get(*name).is_some_and(|n| *n == 0));
        worse.extend(gone.map(|(name, count)| {
            Regression::new(format!("service {name}"), format!("{count} ready endpoints"), "none")
        }));
    }
    if let Some((before, now)) = both("pods", &before.troubled, &now.troubled, &mut unknown) {
        let new = now.iter().filter(|(name, _)| !before.contains_key(*name));
        worse.extend(
            new.map(|(name, reasons)| Regression::new(format!("pod {name}"), "no trouble", reasons.join(", "))),
        );
    }
    if let Some((before, now)) = both("packaged components", &before.packaged, &now.packaged, &mut unknown) {
        worse.extend(packaged(before, now));
    }
    if let Some((before, now)) = both("Helm releases", &before.helm_releases, &now.helm_releases, &mut unknown) {
        worse.extend(helm_releases(before, now));
    }
    if let Some((before, now)) =
        both("API services", &before.broken_api_services, &now.broken_api_services, &mut unknown)
    {
        // The message behind the name changes while the backend starts; the name is what was well or not.
        let name = |text: &str| text.split([':', ' ']).next().unwrap_or_default().to_owned();
        let known: Vec<String> = before.iter().map(|s| name(s)).collect();
        let new = now.iter().filter(|s| !known.contains(&name(s)));
        worse.extend(new.map(|service| {
            Regression::new(format!("API service {}", name(service)), "served", format!("not served: {service}"))
        }));
    }
    for (name, was) in &before.nodes {
        match now.nodes.get(name) {
            None => worse.push(Regression::new(format!("node {name}"), "there", "gone")),
            Some(is) => worse.extend(node(name, was, is)),
        }
    }
    let failing = before.probes.iter().filter(|(name, passed)| **passed && now.probes.get(*name) != Some(&true));
    worse.extend(failing.map(|(name, _)| Regression::new(format!("probe {name}"), "passed", "fails")));
    if unknown.is_empty() { Ok(worse) } else { Err(unknown) }
}

impl Regression {
    fn new(about: String, before: impl Into<String>, now: impl Into<String>) -> Self {
        Self { about, before: before.into(), now: now.into() }
    }
}

/// Nothing that was available may be gone, unless fewer are wanted now.
fn workload(was: &Controller, now: &[Controller]) -> Option<Regression> {
    // Deleted by somebody meanwhile is a change of the world, not a regression of the update.
    let is = now.iter().find(|c| (c.kind, &c.namespace, &c.name) == (was.kind, &was.namespace, &was.name))?;
    let fewer = is.available < was.available.min(is.desired);
    let unseen = was.observed && !is.observed;
    (fewer || unseen).then(|| {
        let told = |c: &Controller| {
            let newest = if c.observed { "" } else { ", its controller has not seen its newest state" };
            format!("{} of {} available{newest}", c.available, c.desired)
        };
        Regression::new(format!("{} {}/{}", kind(was.kind), was.namespace, was.name), told(was), told(is))
    })
}

fn packaged(before: &[Packaged], now: &[Packaged]) -> Vec<Regression> {
    let like =
        |all: &[Packaged], one: &Packaged| all.iter().find(|p| (p.kind, &p.name) == (one.kind, &one.name)).cloned();
    let gone = before.iter().filter(|p| p.settled && like(now, p).is_none()).map(|p| (p, "gone"));
    let unsettled = now.iter().filter(|p| !p.settled && like(before, p).is_none_or(|p| p.settled));
    gone.chain(unsettled.map(|p| (p, p.detail.as_str())))
        .map(|(p, now)| Regression::new(format!("packaged component {}", p.name), "settled", now))
        .collect()
}

fn helm_releases(before: &[HelmRelease], now: &[HelmRelease]) -> Vec<Regression> {
    const WELL: &str = "deployed";
    let like = |all: &[HelmRelease], one: &HelmRelease| {
        all.iter().find(|r| (&r.namespace, &r.name) == (&one.namespace, &one.name)).map(|r| r.status.clone())
    };
    let about = |r: &HelmRelease| format!("Helm release {}/{}", r.namespace, r.name);
    let gone = before.iter().filter(|r| r.status == WELL && like(now, r).is_none());
    let broken = now.iter().filter(|r| r.status != WELL).filter_map(|r| match like(before, r) {
        None => Some((r, "absent".to_owned())),
        Some(status) => (status == WELL).then_some((r, status)),
    });
    gone.map(|r| Regression::new(about(r), WELL, "gone"))
        .chain(broken.map(|(r, was)| Regression::new(about(r), was, r.status.clone())))
        .collect()
}

fn node(name: &NodeName, was: &NodeBaseline, is: &NodeBaseline) -> Vec<Regression> {
    let mut worse = Vec::new();
    let mut found = |before: String, now: String| worse.push(Regression::new(format!("node {name}"), before, now));
    if is.cordon != was.cordon {
        found(cordon(&was.cordon), cordon(&is.cordon));
    }
    if is.config_hash != was.config_hash {
        let hash =
            |node: &NodeBaseline| format!("configuration {}", node.config_hash.as_deref().unwrap_or("without hash"));
        found(hash(was), hash(is));
    }
    for taint in was.taints.iter().filter(|t| !is.taints.contains(t)) {
        found(format!("taint {taint}"), "without it".to_owned());
    }
    for (label, value) in was.labels.iter().filter(|(label, _)| !set_anew(label)) {
        match is.labels.get(label) {
            Some(now) if now == value => {}
            Some(now) => found(format!("label {label}={value}"), format!("{label}={now}")),
            None => found(format!("label {label}={value}"), "without it".to_owned()),
        }
    }
    worse
}

/// Labels that the kubelet and K3s write by themselves whenever they start, and may write otherwise in another version;
/// and those by which the system-upgrade-controller notes its plans.
fn set_anew(label: &str) -> bool {
    const KUBELET: [&str; 4] =
        ["kubernetes.io/arch", "kubernetes.io/hostname", "kubernetes.io/os", "node.kubernetes.io/instance-type"];
    const ROLES: [&str; 3] = ["control-plane", "etcd", "master"];
    const PREFIXES: [&str; 4] = ["beta.kubernetes.io/", "k3s.io/", "p2p.k3s.cattle.io/", "plan.upgrade.cattle.io/"];
    KUBELET.contains(&label)
        || label.strip_prefix("node-role.kubernetes.io/").is_some_and(|role| ROLES.contains(&role))
        || PREFIXES.iter().any(|prefix| label.starts_with(prefix))
}

fn both<'a, T>(what: &str, before: &'a Fact<T>, now: &'a Fact<T>, unknown: &mut Vec<String>) -> Option<(&'a T, &'a T)> {
    match (before, now) {
        (Fact::Known(before), Fact::Known(now)) => Some((before, now)),
        (Fact::Unknown(why), _) => {
            unknown.push(format!("{what} before the update: {why}"));
            None
        }
        (_, Fact::Unknown(why)) => {
            unknown.push(format!("{what} now: {why}"));
            None
        }
    }
}

fn kind(kind: ControllerKind) -> &'static str {
    match kind {
        ControllerKind::Deployment => "deployment",
        ControllerKind::StatefulSet => "statefulset",
        ControllerKind::DaemonSet => "daemonset",
    }
}

fn cordon(cordon: &Cordon) -> String {
    match cordon {
        Cordon::None => "open".to_owned(),
        Cordon::Ours { mark } => format!("cordoned by Kadence ({})", mark.rollout),
        Cordon::Foreign => "cordoned".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::PackagedKind;

    fn deployment(desired: u32, available: u32) -> Controller {
        Controller {
            kind: ControllerKind::Deployment,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            desired,
            available,
            images: Vec::new(),
            observed: true,
        }
    }

    fn addon(name: &str, settled: bool) -> Packaged {
        let (version, detail) = (String::new(), "job helm-install failed".to_owned());
        Packaged { kind: PackagedKind::Addon, name: name.to_owned(), version, settled, detail }
    }

    fn release(status: &str) -> HelmRelease {
        HelmRelease { namespace: "shop".to_owned(), name: "db".to_owned(), revision: 1, status: status.to_owned() }
    }

    fn labelled(labels: &[(&str, &str)]) -> BTreeMap<NodeName, NodeBaseline> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let node = NodeBaseline { cordon: Cordon::None, taints: Vec::new(), labels, config_hash: None };
        [("n1".into(), node)].into()
    }

    fn baseline() -> Baseline {
        Baseline {
            taken: Timestamp::UNIX_EPOCH,
            controllers: Fact::Known(Vec::new()),
            services: Fact::Known(BTreeMap::new()),
            troubled: Fact::Known(BTreeMap::new()),
            packaged: Fact::Known(Vec::new()),
            helm_releases: Fact::Known(Vec::new()),
            broken_api_services: Fact::Known(Vec::new()),
            nodes: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }

    fn worse(before: impl FnOnce(&mut Baseline), now: impl FnOnce(&mut Baseline)) -> Vec<String> {
        let (mut was, mut is) = (baseline(), baseline());
        before(&mut was);
        now(&mut is);
        let found = regressions(&was, &is).expect("all is known");
        found.into_iter().map(|r| format!("{}: {} -> {}", r.about, r.before, r.now)).collect()
    }

    #[test]
    fn nothing_that_was_available_may_be_gone() {
        let compare = |was: Controller, is: Controller| {
            worse(|b| b.controllers = Fact::Known(vec![was]), |b| b.controllers = Fact::Known(vec![is])).len()
        };
        let cases = [
            // Before (available of desired), now, regressions.
            ((2, 3), (0, 3), 1),
            ((2, 3), (1, 3), 1),
            ((2, 3), (2, 3), 0),
            ((3, 3), (2, 3), 1),
            ((3, 3), (3, 3), 0),
            // Scaled down by somebody meanwhile; scaled up, and the new ones are not there yet.
            ((3, 3), (1, 1), 0),
            ((3, 3), (0, 1), 1),
            ((3, 3), (3, 5), 0),
            // More than were wanted, while one rolled out.
            ((4, 3), (3, 3), 0),
            ((0, 3), (0, 3), 0),
        ];
        for ((available, desired), (now_available, now_desired), expected) in cases {
            let found = compare(deployment(desired, available), deployment(now_desired, now_available));
            assert_eq!(found, expected, "{available} of {desired}, then {now_available} of {now_desired}");
        }
        let unseen = Controller { observed: false, ..deployment(3, 3) };
        assert_eq!(compare(deployment(3, 3), unseen.clone()), 1, "its status speaks of an older generation");
        assert_eq!(compare(unseen.clone(), unseen), 0, "as before");
    }

    #[test]
    fn a_component_or_release_that_is_gone_is_worse() {
        let packaged = |was: Vec<Packaged>, is: Vec<Packaged>| {
            worse(|b| b.packaged = Fact::Known(was), |b| b.packaged = Fact::Known(is))
        };
        assert_eq!(
            packaged(vec![addon("coredns", true), addon("traefik", true)], vec![addon("traefik", false)]),
            [
                "packaged component coredns: settled -> gone",
                "packaged component traefik: settled -> job helm-install failed"
            ]
        );
        assert!(packaged(vec![addon("coredns", false)], vec![addon("coredns", false)]).is_empty());
        assert!(packaged(vec![addon("coredns", false)], vec![]).is_empty(), "it was not well before");
        assert_eq!(packaged(vec![], vec![addon("new", false)]).len(), 1, "a new one that does not settle");

        let releases = |was: Vec<HelmRelease>, is: Vec<HelmRelease>| {
            worse(|b| b.helm_releases = Fact::Known(was), |b| b.helm_releases = Fact::Known(is))
        };
        assert_eq!(releases(vec![release("deployed")], vec![]), ["Helm release shop/db: deployed -> gone"]);
        assert_eq!(releases(vec![release("deployed")], vec![release("failed")]).len(), 1);
        assert!(releases(vec![release("failed")], vec![release("failed")]).is_empty());
        assert!(releases(vec![release("failed")], vec![]).is_empty());
    }

    #[test]
    fn labels_stay_but_for_those_that_k3s_sets_anew() {
        let compare =
            |was: &[(&str, &str)], is: &[(&str, &str)]| worse(|b| b.nodes = labelled(was), |b| b.nodes = labelled(is));
        assert_eq!(compare(&[("zone", "a")], &[]), ["node n1: label zone=a -> without it"]);
        assert_eq!(compare(&[("zone", "a")], &[("zone", "b")]), ["node n1: label zone=a -> zone=b"]);
        assert!(compare(&[("zone", "a")], &[("zone", "a"), ("more", "b")]).is_empty());
        // A role that a person gave is theirs, the roles that K3s gives are not.
        assert_eq!(compare(&[("node-role.kubernetes.io/worker", "")], &[]).len(), 1);
        assert!(
            compare(&[("node-role.kubernetes.io/master", "true"), ("beta.kubernetes.io/os", "linux")], &[]).is_empty()
        );
        assert!(compare(&[("plan.upgrade.cattle.io/x", "1")], &[("plan.upgrade.cattle.io/x", "2")]).is_empty());
    }

    #[test]
    fn what_is_not_known_is_no_comparison() {
        let unknown = Baseline { controllers: Fact::unknown("no answer"), ..baseline() };
        assert_eq!(regressions(&unknown, &baseline()), Err(vec!["workloads before the update: no answer".to_owned()]));
        assert_eq!(regressions(&baseline(), &unknown), Err(vec!["workloads now: no answer".to_owned()]));
    }
}
