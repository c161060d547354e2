//! The way back of several servers, and across minors: only a restore of the datastore is one.

use kadence_testbed::{Cluster, Person};

use crate::update::{keep, kept};
use crate::{In, skipped, told, versions};

#[test]
fn a_minor_of_three_servers_is_taken_back_by_a_restore() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let Some(before) = v.minor_before.clone() else { return skipped("the release source has one minor only") };
    let cluster = Cluster::up("ha3a1", "e2e-restore", &before);
    let person = Person::before(&cluster);
    keep(&cluster, "before");
    person.run(&["plan", "shop", "--to", &v.old]).exits(0).says("restore");
    person.run(&["apply", "shop", "--to", &v.old, "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    keep(&cluster, "after");
    let starts: Vec<usize> = cluster.names().iter().map(|n| cluster.starts(n)).collect();

    cluster.scene("what is lost is said, and nobody said yes to it");
    person.run(&["rollback", "shop"]).exits(3).says("lost");
    cluster.assert_all_on(&v.old);
    assert_eq!(starts, cluster.names().iter().map(|n| cluster.starts(n)).collect::<Vec<_>>(), "nothing was restarted");

    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&before);
    assert_eq!(kept(&cluster), ["before"], "what came after the snapshot is lost, as was said");
    // A write arrives everywhere: one cluster, not three.
    keep(&cluster, "later");
    for server in cluster.servers() {
        let maps = cluster.ssh(&server, "k3s kubectl get configmaps -o name");
        assert!(maps.contains("configmap/later"), "{server}: {maps}");
    }
    // The units start again at a boot.
    for name in cluster.names() {
        let enabled = cluster.enter(&name, &format!("systemctl is-enabled {}", cluster.unit(&name)));
        assert_eq!(enabled.trim(), "enabled", "{name}");
    }
}

#[test]
fn a_minor_of_one_server_with_sqlite_is_taken_back_by_a_restore() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let Some(before) = v.minor_before.clone() else { return skipped("the release source has one minor only") };
    let cluster = Cluster::up("sqlite1", "e2e-sqrest", &before);
    let person = Person::before(&cluster);
    keep(&cluster, "before");
    person.run(&["apply", "shop", "--to", &v.old, "--yes"]).exits(0);
    cluster.assert_all_on(&v.old);
    keep(&cluster, "after");
    person.run(&["rollback", "shop"]).exits(3).says("lost");
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&before);
    assert_eq!(kept(&cluster), ["before"]);
}

/// Nothing on the host reads SQLite, so K3s is stopped for the backup, and the copy is read where Kadence runs. What
/// then lies on the node is damaged: the restore uses the vault's.
#[test]
fn one_server_without_sqlite3_and_python3_is_backed_up_by_a_stop_and_restored_out_of_the_vault() {
    if !told(In::Full) {
        return;
    }
    let v = versions();
    let Some(before) = v.minor_before.clone() else { return skipped("the release source has one minor only") };
    let cluster = Cluster::up("sqlite1", "e2e-sqbare", &before);
    cluster.enter("s1", "for tool in sqlite3 python3; do rm -f $(command -v $tool); done");
    let person = Person::before(&cluster);
    keep(&cluster, "before");
    let starts = cluster.starts("s1");
    person.run(&["apply", "shop", "--to", &v.old]).exits(3).says("outage");
    assert_eq!(cluster.starts("s1"), starts, "K3s is not stopped for a backup that nobody consented to");
    person.run(&["apply", "shop", "--to", &v.old, "--yes"]).exits(0).says("stopped for a copy of SQLite");
    cluster.assert_all_on(&v.old);
    assert_eq!(cluster.starts("s1"), starts + 2, "once for the copy, once with the new binary");
    keep(&cluster, "after");

    cluster.enter("s1", "for copy in /var/lib/kadence/cold/*/state.db; do echo damaged > $copy; done");
    person.run(&["rollback", "shop", "--yes"]).exits(0);
    cluster.assert_all_on(&before);
    assert_eq!(kept(&cluster), ["before"]);
}
