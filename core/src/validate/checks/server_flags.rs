//! Settings that every server must have alike.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;
use crate::ident::NodeName;
use crate::inventory::Arguments;

pub(super) const CHECK: Check = Check {
    code: "SERVER-FLAGS",
    number: 21,
    title: "the servers agree on the settings that they must share",
    why: "a server whose critical settings differ from the others' refuses to join after its restart, or gives the \
          cluster another network, other certificates or other components",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

/// What K3s compares when a server joins (`CriticalControlArgs`) with the value that absence means.
const CRITICAL: [(&str, &str); 13] = [
    ("cluster-cidr", "10.42.0.0/16"),
    ("cluster-dns", ""),
    ("cluster-domain", "cluster.local"),
    ("disable-cloud-controller", "false"),
    ("disable-helm-controller", "false"),
    ("disable-kube-proxy", "false"),
    ("disable-network-policy", "false"),
    ("egress-selector-mode", "agent"),
    ("embedded-registry", "false"),
    ("flannel-backend", "vxlan"),
    ("flannel-ipv6-masq", "false"),
    ("secrets-encryption", "false"),
    ("service-cidr", "10.43.0.0/16"),
];

/// Lists that are joined from all places they are set in; of other settings the last one counts.
const LISTS: [&str; 4] = ["cluster-cidr", "cluster-dns", "service-cidr", "disable"];

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let (mut answers, mut known) = (Vec::new(), Vec::new());
    let several = question.inventory.servers().count() > 1;
    for (node, host) in question.servers().filter(|_| several) {
        match &host.arguments {
            Fact::Known(arguments) => known.push((&node.name, arguments)),
            Fact::Unknown(why) => answers.push(Answer::unknown(&node.name, "what this server is told", why)),
        }
    }
    for (key, default) in CRITICAL {
        if let Some(values) = differ(&known, |arguments| value(arguments, key, default)) {
            answers.push(Answer::block("cluster", format!("the servers differ in `{key}`")).fact(values).remedy(
                "give every server the same value in /etc/rancher/k3s/config.yaml, then restart them one at a time",
            ));
        }
    }
    let servicelb = |arguments: &Arguments| list(arguments, "disable").contains("servicelb").to_string();
    if let Some(values) = differ(&known, servicelb) {
        answers.push(
            Answer::block("cluster", "the servers differ in whether ServiceLB is disabled").fact(values).remedy(
                "give every server the same `disable` in /etc/rancher/k3s/config.yaml, then restart them one at a time",
            ),
        );
    } else if let Some(values) = differ(&known, |arguments| joined(&list(arguments, "disable"))) {
        answers.push(
            Answer::warn("cluster", "the servers differ in the packaged components that they disable")
                .fact(values)
                .remedy("give every server the same `disable`: the one that restarts last decides what is there"),
        );
    }
    answers
}

/// The values by server, if they are not all the same.
fn differ(servers: &[(&NodeName, &Arguments)], of: impl Fn(&Arguments) -> String) -> Option<String> {
    let mut by_value: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, arguments) in servers {
        by_value.entry(of(arguments)).or_default().push(name.as_str());
    }
    let shown = by_value
        .iter()
        .map(|(value, names)| format!("{}: {}", names.join(", "), if value.is_empty() { "not set" } else { value }));
    (by_value.len() > 1).then(|| shown.collect::<Vec<_>>().join("; "))
}

fn value(arguments: &Arguments, key: &str, default: &str) -> String {
    if LISTS.contains(&key) {
        let values = list(arguments, key);
        return if values.is_empty() { default.to_owned() } else { joined(&values) };
    }
    let last = arguments.entries.iter().rev().find(|a| a.key == key);
    last.map_or(default, |a| a.value.as_deref().unwrap_or("(not shown)")).to_owned()
}

fn list<'a>(arguments: &'a Arguments, key: &str) -> BTreeSet<&'a str> {
    let values = arguments.entries.iter().filter(|a| a.key == key).filter_map(|a| a.value.as_deref());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty()).collect()
}

fn joined(values: &BTreeSet<&str>) -> String {
    values.iter().copied().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;
    use crate::inventory::example::{argument, ha, host_mut, sqlite};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn told(inventory: &mut Inventory, node: &str, key: &str, value: &str) {
        if let Fact::Known(arguments) = &mut host_mut(inventory, node).arguments {
            arguments.entries.push(argument(key, value));
        }
    }

    #[test]
    fn a_critical_setting_on_one_server_only_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        told(&mut inventory, "s2", "flannel-backend", "wireguard-native");
        blocks(&Case::of(&inventory).run(), "SERVER-FLAGS", "differ in `flannel-backend`");
        told(&mut inventory, "s1", "flannel-backend", "wireguard-native");
        told(&mut inventory, "s3", "flannel-backend", "wireguard-native");
        passes(&Case::of(&inventory).run(), "SERVER-FLAGS");
    }

    #[test]
    fn the_default_said_aloud_and_settings_of_one_server_are_no_difference() {
        let mut inventory = ha("v1.36.3+k3s1");
        told(&mut inventory, "s2", "cluster-cidr", "10.42.0.0/16");
        told(&mut inventory, "s2", "disable-helm-controller", "false");
        told(&mut inventory, "s1", "cluster-init", "true");
        told(&mut inventory, "a1", "flannel-backend", "none");
        passes(&Case::of(&inventory).run(), "SERVER-FLAGS");
    }

    #[test]
    fn what_is_disabled_is_compared_as_a_set() {
        let mut inventory = ha("v1.36.3+k3s1");
        for server in ["s1", "s2"] {
            told(&mut inventory, server, "disable", "servicelb");
            told(&mut inventory, server, "disable", "traefik");
        }
        told(&mut inventory, "s3", "disable", "traefik,servicelb");
        passes(&Case::of(&inventory).run(), "SERVER-FLAGS");
        told(&mut inventory, "s3", "disable", "local-storage");
        warns(&Case::of(&inventory).run(), "SERVER-FLAGS", "packaged components");
    }

    #[test]
    fn a_server_that_is_not_known_blocks_where_there_are_others() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s2").arguments = Fact::unknown("it did not arrive");
        unknown(&Case::of(&inventory).run(), "SERVER-FLAGS", "it did not arrive");
        let mut inventory = sqlite("v1.36.3+k3s1");
        host_mut(&mut inventory, "s1").arguments = Fact::unknown("it did not arrive");
        passes(&Case::of(&inventory).run(), "SERVER-FLAGS");
    }
}
