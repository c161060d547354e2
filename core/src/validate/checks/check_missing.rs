//! Hops that need a check which is not there yet.

use super::{Answer, Check, Question, Weight};
use crate::fact::Fact;
use crate::inventory::{Argument, PackagedKind, Role};
use crate::knowledge::needs::{Applies, Crossing, Need};
use crate::version::Version;

pub(super) const CHECK: Check = Check {
    code: "CHECK-MISSING",
    number: 48,
    title: "everything that is known to go wrong on this hop is looked for",
    why: "what nobody looks at is not thereby in order",
    weight: Weight::Gate,
    needs: &[super::Need::Target],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    // The hop's servers decide what is served and packaged.
    let Some(from) = hop.steps.iter().filter(|s| s.role == Role::Server).map(|s| &s.from).min() else {
        return Vec::new();
    };
    let needs = question.knowledge.needs();
    let rows = needs.of(question.knowledge, from, &hop.to);
    let mut answers: Vec<Answer> =
        rows.filter_map(|(need, crossing)| one(need, crossing, from, &hop.to, question)).collect();
    if from.minor() < hop.to.minor() && !needs.removals_known(&hop.to) {
        let what = format!("which APIs {} does not serve any more", hop.to.minor());
        answers.push(Answer::unknown("check 14", &what, "the data about removed APIs does not reach there").remedy(
            "read the release notes, and waive this check for the time of the update; or take a newer Kadence",
        ));
    }
    answers
}

fn one(need: &Need, crossing: Crossing, from: &Version, to: &Version, question: &Question<'_>) -> Option<Answer> {
    let about = format!("check {}", need.check);
    let applies = applies(need.applies, question);
    let remedy =
        format!("see for yourself ({}), then waive this check about `{about}` for the time of the update", need.source);
    let answer = match (crossing, applies) {
        (Crossing::No, _) | (_, Fact::Known(None)) => return None,
        (_, Fact::Unknown(why)) => {
            Answer::unknown(&about, &format!("whether {from} to {to} needs `{}`", need.name), &why)
        }
        (Crossing::NoData, Fact::Known(Some(_))) => Answer::unknown(
            &about,
            &format!("whether {from} to {to} needs `{}`", need.name),
            "the data does not say what one of the two releases contains",
        ),
        (Crossing::Yes, Fact::Known(Some(seen))) => Answer::block(
            &about,
            format!("`{}` is needed for {from} to {to} and is not there yet: {}", need.name, need.what),
        )
        .fact(seen),
    };
    Some(answer.remedy(remedy))
}

/// What makes the cluster one that it can hurt; `None` if it is none.
fn applies(applies: Applies, question: &Question<'_>) -> Fact<Option<String>> {
    let around = &question.inventory.surroundings;
    let packaged = || {
        around.packaged.as_ref().map(|all| {
            let found = all.iter().any(|p| p.kind == PackagedKind::HelmChart && p.name == "traefik");
            found.then(|| "kubectl -n kube-system get helmcharts: traefik".to_owned())
        })
    };
    match applies {
        Applies::All => Fact::Known(Some("every cluster".to_owned())),
        Applies::Traefik => packaged(),
        Applies::TraefikConfig => packaged().and_then(|packaged| match packaged {
            None => Fact::Known(None),
            Some(_) => around.chart_configs.as_ref().map(|all| {
                let found = all.iter().any(|name| name == "traefik");
                found.then(|| "kubectl -n kube-system get helmchartconfigs: traefik".to_owned())
            }),
        }),
        Applies::RuntimeConfig => runtime_config(question),
    }
}

fn runtime_config(question: &Question<'_>) -> Fact<Option<String>> {
    let told = |a: &Argument| {
        a.key == "kube-apiserver-arg"
            && a.value
                .as_deref()
                .is_some_and(|v| v.trim_start_matches("--").split('=').next() == Some("runtime-config"))
    };
    for (node, host) in question.servers() {
        match &host.arguments {
            Fact::Unknown(why) => return Fact::unknown(format!("{}: {why}", node.name)),
            Fact::Known(arguments) => {
                if let Some(found) = arguments.entries.iter().find(|a| told(a)) {
                    return Fact::Known(Some(format!("on {}, {}: runtime-config", node.name, found.place)));
                }
            }
        }
    }
    Fact::Known(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{argument, ha, host_mut};
    use crate::inventory::{Inventory, Packaged};
    use crate::validate::checks::tests::{Case, blocks, passes, silent, unknown};
    use crate::validate::finding::Finding;

    fn with_traefik(version: &str) -> Inventory {
        let mut inventory = ha(version);
        inventory.surroundings.packaged = Fact::Known(vec![Packaged {
            kind: PackagedKind::HelmChart,
            name: "traefik".to_owned(),
            version: "27.0.201".to_owned(),
            settled: true,
            detail: String::new(),
        }]);
        inventory
    }

    fn run(inventory: &Inventory, to: &str) -> Vec<Finding> {
        Case::of(inventory).to(to).run()
    }

    #[test]
    fn a_hop_is_refused_only_where_it_can_hurt() {
        blocks(
            &run(&with_traefik("v1.32.1+k3s1"), "v1.32.2+k3s1"),
            "CHECK-MISSING",
            "`Traefik v2 left-overs` is needed",
        );
        passes(&run(&ha("v1.32.1+k3s1"), "v1.32.2+k3s1"), "CHECK-MISSING");
        passes(&run(&with_traefik("v1.35.6+k3s1"), "v1.35.7+k3s1"), "CHECK-MISSING");
        let mut configured = with_traefik("v1.35.6+k3s1");
        configured.surroundings.chart_configs = Fact::Known(vec!["traefik".to_owned()]);
        blocks(&run(&configured, "v1.35.7+k3s1"), "CHECK-MISSING", "`HelmChartConfig compatibility` is needed");
        let mut same = with_traefik("v1.36.3+k3s1");
        same.surroundings.chart_configs = configured.surroundings.chart_configs;
        passes(&run(&same, "v1.36.4+k3s1"), "CHECK-MISSING");
    }

    #[test]
    fn removed_apis_matter_to_who_turned_them_on() {
        let mut inventory = ha("v1.35.7+k3s1");
        passes(&run(&inventory, "v1.36.4+k3s1"), "CHECK-MISSING");
        if let Fact::Known(arguments) = &mut host_mut(&mut inventory, "s2").arguments {
            arguments.entries.push(argument("kube-apiserver-arg", "runtime-config=resource.k8s.io/v1beta1=true"));
        }
        blocks(&run(&inventory, "v1.36.4+k3s1"), "CHECK-MISSING", "resource.k8s.io/v1beta1");
        passes(&run(&inventory, "v1.35.8+k3s1"), "CHECK-MISSING");
    }

    #[test]
    fn not_knowing_counts_as_needing() {
        let mut inventory = with_traefik("v1.35.6+k3s1");
        inventory.surroundings.chart_configs = Fact::unknown("the API did not answer");
        unknown(&run(&inventory, "v1.35.7+k3s1"), "CHECK-MISSING", "the API did not answer");
        unknown(&run(&ha("v1.36.5+k3s1"), "v1.37.1+k3s1"), "CHECK-MISSING", "which APIs v1.37 does not serve");
    }

    #[test]
    fn without_a_target_nothing_is_missing() {
        silent(&Case::of(&ha("v1.35.7+k3s1")).run(), "CHECK-MISSING");
    }
}
