//! Storage that is whole and at rest.

use super::{Answer, Check, Question, Weight, listed};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "STORAGE",
    number: 15,
    title: "storage is healthy and at rest",
    why: "while a volume is being rebuilt or copied, the node that restarts next may hold its last good replica",
    weight: Weight::Gate,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let storage = match &question.inventory.surroundings.storage {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "whether storage is healthy", why)],
        Fact::Known(storage) => storage,
    };
    let mut answers = Vec::new();
    if !storage.longhorn_unhealthy.is_empty() {
        answers.push(
            Answer::block(
                "Longhorn",
                format!("Longhorn volumes are attached and not healthy: {}", listed(&storage.longhorn_unhealthy)),
            )
            .fact("kubectl get volumes.longhorn.io --all-namespaces: ROBUSTNESS")
            .remedy("wait until they are rebuilt"),
        );
    }
    if !storage.longhorn_busy.is_empty() {
        answers.push(
            Answer::block("Longhorn", format!("Longhorn is at work: {}", listed(&storage.longhorn_busy)))
                .fact("kubectl get snapshots.longhorn.io,backups.longhorn.io --all-namespaces")
                .remedy("wait until its snapshots and backups are done"),
        );
    }
    for (name, health) in storage.ceph.iter().filter(|(_, health)| *health != "HEALTH_OK") {
        answers.push(
            Answer::block(name, format!("the Ceph cluster {name} says {health}"))
                .fact("kubectl get cephclusters --all-namespaces: HEALTH")
                .remedy("wait for HEALTH_OK; what it complains about is shown by `ceph health detail`"),
        );
    }
    if !storage.dangling_attachments.is_empty() {
        answers.push(
            Answer::block("cluster", format!("volumes hang between nodes: {}", listed(&storage.dangling_attachments)))
                .fact("kubectl get volumeattachments")
                .remedy("wait until they are detached; one of a node that is gone has to be deleted by hand"),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::fact::Fact;
    use crate::inventory::Storage;
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    fn with(storage: Fact<Storage>) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.surroundings.storage = storage;
        Case::of(&inventory)
    }

    fn ceph(health: &str) -> Fact<Storage> {
        let ceph = BTreeMap::from([("rook-ceph/main".to_owned(), health.to_owned())]);
        Fact::Known(Storage { ceph, ..Storage::default() })
    }

    #[test]
    fn volumes_that_are_not_whole_block() {
        let one = vec!["longhorn-system/pvc-1".to_owned()];
        let unhealthy = Storage { longhorn_unhealthy: one.clone(), ..Storage::default() };
        blocks(&with(Fact::Known(unhealthy)).run(), "STORAGE", "not healthy: longhorn-system/pvc-1");
        let busy = Storage { longhorn_busy: one.clone(), ..Storage::default() };
        blocks(&with(Fact::Known(busy)).run(), "STORAGE", "at work");
        let dangling = Storage { dangling_attachments: one, ..Storage::default() };
        blocks(&with(Fact::Known(dangling)).run(), "STORAGE", "hang between nodes");
        blocks(&with(ceph("HEALTH_WARN")).run(), "STORAGE", "HEALTH_WARN");
        passes(&with(ceph("HEALTH_OK")).run(), "STORAGE");
    }

    #[test]
    fn storage_that_is_not_known_blocks() {
        unknown(&with(Fact::unknown("forbidden")).run(), "STORAGE", "forbidden");
    }
}
