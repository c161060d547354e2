//! One server at a time. That a server is healthy before the next one follows is judged while the rollout runs; here
//! that the plan leaves room for it.

use std::collections::BTreeMap;

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::ident::NodeName;
use crate::inventory::Role;

pub(super) const CHECK: Check = Check {
    code: "ONE-SERVER",
    number: 5,
    title: "the plan takes the servers one at a time, and the agents after them; that each is healthy before the next \
            is judged on the way",
    why: "two servers down at once cost etcd its quorum, and an agent that is ahead of a server may not work with it",
    weight: Weight::Invariant,
    needs: &[Need::Target],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    let mut answers = Vec::new();
    let mut waves: BTreeMap<u32, Vec<&NodeName>> = BTreeMap::new();
    for step in hop.steps.iter().filter(|s| s.role == Role::Server) {
        waves.entry(step.wave).or_default().push(&step.node);
    }
    for together in waves.values().filter(|servers| servers.len() > 1) {
        answers.push(
            Answer::block("cluster", format!("the plan takes {} at the same time", listed(together)))
                .fact(format!("kadence plan {}: they share a wave", question.inventory.cluster))
                .remedy("make the plan again; if it stays so, this is a fault of Kadence's: report it"),
        );
    }
    let last_server = hop.steps.iter().rposition(|s| s.role == Role::Server);
    let first_agent = hop.steps.iter().position(|s| s.role == Role::Agent);
    if let (Some(server), Some(agent)) = (last_server, first_agent)
        && agent < server
    {
        let (server, agent) = (&hop.steps[server].node, &hop.steps[agent].node);
        answers.push(
            Answer::block(agent, format!("the plan takes the agent {agent} before the server {server}"))
                .fact(format!("kadence plan {}", question.inventory.cluster))
                .remedy("make the plan again; if it stays so, this is a fault of Kadence's: report it"),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::inventory::example::ha;
    use crate::validate::checks::tests::{Case, blocks, passes, silent};

    #[test]
    fn two_servers_in_one_wave_block() {
        let inventory = ha("v1.36.3+k3s1");
        passes(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "ONE-SERVER");
        let together = Case::of(&inventory).to_hop("v1.36.4+k3s1", |hop| hop.steps[1].wave = hop.steps[0].wave);
        blocks(&together.run(), "ONE-SERVER", "at the same time");
    }

    #[test]
    fn an_agent_before_a_server_blocks() {
        let inventory = ha("v1.36.3+k3s1");
        let agent_first = Case::of(&inventory).to_hop("v1.36.4+k3s1", |hop| hop.steps.rotate_right(1));
        blocks(&agent_first.run(), "ONE-SERVER", "before the server");
        silent(&Case::of(&inventory).run(), "ONE-SERVER");
    }
}
