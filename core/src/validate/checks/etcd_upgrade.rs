//! The crossing from etcd 3.5 to 3.6.

use std::collections::BTreeSet;

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;
use crate::ident::NodeName;
use crate::inventory::{Datastore, EtcdMember, EtcdRole};
use crate::knowledge::components::{Component, ComponentVersion};

pub(super) const CHECK: Check = Check {
    code: "ETCD-UPGRADE",
    number: 4,
    title: "etcd may go to the target's version",
    why: "etcd 3.5 can keep members that were removed and learners that were promoted only half; 3.6 reads them, and the \
          membership falls apart. 3.5.26 is the only origin that upstream names as safe",
    weight: Weight::Invariant,
    needs: &[Need::Target],
    judge,
};

/// The only etcd that upstream names as a safe origin for 3.6 (etcd#19557, etcd#20793, k3s#13485).
const SAFE_ORIGIN: (u64, u64, u64) = (3, 5, 26);

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    let members = match &question.inventory.datastore {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "the datastore", why)],
        Fact::Known(Datastore::Sqlite | Datastore::External) => {
            return vec![Answer::pass("K3s runs no etcd of its own in this cluster")];
        }
        Fact::Known(Datastore::EmbeddedEtcd { members }) => members,
    };
    let mut answers = Vec::new();
    let mut running = Vec::new();
    let runs_none = |etcd: &Fact<EtcdRole>| etcd.is(&EtcdRole::None);
    for node in question.inventory.servers().filter(|n| !runs_none(&n.etcd)) {
        let local = node.host.as_ref().and_then(|h| match &h.etcd {
            Some(local) => local.as_ref(),
            None => Fact::unknown("etcd was not asked there"),
        });
        match local.and_then(|l| l.version.as_ref()) {
            Fact::Unknown(why) => answers.push(Answer::unknown(&node.name, "the version of its etcd", &why)),
            Fact::Known(text) => match ComponentVersion::parse(text) {
                Some(version) => running.push((&node.name, version)),
                None => {
                    answers.push(Answer::unknown(&node.name, "the version of its etcd", &format!("it says `{text}`")));
                }
            },
        }
    }
    let old = |v: &ComponentVersion| (v.major, v.minor) < (3, 6);
    let target = question.knowledge.components(&hop.to).and_then(|c| c.get(Component::Etcd));
    let crosses = running.iter().any(|(_, v)| old(v));
    match target {
        _ if !crosses => {}
        None => answers.push(
            Answer::unknown("cluster", &format!("the etcd inside {}", hop.to), "no release table has it")
                .fact(etcd_versions(&running))
                .remedy("choose a release whose components are known, or a newer Kadence"),
        ),
        Some(target) if old(target) => {}
        Some(target) if (target.major, target.minor) > (3, 6) => answers.push(
            Answer::block("cluster", format!("from etcd 3.5 to {target} a minor of etcd would be skipped"))
                .fact(etcd_versions(&running))
                .remedy("go to a release with etcd 3.6 first"),
        ),
        Some(target) => {
            for (name, version) in running.iter().filter(|(_, v)| old(v)) {
                if (version.major, version.minor, version.patch.unwrap_or(0)) < SAFE_ORIGIN {
                    answers.push(
                        Answer::block(name, format!("{name} runs etcd {version}, and the way to {target} is safe from 3.5.26 only"))
                            .fact(format!("on {name}, curl http://127.0.0.1:2381/metrics: etcd_server_version {version}"))
                            .remedy("update to a release with etcd 3.5.26 first (v1.32.11+k3s3, v1.33.7+k3s3 or a later one of these minors)"),
                    );
                }
            }
            match members {
                Fact::Unknown(why) => answers.push(Answer::unknown("cluster", "the list of etcd's members", why)),
                Fact::Known(members) => answers.extend(strangers(question, members)),
            }
        }
    }
    answers
}

/// A member without a server, or a server without its member: on 3.5 a removed member can live on unseen.
fn strangers(question: &Question<'_>, members: &[EtcdMember]) -> Option<Answer> {
    let listed_by_etcd: BTreeSet<NodeName> = members.iter().filter_map(EtcdMember::node).collect();
    let servers = question.inventory.servers().filter(|n| !n.etcd.is(&EtcdRole::None));
    let running: BTreeSet<NodeName> = servers.map(|n| n.name.clone()).collect();
    (listed_by_etcd != running || members.len() != running.len()).then(|| {
        Answer::block("cluster", "etcd's members are not the servers that run etcd")
            .fact(format!("etcd's member list: {}", listed(members.iter().map(|m| &m.name))))
            .fact(format!("servers with etcd: {}", listed(&running)))
            .remedy("remove the member that has no server, or let the server join, before etcd goes to 3.6")
    })
}

fn etcd_versions(running: &[(&NodeName, ComponentVersion)]) -> String {
    format!("etcd runs as {}", listed(running.iter().map(|(name, version)| format!("{version} on {name}"))))
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::Inventory;
    use crate::inventory::example::{ha, host_mut, sqlite};
    use crate::inventory::{Datastore, EtcdMember};
    use crate::validate::checks::tests::{Case, blocks, passes, silent, unknown};

    fn etcd(inventory: &mut Inventory, name: &str, version: Fact<String>) {
        let Some(Fact::Known(etcd)) = &mut host_mut(inventory, name).etcd else { return };
        etcd.version = version;
    }

    #[test]
    fn only_3_5_26_may_go_to_3_6() {
        passes(&Case::of(&ha("v1.33.10+k3s1")).to("v1.34.10+k3s1").run(), "ETCD-UPGRADE");
        let inventory = ha("v1.33.7+k3s1");
        blocks(&Case::of(&inventory).to("v1.34.10+k3s1").run(), "ETCD-UPGRADE", "safe from 3.5.26 only");
        // The boundary lies within a minor.
        blocks(&Case::of(&inventory).to("v1.33.11+k3s1").run(), "ETCD-UPGRADE", "safe from 3.5.26 only");
        passes(&Case::of(&inventory).to("v1.33.7+k3s3").run(), "ETCD-UPGRADE");
    }

    #[test]
    fn a_zombie_member_blocks_the_crossing_only() {
        let zombie = |mut inventory: Inventory| {
            let Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) = &mut inventory.datastore
            else {
                return inventory;
            };
            let url = "https://10.0.0.19:2380".to_owned();
            members.push(EtcdMember {
                id: "9".into(),
                name: "s9-0a1b2c39".into(),
                peer_urls: vec![url],
                learner: false,
            });
            inventory
        };
        let case = Case::of(&zombie(ha("v1.33.10+k3s1"))).to("v1.34.10+k3s1");
        blocks(&case.run(), "ETCD-UPGRADE", "not the servers that run etcd");
        passes(&Case::of(&zombie(ha("v1.36.3+k3s1"))).to("v1.36.4+k3s1").run(), "ETCD-UPGRADE");
    }

    #[test]
    fn what_is_not_known_blocks() {
        let mut inventory = ha("v1.33.10+k3s1");
        unknown(&Case::of(&inventory).to("v1.33.99+k3s1").run(), "ETCD-UPGRADE", "the etcd inside v1.33.99+k3s1");
        etcd(&mut inventory, "s2", Fact::unknown("etcd does not tell etcd_server_version"));
        unknown(&Case::of(&inventory).to("v1.34.10+k3s1").run(), "ETCD-UPGRADE", "does not tell");
    }

    #[test]
    fn it_is_about_embedded_etcd_and_a_target() {
        passes(&Case::of(&sqlite("v1.33.7+k3s1")).to("v1.34.10+k3s1").run(), "ETCD-UPGRADE");
        silent(&Case::of(&ha("v1.33.7+k3s1")).run(), "ETCD-UPGRADE");
    }
}
