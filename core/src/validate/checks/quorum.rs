//! The margin that etcd has when one server restarts.

use super::{Answer, Check, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::{Datastore, EtcdMember, Node};

pub(super) const CHECK: Check = Check {
    code: "QUORUM",
    number: 3,
    title: "etcd keeps its quorum while one server restarts",
    why: "without a quorum the API accepts no writes, and a membership that is not settled can get stuck for good",
    weight: Weight::Invariant,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let members = match &question.inventory.datastore {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "the datastore", why)],
        Fact::Known(Datastore::Sqlite | Datastore::External) => {
            return vec![Answer::pass("there is no etcd in this cluster whose quorum could be lost")];
        }
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Unknown(why) }) => {
            return vec![Answer::unknown("cluster", "the list of etcd's members", why)];
        }
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) => members,
    };
    // Before each step of a way back the quorum is judged anew; the server that is down may be the one to be cured.
    let block = |about: &str, what: String| {
        if question.goes_back { Answer::warn(about, what) } else { Answer::block(about, what) }
    };
    let mut answers = Vec::new();
    let voters: Vec<&EtcdMember> = members.iter().filter(|m| !m.learner).collect();
    for learner in members.iter().filter(|m| m.learner) {
        answers.push(
            block(
                &learner.name,
                format!("the etcd member {} is a learner: it copies data and has no vote", learner.name),
            )
            .fact("k3s etcdctl member list, or GET /v3/cluster/member/list on a server")
            .remedy("wait until it is a voter; if it stays a learner, remove the member and let its server join anew"),
        );
    }
    let (mut sick, mut unknown) = (Vec::new(), Vec::new());
    for voter in &voters {
        match health(voter, question) {
            Health::Healthy => {}
            Health::Sick(why) => sick.push(format!("{}: {why}", voter.name)),
            Health::Unknown(why) => unknown.push(format!("{}: {why}", voter.name)),
        }
    }
    let needed = voters.len() / 2 + 1;
    let healthy = voters.len() - sick.len() - unknown.len();
    let facts = |answer: Answer| {
        answer
            .fact(format!("etcd's members: {}", listed(members.iter().map(|m| &m.name))))
            .fact(format!("on each server, curl http://127.0.0.1:2381/health: {healthy} of {} healthy", voters.len()))
    };
    if voters.len() <= 2 {
        if !sick.is_empty() {
            let what = format!("with {} etcd voters every one has to be healthy: {}", voters.len(), sick.join("; "));
            answers.push(
                facts(block("cluster", what)).remedy("bring etcd back on the server that is named, then check again"),
            );
        } else if let Some(why) = unknown.first() {
            answers.push(facts(Answer::unknown("cluster", "whether every etcd voter is healthy", why)));
        } else if voters.len() == 2 {
            answers.push(
                facts(Answer::warn(
                    "cluster",
                    "etcd has two members: while one restarts the other has no quorum, so no writes",
                ))
                .remedy("add a third server; else the plan declares this outage, and apply asks for your consent"),
            );
        }
    } else if healthy < needed + 1 {
        let what = format!(
            "etcd has no server to spare: {healthy} of {} voters are healthy, {needed} must stay so while one restarts",
            voters.len()
        );
        answers.push(if sick.len() + needed < voters.len() {
            // Those that are known to be sick leave a margin; what is missing is knowledge.
            facts(Answer::unknown("cluster", "whether enough etcd voters are healthy", &unknown.join("; ")))
        } else {
            let answer =
                facts(block("cluster", what)).remedy("bring etcd back on the servers that are named, then check again");
            sick.iter().chain(&unknown).fold(answer, |answer, why| answer.fact(why.clone()))
        });
    } else {
        for why in sick {
            answers.push(
                facts(Answer::warn("cluster", format!("an etcd voter is not healthy: {why}")))
                    .remedy("bring it back first: with it down, the next server to fail stops the API"),
            );
        }
        for why in unknown {
            answers.push(
                facts(Answer::unsure("cluster", format!("whether an etcd voter is healthy is not known: {why}")))
                    .remedy("make it known: the others are enough, and one more to fail is not"),
            );
        }
    }
    answers
}

enum Health {
    Healthy,
    Sick(String),
    Unknown(String),
}

/// What the member says of itself, on its own node: conditions on the Node are minutes old after a restart.
fn health(member: &EtcdMember, question: &Question<'_>) -> Health {
    let Some(node) = member.node().and_then(|name| question.inventory.node(&name)) else {
        return Health::Unknown("no server of that name is known".to_owned());
    };
    let stopped = node.host.known().and_then(|h| h.install.known()).filter(|i| i.unit.main_pid == 0);
    if let Some(install) = stopped {
        return Health::Sick(format!("its {} does not run", install.unit.name));
    }
    match local(node) {
        Fact::Unknown(why) => Health::Unknown(why),
        Fact::Known(etcd) if !etcd.has_leader => Health::Sick("it sees no leader".to_owned()),
        Fact::Known(etcd) if !etcd.healthy => Health::Sick("/health is not true".to_owned()),
        Fact::Known(_) => Health::Healthy,
    }
}

fn local(node: &Node) -> Fact<&crate::inventory::EtcdLocal> {
    node.host.as_ref().and_then(|host| match &host.etcd {
        Some(local) => local.as_ref(),
        None => Fact::unknown("no etcd runs on its node"),
    })
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::{ha, host_mut, sqlite};
    use crate::inventory::{Datastore, Inventory};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn sick(inventory: &mut Inventory, name: &str) {
        let Some(Fact::Known(etcd)) = &mut host_mut(inventory, name).etcd else { return };
        etcd.healthy = false;
    }

    fn members(inventory: &mut Inventory, keep: usize) {
        let Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) = &mut inventory.datastore else {
            return;
        };
        members.truncate(keep);
    }

    #[test]
    fn three_healthy_voters_have_one_to_spare() {
        passes(&Case::of(&ha("v1.36.3+k3s1")).run(), "QUORUM");
        let mut inventory = ha("v1.36.3+k3s1");
        sick(&mut inventory, "s3");
        blocks(&Case::of(&inventory).run(), "QUORUM", "2 of 3 voters are healthy, 2 must stay so");
    }

    #[test]
    fn a_voter_that_does_not_answer_is_not_healthy() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s2").etcd = Some(Fact::unknown("etcd does not answer on 127.0.0.1:2381"));
        unknown(&Case::of(&inventory).run(), "QUORUM", "does not answer");
        sick(&mut inventory, "s3");
        blocks(&Case::of(&inventory).run(), "QUORUM", "1 of 3 voters");
    }

    #[test]
    fn a_server_whose_k3s_does_not_run_is_no_healthy_voter() {
        let mut inventory = ha("v1.36.3+k3s1");
        let host = host_mut(&mut inventory, "s3");
        host.etcd = Some(Fact::unknown("etcd does not answer on 127.0.0.1:2381"));
        if let Fact::Known(install) = &mut host.install {
            install.unit.main_pid = 0;
        }
        blocks(&Case::of(&inventory).run(), "QUORUM", "2 of 3 voters are healthy");
    }

    #[test]
    fn a_learner_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        let Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) = &mut inventory.datastore else {
            return;
        };
        members[2].learner = true;
        blocks(&Case::of(&inventory).run(), "QUORUM", "is a learner");
    }

    #[test]
    fn two_members_are_an_outage_and_one_is_the_plans_to_declare() {
        let mut inventory = ha("v1.36.3+k3s1");
        members(&mut inventory, 2);
        warns(&Case::of(&inventory).run(), "QUORUM", "two members");
        sick(&mut inventory, "s2");
        blocks(&Case::of(&inventory).run(), "QUORUM", "every one has to be healthy");
        members(&mut inventory, 1);
        passes(&Case::of(&inventory).run(), "QUORUM");
        sick(&mut inventory, "s1");
        blocks(&Case::of(&inventory).run(), "QUORUM", "every one has to be healthy");
    }

    #[test]
    fn members_that_are_not_known_block_and_sqlite_has_none() {
        let mut inventory = ha("v1.36.3+k3s1");
        inventory.datastore = Fact::Known(Datastore::EmbeddedEtcd { members: Fact::unknown("no answer") });
        unknown(&Case::of(&inventory).run(), "QUORUM", "the list of etcd's members");
        passes(&Case::of(&sqlite("v1.36.3+k3s1")).run(), "QUORUM");
    }
}
