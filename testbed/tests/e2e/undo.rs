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

    // What is lost is said, and nobody said yes to it.
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
