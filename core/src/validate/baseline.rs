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
                    let baseline = NodeBaseline {
                        cordon: object.cordon.clone(),
                        taints: object.taints.clone(),
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
        for was in before.iter().filter(|c| c.available >= c.desired) {
            let is = now.iter().find(|c| (c.kind, &c.namespace, &c.name) == (was.kind, &was.namespace, &was.name));
            // Deleted by somebody meanwhile is a change of the world, not a regression of the update.
            let Some(is) = is else { continue };
            if !is.observed || is.available < is.desired {
                worse.push(Regression {
                    about: format!("{} {}/{}", kind(was.kind), was.namespace, was.name),
                    before: format!("{} of {} available", was.available, was.desired),
                    now: format!("{} of {} available", is.available, is.desired),
                });
            }
        }
    }
    if let Some((before, now)) = both("services", &before.services, &now.services, &mut unknown) {
        for (name, count) in before {
            if *count > 0 && now.get(name).is_some_and(|n| *n == 0) {
                worse.push(Regression {
                    about: format!("service {name}"),
                    before: format!("{count} ready endpoints"),
                    now: "none".to_owned(),
                });
            }
        }
    }
    if let Some((before, now)) = both("pods", &before.troubled, &now.troubled, &mut unknown) {
        for (name, reasons) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
            worse.push(Regression {
                about: format!("pod {name}"),
                before: "no trouble".to_owned(),
                now: reasons.join(", "),
            });
        }
    }
    if let Some((before, now)) = both("packaged components", &before.packaged, &now.packaged, &mut unknown) {
        for is in now.iter().filter(|p| !p.settled) {
            let was_settled =
                before.iter().find(|p| (p.kind, &p.name) == (is.kind, &is.name)).is_none_or(|p| p.settled);
            if was_settled {
                worse.push(Regression {
                    about: format!("packaged component {}", is.name),
                    before: "settled".to_owned(),
                    now: is.detail.clone(),
                });
            }
        }
    }
    if let Some((before, now)) = both("Helm releases", &before.helm_releases, &now.helm_releases, &mut unknown) {
        for is in now.iter().filter(|r| r.status != "deployed") {
            let was = before.iter().find(|r| (&r.namespace, &r.name) == (&is.namespace, &is.name));
            if was.is_none_or(|r| r.status == "deployed") {
                worse.push(Regression {
                    about: format!("Helm release {}/{}", is.namespace, is.name),
                    before: was.map_or_else(|| "absent".to_owned(), |r| r.status.clone()),
                    now: is.status.clone(),
                });
            }
        }
    }
    if let Some((before, now)) =
        both("API services", &before.broken_api_services, &now.broken_api_services, &mut unknown)
    {
        // The message behind the name changes while the backend starts; the name is what was well or not.
        let name = |text: &str| text.split([':', ' ']).next().unwrap_or_default().to_owned();
        let known: Vec<String> = before.iter().map(|s| name(s)).collect();
        for service in now.iter().filter(|s| !known.contains(&name(s))) {
            worse.push(Regression {
                about: format!("API service {}", name(service)),
                before: "served".to_owned(),
                now: format!("not served: {service}"),
            });
        }
    }
    for (name, was) in &before.nodes {
        let Some(is) = now.nodes.get(name) else {
            worse.push(Regression {
                about: format!("node {name}"),
                before: "there".to_owned(),
                now: "gone".to_owned(),
            });
            continue;
        };
        if is.cordon != was.cordon {
            worse.push(Regression {
                about: format!("node {name}"),
                before: cordon(&was.cordon),
                now: cordon(&is.cordon),
            });
        }
        if is.config_hash != was.config_hash {
            worse.push(Regression {
                about: format!("node {name}"),
                before: format!("configuration {}", was.config_hash.as_deref().unwrap_or("without hash")),
                now: format!("configuration {}", is.config_hash.as_deref().unwrap_or("without hash")),
            });
        }
        for taint in was.taints.iter().filter(|t| !is.taints.contains(t)) {
            worse.push(Regression {
                about: format!("node {name}"),
                before: format!("taint {taint}"),
                now: "without it".to_owned(),
            });
        }
    }
    for (name, passed) in &before.probes {
        if *passed && now.probes.get(name) != Some(&true) {
            worse.push(Regression {
                about: format!("probe {name}"),
                before: "passed".to_owned(),
                now: "fails".to_owned(),
            });
        }
    }
    if unknown.is_empty() { Ok(worse) } else { Err(unknown) }
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
