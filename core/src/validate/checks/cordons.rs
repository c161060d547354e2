//! Cordons that are there already.

use super::{Answer, Check, Question, Weight};
use crate::ident::RolloutId;
use crate::inventory::Cordon;

pub(super) const CHECK: Check = Check {
    code: "CORDONS",
    number: 27,
    title: "no node is cordoned",
    why: "somebody who cordons a node is at work on it or means to; a node with somebody else's cordon is not touched",
    weight: Weight::Invariant,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for node in question.scope() {
        let name = &node.name;
        match node.cordon() {
            Cordon::None => {}
            Cordon::Foreign => answers.push(
                Answer::block(name, format!("{name} is cordoned, and not by Kadence"))
                    .fact(format!("kubectl get node {name}: SchedulingDisabled"))
                    .remedy(format!(
                        "kubectl uncordon {name} if nobody needs the cordon any more; an agent can be left out of the \
                         update (--exclude)"
                    )),
            ),
            Cordon::Ours { mark } => {
                let of_this = question.rollout.is_some_and(|r| r.family() == RolloutId::new(&*mark.rollout).family());
                if !of_this {
                    answers.push(
                        Answer::warn(name, format!("{name} is still cordoned by the rollout {}", mark.rollout))
                            .fact(format!("kubectl get node {name} --output yaml: Kadence's annotations"))
                            .remedy(
                                "kadence resume goes on with that rollout, kadence abort ends it; both lift the cordon",
                            ),
                    );
                }
            }
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Mark;
    use crate::inventory::example::{ha, node_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, warns};

    fn with(cordon: Cordon) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        if let Some(object) = &mut node_mut(&mut inventory, "s2").object {
            object.cordon = cordon;
        }
        Case::of(&inventory)
    }

    #[test]
    fn somebody_elses_cordon_blocks() {
        blocks(&with(Cordon::Foreign).run(), "CORDONS", "s2 is cordoned, and not by Kadence");
        passes(&with(Cordon::None).run(), "CORDONS");
    }

    #[test]
    fn a_cordon_of_ours_warns_unless_it_is_this_rollouts() {
        let mark = Mark { rollout: "r7".to_owned(), plan: "7c41e0".to_owned(), step: "s2".to_owned() };
        let case = with(Cordon::Ours { mark });
        warns(&case.run(), "CORDONS", "by the rollout r7");
        passes(&case.by("r7.2").run(), "CORDONS");
    }
}
