//! Templates of containerd's configuration that the user wrote.

use super::{Answer, Check, Need, Question, Weight};
use crate::knowledge::components::Component;

pub(super) const CHECK: Check = Check {
    code: "CONTAINERD-TEMPLATE",
    number: 22,
    title: "no node has a containerd template of an older format",
    why: "containerd 2 has another configuration format: of `config.toml.tmpl` it takes only what it can convert, and \
          runtimes such as `nvidia` go missing",
    weight: Weight::Advice,
    needs: &[Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let version = question.up().map(|hop| &hop.to);
    let target = version.and_then(|v| question.knowledge.components(v)).and_then(|c| c.get(Component::Containerd));
    if target.is_some_and(|c| c.major < 2) {
        return Vec::new();
    }
    let of_file = |path: &String, name: &str| path.rsplit('/').next() == Some(name);
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        let old = host.containerd_templates.iter().find(|t| of_file(t, "config.toml.tmpl"));
        let new = host.containerd_templates.iter().any(|t| of_file(t, "config-v3.toml.tmpl"));
        let Some(old) = old.filter(|_| !new) else { continue };
        let containerd = target.map_or("containerd 2".to_owned(), |c| format!("containerd {c}"));
        answers.push(
            Answer::warn(
                &node.name,
                format!("{} has a containerd template that {containerd} reads only in part", node.name),
            )
            .fact(format!("on {}, {old}", node.name))
            .remedy("write it anew as config-v3.toml.tmpl beside it; both may be there"),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::inventory::example::node_mut;
    use crate::inventory::example::{ha, host_mut};
    use crate::validate::checks::tests::{Case, passes, silent, warns};

    #[test]
    fn the_old_format_warns_and_the_new_one_does_not() {
        let mut inventory = ha("v1.36.3+k3s1");
        let folder = "/var/lib/rancher/k3s/agent/etc/containerd";
        host_mut(&mut inventory, "a1").containerd_templates = vec![format!("{folder}/config.toml.tmpl")];
        warns(&Case::of(&inventory).run(), "CONTAINERD-TEMPLATE", "a1 has a containerd template");
        warns(&Case::of(&inventory).to("v1.36.4+k3s1").run(), "CONTAINERD-TEMPLATE", "2.3.4");
        host_mut(&mut inventory, "a1").containerd_templates.push(format!("{folder}/config-v3.toml.tmpl"));
        passes(&Case::of(&inventory).run(), "CONTAINERD-TEMPLATE");
    }

    #[test]
    fn a_host_that_was_not_seen_has_not_passed() {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "a1").host = Fact::unknown("no route to host");
        silent(&Case::of(&inventory).run(), "CONTAINERD-TEMPLATE");
    }
}
