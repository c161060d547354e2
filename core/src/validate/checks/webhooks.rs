//! Webhooks that fail closed.

use std::collections::BTreeSet;

use super::{Answer, Check, Question, Weight, listed};
use crate::apply::plan::Drain;
use crate::fact::Fact;
use crate::inventory::Webhook;

pub(super) const CHECK: Check = Check {
    code: "WEBHOOKS",
    number: 13,
    title: "every webhook that fails closed has somebody who answers",
    why: "while a webhook that fails closed has no backend, the API refuses the pods, leases or jobs it is about: nodes \
          do not become Ready and pods do not come back, its own among them",
    weight: Weight::Gate,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    match &question.inventory.surroundings.webhooks {
        Fact::Unknown(why) => vec![Answer::unknown("cluster", "which webhooks fail closed", why)],
        Fact::Known(hooks) => hooks.iter().filter(|h| !h.resources.is_empty()).flat_map(|h| one(h, question)).collect(),
    }
}

fn one(hook: &Webhook, question: &Question<'_>) -> Vec<Answer> {
    let about = &hook.name;
    let on = format!("{} ({})", hook.name, hook.resources.join(", "));
    let service = hook.service.as_deref().unwrap_or("an URL outside the cluster");
    let ready_on = match &hook.ready_on {
        Fact::Unknown(why) => {
            return vec![Answer::unknown(about, &format!("whether the webhook {on} has a backend"), why)];
        }
        Fact::Known(nodes) => nodes.iter().collect::<BTreeSet<_>>(),
    };
    let mut answers = Vec::new();
    let only = ready_on.first().filter(|_| ready_on.len() == 1);
    let drained = only.filter(|n| question.step(n).is_some_and(|s| s.drain == Drain::Evict));
    if ready_on.is_empty() {
        answers.push(
            Answer::block(about, format!("the webhook {on} fails closed, and nobody answers for it"))
                .fact(format!("kubectl get endpointslices: {service} has no ready endpoint"))
                .remedy("bring its backend back, or delete the webhook's configuration"),
        );
    } else if let Some(node) = drained {
        answers.push(
            Answer::block(about, format!("all that answer for the webhook {on} run on {node}, which is drained"))
                .fact(format!("kubectl get endpointslices: {service} is ready on {} only", listed(&ready_on)))
                .remedy("give its Deployment a replica on another node, or set `failurePolicy: Ignore` for the time of the update"),
        );
    }
    if !hook.spares_kube_system && answers.is_empty() {
        answers.push(
            Answer::warn(about, format!("the webhook {on} fails closed and decides about kube-system, too"))
                .fact("its namespaceSelector does not leave kube-system out")
                .remedy("leave kube-system out by `kubernetes.io/metadata.name NotIn [kube-system]` in its namespaceSelector"),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::ident::NodeName;
    use crate::inventory::example::ha;
    use crate::inventory::{Inventory, Webhook};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn with(ready_on: Fact<Vec<NodeName>>, spares_kube_system: bool) -> Inventory {
        let mut inventory = ha("v1.35.7+k3s1");
        inventory.surroundings.webhooks = Fact::Known(vec![Webhook {
            name: "gatekeeper/validation".to_owned(),
            resources: vec!["pods".to_owned()],
            service: Some("gatekeeper/webhook".to_owned()),
            ready_on,
            spares_kube_system,
        }]);
        inventory
    }

    #[test]
    fn a_webhook_without_a_backend_blocks() {
        blocks(&Case::of(&with(Fact::Known(Vec::new()), true)).run(), "WEBHOOKS", "nobody answers");
        passes(&Case::of(&with(Fact::Known(vec!["a1".into(), "s1".into()]), true)).run(), "WEBHOOKS");
        warns(&Case::of(&with(Fact::Known(vec!["a1".into(), "s1".into()]), false)).run(), "WEBHOOKS", "kube-system");
    }

    #[test]
    fn a_backend_on_one_node_blocks_only_its_drain() {
        let inventory = with(Fact::Known(vec!["a1".into(), "a1".into()]), true);
        blocks(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "WEBHOOKS", "run on a1, which is drained");
        passes(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "WEBHOOKS");
    }

    #[test]
    fn a_backend_that_is_not_known_blocks() {
        let inventory = with(Fact::unknown("it is an URL outside the cluster"), true);
        unknown(&Case::of(&inventory).run(), "WEBHOOKS", "an URL outside");
    }
}
