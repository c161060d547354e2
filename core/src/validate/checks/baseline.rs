//! A cluster that is well before it is touched.

use super::{Answer, Check, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::Node;

pub(super) const CHECK: Check = Check {
    code: "BASELINE",
    number: 27,
    title: "every node is Ready and every API is served",
    why: "what is broken before cannot be told from what an update breaks, and may keep the update from going on",
    weight: Weight::Gate,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers: Vec<Answer> =
        question.inventory.nodes.iter().flat_map(|n| of_node(n, question.concerns(n))).collect();
    match &question.inventory.surroundings.broken_api_services {
        Fact::Unknown(why) => answers.push(Answer::unknown("cluster", "which APIs are served", why)),
        Fact::Known(broken) => answers.extend(broken.iter().map(|service| {
            Answer::block(service, format!("an API is not served: {service}"))
                .fact("kubectl get apiservices: AVAILABLE False")
                .remedy("bring its backend back, or delete the APIService if nobody needs it")
        })),
    }
    answers
}

/// A node that is left out of the update is only named: that it is down is why it may be left out.
fn of_node(node: &Node, concerned: bool) -> Vec<Answer> {
    let name = &node.name;
    let mut answers = Vec::new();
    let block = |what: String| if concerned { Answer::block(name, what) } else { Answer::warn(name, what) };
    match &node.ready {
        Fact::Known(true) => {}
        Fact::Known(false) => answers.push(
            block(format!("{name} is not Ready"))
                .fact(format!("kubectl get node {name}"))
                .remedy("bring it back first; an agent can be left out of the update (--exclude)"),
        ),
        Fact::Unknown(why) if concerned => answers.push(Answer::unknown(name, "whether it is Ready", why)),
        Fact::Unknown(why) => {
            answers.push(Answer::unsure(name, format!("whether {name} is Ready is not known: {why}")));
        }
    }
    let pressures = node.object.iter().flat_map(|o| &o.pressures).filter(|p| *p != "DiskPressure");
    let pressures: Vec<&String> = pressures.collect();
    if !pressures.is_empty() {
        answers.push(
            block(format!("{name} reports {}", listed(pressures)))
                .fact(format!("kubectl describe node {name}: conditions"))
                .remedy("find out what uses it up, and free it"),
        );
    }
    if let Some(Fact::Known(install)) = node.host.known().map(|h| &h.install)
        && install.unit.active != "active"
    {
        let unit = &install.unit;
        answers.push(
            block(format!("the unit {} on {name} is {} ({}), not active", unit.name, unit.active, unit.sub))
                .fact(format!("on {name}, systemctl status {}", unit.name))
                .remedy(format!("read why: journalctl --unit {} on {name}", unit.name)),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;
    use crate::inventory::example::{ha, host_mut, node_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn down(name: &str) -> Inventory {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, name).ready = Fact::Known(false);
        inventory
    }

    #[test]
    fn a_node_that_is_not_ready_blocks_unless_it_is_left_out() {
        blocks(&Case::of(&down("a1")).run(), "BASELINE", "a1 is not Ready");
        let without = |name: &str| {
            let name = name.to_owned();
            Case::of(&down(&name)).to_hop("v1.36.4+k3s1", move |hop| hop.steps.retain(|s| s.node.as_str() != name))
        };
        warns(&without("a1").run(), "BASELINE", "a1 is not Ready");
        blocks(&without("s2").run(), "BASELINE", "s2 is not Ready");
    }

    #[test]
    fn pressure_a_unit_and_an_api_that_are_not_well_block() {
        let mut inventory = ha("v1.36.3+k3s1");
        if let Some(object) = &mut node_mut(&mut inventory, "s1").object {
            object.pressures = vec!["MemoryPressure".to_owned()];
        }
        blocks(&Case::of(&inventory).run(), "BASELINE", "s1 reports MemoryPressure");
        let mut inventory = ha("v1.36.3+k3s1");
        if let Fact::Known(install) = &mut host_mut(&mut inventory, "a1").install {
            (install.unit.active, install.unit.sub) = ("activating".to_owned(), "auto-restart".to_owned());
        }
        blocks(&Case::of(&inventory).run(), "BASELINE", "is activating (auto-restart)");
        let mut inventory = ha("v1.36.3+k3s1");
        let broken = vec!["v1beta1.metrics.k8s.io: no endpoints".to_owned()];
        inventory.surroundings.broken_api_services = Fact::Known(broken);
        blocks(&Case::of(&inventory).run(), "BASELINE", "v1beta1.metrics.k8s.io");
        passes(&Case::of(&ha("v1.36.3+k3s1")).run(), "BASELINE");
    }

    #[test]
    fn what_is_not_known_is_not_well() {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "a1").ready = Fact::unknown("the Node has no such condition");
        unknown(&Case::of(&inventory).run(), "BASELINE", "no such condition");
    }
}
