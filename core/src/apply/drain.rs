//! What a drain does to each pod of a node, and what is lost by it.

use crate::inventory::Pod;

/// The pods of a node by what a drain does with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drainage {
    /// Evicted, in this order: by namespace and name.
    pub evict: Vec<Pod>,
    /// Stay: DaemonSet pods come back at once, mirror pods belong to a file on the node, finished pods hold nothing.
    pub stay: Vec<String>,
    /// Why the node may not be drained at all: pods that nothing brings back.
    pub refuse: Vec<String>,
    /// What is lost or cannot run meanwhile, each named with its pod.
    pub losses: Vec<String>,
}

/// Classes the pods that are on a node.
pub fn classify(pods: &[Pod]) -> Drainage {
    let mut drainage = Drainage::default();
    let mut pods: Vec<&Pod> = pods.iter().collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if pod.mirror || pod.owner.as_deref() == Some("DaemonSet") || pod.finished() {
            drainage.stay.push(name);
            continue;
        }
        if pod.owner.is_none() {
            drainage.refuse.push(format!("{name} is a bare pod: nothing would bring it back"));
            continue;
        }
        for volume in &pod.empty_dirs {
            drainage.losses.push(format!("{name} loses its emptyDir `{volume}`"));
        }
        for claim in &pod.node_bound_claims {
            drainage.losses.push(format!("{name} cannot run elsewhere: its claim {claim} is bound to this node"));
        }
        if let Some(nodes) = &pod.pinned_to
            && nodes.iter().all(|n| Some(n) == pod.node.as_ref())
        {
            drainage.losses.push(format!("{name} has nowhere to go: it may only run on this node"));
        }
        drainage.evict.push(pod.clone());
    }
    drainage
}

impl Pod {
    /// Whether its containers have all ended for good.
    pub fn finished(&self) -> bool {
        use crate::inventory::PodPhase;
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::inventory::PodPhase;

    fn pod(name: &str, owner: Option<&str>) -> Pod {
        Pod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            node: Some("a1".into()),
            labels: BTreeMap::new(),
            phase: PodPhase::Running,
            owner: owner.map(str::to_owned),
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

    #[test]
    fn a_bare_pod_refuses_the_drain() {
        let drainage = classify(&[pod("debug", None), pod("web", Some("ReplicaSet"))]);
        assert_eq!(drainage.refuse, ["shop/debug is a bare pod: nothing would bring it back"]);
        assert_eq!(drainage.evict.len(), 1);
    }

    #[test]
    fn a_finished_bare_pod_holds_nothing() {
        let finished = Pod { phase: PodPhase::Succeeded, ..pod("job", None) };
        assert_eq!(classify(&[finished]).refuse, Vec::<String>::new());
    }

    #[test]
    fn what_is_lost_is_named() {
        let cache = Pod { empty_dirs: vec!["cache".to_owned()], ..pod("web", Some("ReplicaSet")) };
        let ledger = Pod { node_bound_claims: vec!["data".to_owned()], ..pod("ledger-0", Some("StatefulSet")) };
        let pinned = Pod { pinned_to: Some(vec!["a1".into()]), ..pod("gpu", Some("ReplicaSet")) };
        let drainage = classify(&[cache, ledger, pinned]);
        assert_eq!(
            drainage.losses,
            [
                "shop/gpu has nowhere to go: it may only run on this node",
                "shop/ledger-0 cannot run elsewhere: its claim data is bound to this node",
                "shop/web loses its emptyDir `cache`",
            ]
        );
    }

    #[test]
    fn daemons_and_mirror_pods_stay() {
        let mirror = Pod { mirror: true, ..pod("static", None) };
        assert_eq!(classify(&[mirror, pod("log", Some("DaemonSet"))]).stay, ["shop/log", "shop/static"]);
    }
}
