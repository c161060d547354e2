//! The version path: what may follow what, by Kubernetes' version skew.

use super::{Answer, Check, Question, Weight, listed};
use crate::ident::NodeName;
use crate::inventory::{Inventory, Node, Role};
use crate::version::{Minor, Version};

pub(super) const CHECK: Check = Check {
    code: "VERSION-PATH",
    number: 1,
    title: "no minor is skipped, nothing goes below what runs, and no agent is ahead of a server",
    why: "Kubernetes supports neighbouring minors only, never an agent newer than its servers, and no way down; where \
          that is broken, nodes stop working after the update or at their next restart",
    weight: Weight::Invariant,
    needs: &[],
    judge,
};

/// By Kubernetes' version skew a kubelet may be three minors older than the API server.
const AGENTS_BEHIND: i64 = 3;

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let inventory = question.inventory;
    let mut answers = Vec::new();
    for node in &inventory.nodes {
        if let Some(why) = node.version.why() {
            answers.push(Answer::unknown(&node.name, "its version", why));
        }
    }
    if !answers.is_empty() {
        return answers;
    }
    if question.goes_back {
        return vec![Answer::pass("the way back goes to what ran before")];
    }
    let (servers, agents) = (of(inventory, Role::Server), of(inventory, Role::Agent));
    let oldest_server = servers.iter().min_by_key(|n| n.1);
    let newest_server = servers.iter().max_by_key(|n| n.1);
    let oldest_agent = agents.iter().min_by_key(|n| n.1);

    if let (Some(oldest), Some(newest)) = (oldest_server, newest_server)
        && !within(oldest.1.minor(), newest.1.minor(), 1)
    {
        answers.push(
            Answer::block("cluster", format!("the servers are more than one minor apart: {}", pair(oldest, newest)))
                .remedy("update the older servers to the newer minor first, one minor at a time"),
        );
    }
    if let Some(oldest) = oldest_server {
        for agent in agents.iter().filter(|a| a.1 > oldest.1) {
            answers.push(
                Answer::block(
                    agent.0,
                    format!("the agent {} is newer than a server: {}", agent.0, pair(agent, oldest)),
                )
                .remedy(format!("update the servers to {} before anything else", agent.1)),
            );
        }
    }
    if let (Some(server), Some(agent)) = (oldest_server, oldest_agent)
        && !within(agent.1.minor(), server.1.minor(), AGENTS_BEHIND)
    {
        answers.push(
            Answer::block(
                agent.0,
                format!("the agent {} is too far behind the servers: {}", agent.0, pair(agent, server)),
            )
            .remedy("update the agents first (--only-agents), to the servers' version"),
        );
    }
    if let Some(hop) = question.up() {
        answers.extend(target(&hop.to, &servers, &agents));
    }
    answers.into_iter().map(|a| a.fact(versions(inventory))).collect()
}

type Runs<'a> = (&'a NodeName, &'a Version);

fn target(to: &Version, servers: &[Runs<'_>], agents: &[Runs<'_>]) -> Vec<Answer> {
    let mut answers = Vec::new();
    let above: Vec<_> = servers.iter().chain(agents).filter(|n| n.1 > to).collect();
    if let Some((_, newest)) = above.iter().max_by_key(|n| n.1) {
        let who = listed(above.iter().map(|n| n.0));
        answers.push(
            Answer::block("cluster", format!("{to} is below what {who} already runs"))
                .remedy(format!("choose {newest} or newer; back to an older version leads kadence rollback only")),
        );
    }
    if let Some(oldest) = servers.iter().min_by_key(|n| n.1)
        && !within(oldest.1.minor(), to.minor(), 1)
        && oldest.1 <= to
    {
        answers.push(
            Answer::block("cluster", format!("from {} to {to} a minor would be skipped", oldest.1))
                .remedy(format!("go to {} first: kadence plan makes a hop for each minor", oldest.1.minor().next())),
        );
    }
    if let Some(oldest) = agents.iter().min_by_key(|n| n.1)
        && !within(oldest.1.minor(), to.minor(), AGENTS_BEHIND)
        && oldest.1 <= to
    {
        answers.push(
            Answer::block(
                oldest.0,
                format!("once the servers run {to}, the agent {} on {} is too old for them", oldest.0, oldest.1),
            )
            .remedy("update that agent first, or take its node out of the cluster"),
        );
    }
    answers
}

fn of(inventory: &Inventory, role: Role) -> Vec<Runs<'_>> {
    let known = |n: &'_ &Node| n.role == role;
    inventory.nodes.iter().filter(known).filter_map(|n| Some((&n.name, n.version.known()?))).collect()
}

/// Whether `high` is above `low` by at most `minors`; across majors nothing is known about what may follow what.
fn within(low: Minor, high: Minor, minors: i64) -> bool {
    high.above(low).is_some_and(|above| above <= minors)
}

fn pair(a: &Runs<'_>, b: &Runs<'_>) -> String {
    format!("{} runs {}, {} runs {}", a.0, a.1, b.0, b.1)
}

fn versions(inventory: &Inventory) -> String {
    let all = inventory.nodes.iter().filter_map(|n| Some(format!("{} {}", n.name, n.version.known()?)));
    format!("kubectl get nodes: {}", listed(all))
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::{ha, node_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    #[test]
    fn agents_may_be_behind_and_never_ahead() {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "a1").version = Fact::Known("v1.36.3+k3s2".parse().expect("a version"));
        blocks(&Case::of(&inventory).run(), "VERSION-PATH", "the agent a1 is newer than a server");
        node_mut(&mut inventory, "a1").version = Fact::Known("v1.33.10+k3s1".parse().expect("a version"));
        passes(&Case::of(&inventory).run(), "VERSION-PATH");
        node_mut(&mut inventory, "a1").version = Fact::Known("v1.32.5+k3s1".parse().expect("a version"));
        blocks(&Case::of(&inventory).run(), "VERSION-PATH", "too far behind the servers");
    }

    #[test]
    fn an_agent_that_the_servers_leave_behind_blocks_the_target() {
        let mut inventory = ha("v1.35.7+k3s1");
        node_mut(&mut inventory, "a1").version = Fact::Known("v1.32.5+k3s1".parse().expect("a version"));
        let case = Case::of(&inventory);
        passes(&case.run(), "VERSION-PATH");
        blocks(&case.to("v1.36.4+k3s1").run(), "VERSION-PATH", "is too old for them");
    }

    #[test]
    fn a_way_back_is_one_by_its_plan_though_a_node_reports_the_old_version_still() {
        let planned = ha("v1.35.7+k3s1");
        let mut inventory = planned.clone();
        node_mut(&mut inventory, "s2").version = Fact::Known("v1.36.4+k3s1".parse().expect("a version"));
        // Planned when s2 had the new binary and had not reported yet: its step goes from the old version to the same.
        let case = Case::of(&inventory).to_hop_of("v1.35.7+k3s2", &planned).change(|hop| {
            hop.to = "v1.35.7+k3s1".parse().expect("a version");
            hop.steps.retain(|s| s.node.as_str() == "s2");
            hop.steps[0].to = hop.steps[0].from.clone();
        });
        blocks(&case.run(), "VERSION-PATH", "is below what s2 already runs");
        passes(&case.back().run(), "VERSION-PATH");
    }

    #[test]
    fn builds_count_and_minors_are_not_skipped() {
        let inventory = ha("v1.35.7+k3s2");
        passes(&Case::of(&inventory).to("v1.35.7+k3s10").run(), "VERSION-PATH");
        passes(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "VERSION-PATH");
        blocks(&Case::of(&inventory).to("v1.37.0+k3s1").run(), "VERSION-PATH", "a minor would be skipped");
        blocks(&Case::of(&inventory).to_hop("v1.35.7+k3s1", |_| ()).run(), "VERSION-PATH", "below what");
    }

    #[test]
    fn servers_stay_within_one_minor() {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "a1").version = Fact::Known("v1.34.1+k3s1".parse().expect("a version"));
        node_mut(&mut inventory, "s2").version = Fact::Known("v1.35.9+k3s1".parse().expect("a version"));
        passes(&Case::of(&inventory).run(), "VERSION-PATH");
        node_mut(&mut inventory, "s2").version = Fact::Known("v1.34.9+k3s1".parse().expect("a version"));
        blocks(&Case::of(&inventory).run(), "VERSION-PATH", "more than one minor apart");
    }

    #[test]
    fn a_version_that_is_not_known_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "a1").version = Fact::unknown("`v1.36.3` has no `+k3s` build number");
        unknown(&Case::of(&inventory).run(), "VERSION-PATH", "no `+k3s` build number");
    }
}
