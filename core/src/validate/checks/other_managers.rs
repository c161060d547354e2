//! Who else changes versions, cordons or nodes.

use super::{Answer, Check, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::Manager;

pub(super) const CHECK: Check = Check {
    code: "OTHER-MANAGERS",
    number: 26,
    title: "nobody else changes versions or restarts nodes",
    why: "two that update the same nodes restart two servers at once, and each takes back what the other did",
    weight: Weight::Gate,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    match &question.inventory.surroundings.managers {
        Fact::Unknown(why) => vec![Answer::unknown("cluster", "who else manages this cluster", why)],
        Fact::Known(managers) => managers.iter().map(one).collect(),
    }
}

fn one(manager: &Manager) -> Answer {
    match manager {
        Manager::UpgradePlan { name, applying, rancher, gitops } => {
            let what = if applying.is_empty() {
                format!("the Plan {name} of the system-upgrade-controller may update the same nodes at any time")
            } else {
                format!("the Plan {name} of the system-upgrade-controller is updating {}", listed(applying))
            };
            let remedy = match (rancher, gitops, applying.is_empty()) {
                (true, _, _) => "let Rancher update this cluster, or switch its version management off there",
                (_, true, _) => "take the Plan out of the repository that GitOps applies it from",
                (_, _, true) => "delete the Plan (kubectl get plans.upgrade.cattle.io --all-namespaces)",
                (_, _, false) => "wait until it is done, then delete the Plan; if it hangs, uncordon its nodes by hand",
            };
            Answer::block(name, what).fact("kubectl get plans.upgrade.cattle.io --all-namespaces --output yaml").remedy(remedy)
        }
        Manager::Rancher { evidence } => Answer::block("Rancher", "Rancher manages this cluster, its version too")
            .fact(format!("{evidence} exists"))
            .remedy("update it from Rancher; or switch Rancher's version management for it off, and waive this check"),
        Manager::KuredLock { node } => Answer::block(node, format!("kured holds its reboot lock: {node} is about to restart"))
            .fact("the annotation weave.works/kured-node-lock of kured's DaemonSet")
            .remedy("wait until the reboot is done; a lock that was left behind is removed with that annotation"),
        // A restart of K3s puts its packaged manifests in place again; what comes from elsewhere it leaves alone.
        Manager::GitOps { object, owner } => Answer::warn(object, format!("{object} belongs to {owner}"))
            .fact(format!("the labels of {object}"))
            .remedy("nothing, if it is yours; if it is packaged with K3s, the two will change it back and forth: leave it to K3s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn with(manager: Manager) -> Vec<crate::validate::finding::Finding> {
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.surroundings.managers = Fact::Known(vec![manager]);
        Case::of(&inventory).run()
    }

    #[test]
    fn whoever_restarts_nodes_blocks() {
        let plan = |applying: &[&str], rancher| Manager::UpgradePlan {
            name: "system-upgrade/server-plan".to_owned(),
            applying: applying.iter().map(|&n| n.to_owned()).collect(),
            rancher,
            gitops: false,
        };
        blocks(&with(plan(&["s2"], false)), "OTHER-MANAGERS", "is updating s2");
        blocks(&with(plan(&[], false)), "OTHER-MANAGERS", "at any time");
        blocks(&with(plan(&[], true)), "OTHER-MANAGERS", "at any time");
        let rancher = Manager::Rancher { evidence: "Deployment cattle-system/cattle-cluster-agent".to_owned() };
        blocks(&with(rancher), "OTHER-MANAGERS", "Rancher manages this cluster");
        blocks(&with(Manager::KuredLock { node: "s2".to_owned() }), "OTHER-MANAGERS", "s2 is about to restart");
    }

    #[test]
    fn gitops_of_the_users_own_charts_only_warns() {
        let own =
            Manager::GitOps { object: "HelmChart shop/db".to_owned(), owner: "Flux Kustomization apps".to_owned() };
        warns(&with(own), "OTHER-MANAGERS", "HelmChart shop/db belongs to");
        passes(&Case::of(&ha("v1.36.3+k3s1")).run(), "OTHER-MANAGERS");
    }

    #[test]
    fn managers_that_are_not_known_block() {
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.surroundings.managers = Fact::unknown("forbidden");
        unknown(&Case::of(&inventory).run(), "OTHER-MANAGERS", "forbidden");
    }
}
