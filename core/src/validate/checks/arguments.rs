//! Arguments that the target does not know.

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::{Argument, HostFacts, Node, Origin, Role};
use crate::knowledge::components::Component;
use crate::knowledge::flags::{Flag, KubeComponent};
use crate::version::Version;

pub(super) const CHECK: Check = Check {
    code: "ARGUMENTS",
    number: 21,
    title: "the target knows every argument of every node",
    why: "an argument that is unknown stops K3s at its start; in a server's config.yaml K3s only drops it with a line in \
          its log, and the setting is lost without anybody noticing",
    weight: Weight::Gate,
    needs: &[Need::Target, Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let Some(hop) = question.up() else { return Vec::new() };
    question.hosts().flat_map(|(node, host)| of_node(node, host, &hop.to, question)).collect()
}

fn of_node(node: &Node, host: &HostFacts, to: &Version, question: &Question<'_>) -> Vec<Answer> {
    let arguments = match &host.arguments {
        Fact::Unknown(why) => return vec![Answer::unknown(&node.name, "what its K3s is told", why)],
        Fact::Known(arguments) => arguments,
    };
    let mut answers: Vec<Answer> = arguments
        .unreadable
        .iter()
        .map(|why| Answer::unknown(&node.name, "all of what its K3s is told", why))
        .collect();
    let mut not_in_the_data = Vec::new();
    for argument in &arguments.entries {
        match judge_one(node, argument, to, question) {
            Known::Yes => {}
            Known::No { name, why, instead } => answers.push(lost(node, argument, &name, &why, instead.as_deref(), to)),
            // What runs in a minor today runs in its next patch: flags go away with minors only.
            Known::NoData(_) if runs_in(node, to) => {}
            Known::NoData(name) => not_in_the_data.push(format!("{name} ({})", argument.place)),
        }
    }
    if !not_in_the_data.is_empty() {
        let what = format!("whether {to} knows {}", listed(not_in_the_data));
        answers.push(Answer::unknown(&node.name, &what, "the data about releases does not reach there").remedy(
            "look it up in the release notes and waive this check for the time of the update, or take a newer Kadence",
        ));
    }
    answers
}

enum Known {
    Yes,
    No {
        name: String,
        why: String,
        instead: Option<String>,
    },
    /// The data does not say.
    NoData(String),
}

fn judge_one(node: &Node, argument: &Argument, to: &Version, question: &Question<'_>) -> Known {
    let key = argument.key.as_str();
    let flags = question.knowledge.flags();
    match (argument.origin, flags.flag(node.role, to, key)) {
        (_, Flag::Known { .. }) => {}
        // Programs read only the variables they know. One that lost its meaning is a setting that is lost.
        (Origin::Environment, flag @ Flag::Removed { .. }) => return answer(flag, key),
        (Origin::Environment, _) => return Known::Yes,
        (_, flag) => return answer(flag, key),
    }
    let Some(value) = argument.value.as_deref().filter(|_| key.ends_with("-arg")) else { return Known::Yes };
    // As K3s reads it: dashes before it are no part of the name, and `+=` and `-=` change a list.
    let name = value.trim_start_matches("--").split('=').next().unwrap_or_default().trim_end_matches(['+', '-']);
    let shown = format!("{key}: {name}");
    match KubeComponent::of_key(key) {
        Some(component) => answer(flags.component_flag(component, to, name), &shown),
        // FEATURE-GATES looks at what is in it, and every component of Kubernetes takes it.
        None if name == "feature-gates" && key.starts_with("kube-") => Known::Yes,
        None if key == "etcd-arg" && same_etcd(node, to, question) => Known::Yes,
        None => Known::NoData(shown),
    }
}

fn answer(flag: Flag<'_>, name: &str) -> Known {
    let no = |why: String, instead: Option<&str>| Known::No {
        name: name.to_owned(),
        why,
        instead: instead.map(str::to_owned),
    };
    match flag {
        Flag::Known { .. } => Known::Yes,
        Flag::Removed { since, instead } => no(format!("it is gone since {since}"), instead),
        Flag::NotYet { since } => no(format!("it comes with {since}"), None),
        Flag::Unknown => no("no release has it: it may be misspelt".to_owned(), None),
        Flag::NotSeen { .. } | Flag::NoData => Known::NoData(name.to_owned()),
    }
}

/// Whether the node runs a release of the target's minor.
fn runs_in(node: &Node, to: &Version) -> bool {
    node.version.known().is_some_and(|v| v.minor() == to.minor())
}

fn same_etcd(node: &Node, to: &Version, question: &Question<'_>) -> bool {
    let minor = |version: &Version| {
        let etcd = question.knowledge.components(version)?.get(Component::Etcd)?;
        Some((etcd.major, etcd.minor))
    };
    let from = node.version.known().and_then(minor);
    from.is_some() && from == minor(to)
}

fn lost(node: &Node, argument: &Argument, name: &str, why: &str, instead: Option<&str>, to: &Version) -> Answer {
    let in_a_value = name != argument.key;
    let silently = node.role == Role::Server && argument.origin == Origin::ConfigFile && !in_a_value;
    let effect = match (argument.origin, silently) {
        (Origin::Environment, _) => "the variable would have no effect any more",
        (_, true) => "K3s would drop it with a warning in its log, and the setting would be lost",
        (_, false) => "K3s would not start",
    };
    let verb = if silently { "the setting" } else { "the argument" };
    Answer::block(&node.name, format!("{to} does not know {verb} `{name}` of {}: {effect}", node.name))
        .fact(format!("on {}, {}: {name}", node.name, argument.place))
        .fact(why.to_owned())
        .remedy(match instead {
            Some(instead) => format!("replace it by `{instead}` there, restart K3s on this node, then check again"),
            None => "remove it there, restart K3s on this node, then check again".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;
    use crate::inventory::example::{argument, ha, host_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, silent, unknown};

    fn with(version: &str, node: &str, argument: Argument) -> Inventory {
        let mut inventory = ha(version);
        if let Fact::Known(arguments) = &mut host_mut(&mut inventory, node).arguments {
            arguments.entries.push(argument);
        }
        inventory
    }

    fn at(origin: Origin, key: &str, value: &str) -> Argument {
        Argument { origin, ..argument(key, value) }
    }

    fn run(node: &str, argument: Argument) -> Vec<crate::validate::finding::Finding> {
        Case::of(&with("v1.35.7+k3s1", node, argument)).to("v1.36.3+k3s1").run()
    }

    #[test]
    fn what_an_unknown_argument_does_depends_on_where_it_stands() {
        let config = |key: &str| argument(key, "x");
        blocks(&run("s1", config("no-deploy")), "ARGUMENTS", "the setting would be lost");
        blocks(&run("a1", config("no-flannel")), "ARGUMENTS", "K3s would not start");
        blocks(&run("s1", at(Origin::CommandLine, "cluster-cidrs", "x")), "ARGUMENTS", "K3s would not start");
        blocks(&run("s1", at(Origin::Environment, "cluster-secret", "x")), "ARGUMENTS", "no effect any more");
        let inside = argument("kubelet-arg", "max-podz=10");
        blocks(&run("s1", inside), "ARGUMENTS", "`kubelet-arg: max-podz` of s1: K3s would not start");
    }

    #[test]
    fn what_looks_alike_passes() {
        passes(&run("s1", argument("cluster-cidr", "10.42.0.0/16")), "ARGUMENTS");
        passes(&run("s1", argument("disable-agent", "true")), "ARGUMENTS");
        passes(&run("s1", at(Origin::Environment, "HTTP_PROXY", "x")), "ARGUMENTS");
        for value in ["max-pods=200", "--max-pods=200", "v=2"] {
            passes(&run("a1", argument("kubelet-arg", value)), "ARGUMENTS");
        }
        passes(&run("s1", argument("kube-proxy-arg", "feature-gates=X=true")), "ARGUMENTS");
        passes(&run("s1", argument("etcd-arg", "quota-backend-bytes=8589934592")), "ARGUMENTS");
    }

    #[test]
    fn what_the_data_does_not_reach_blocks_across_minors_only() {
        unknown(&run("s1", argument("kube-proxy-arg", "proxy-mode=ipvs")), "ARGUMENTS", "kube-proxy-arg: proxy-mode");
        let inventory = with("v1.35.7+k3s1", "s1", argument("kube-proxy-arg", "proxy-mode=ipvs"));
        passes(&Case::of(&inventory).to("v1.35.8+k3s1").run(), "ARGUMENTS");
        // Nothing that runs today is taken for known in a minor without data.
        unknown(&Case::of(&ha("v1.37.1+k3s1")).to("v1.38.0+k3s1").run(), "ARGUMENTS", "write-kubeconfig-mode");
    }

    #[test]
    fn arguments_that_cannot_be_read_block() {
        let mut inventory = ha("v1.35.7+k3s1");
        if let Fact::Known(arguments) = &mut host_mut(&mut inventory, "s1").arguments {
            arguments.unreadable.push("/etc/rancher/k3s/config.yaml: line 3: not a map".to_owned());
        }
        unknown(&Case::of(&inventory).to("v1.36.3+k3s1").run(), "ARGUMENTS", "config.yaml: line 3");
        silent(&Case::of(&inventory).run(), "ARGUMENTS");
    }
}
