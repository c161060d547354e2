//! What was changed on a node's disk and has no effect yet.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::{Argument, HostFacts, LastStart, Node, Origin, StartFile};
use crate::knowledge::flags::Flag;

pub(super) const CHECK: Check = Check {
    code: "PENDING-CONFIG",
    number: 47,
    title: "K3s runs with the configuration that is on the disk",
    why: "the update restarts K3s: whatever was changed on the disk since its last start goes live with it, untested, and \
          looks like the new version's doing",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

/// File times are in whole seconds, and the start's time is reckoned from two clocks.
const SLACK: SignedDuration = SignedDuration::from_secs(1);

fn judge(question: &Question<'_>) -> Vec<Answer> {
    question.hosts().flat_map(|(node, host)| of_node(node, host, question)).collect()
}

fn of_node(node: &Node, host: &HostFacts, question: &Question<'_>) -> Vec<Answer> {
    let name = &node.name;
    let start = match &host.last_start {
        Fact::Known(start) => start,
        Fact::Unknown(why) => return vec![Answer::unknown(name, "since when its K3s runs, and with what", why)],
    };
    let remedy = || {
        format!(
            "have it take effect first, in a quiet hour: systemctl daemon-reload && systemctl restart {} on {name}; or \
             take the change back",
            host.install.known().map_or(node.role.unit(), |i| i.unit.name.as_str())
        )
    };
    let mut answers = Vec::new();
    match &start.needs_daemon_reload {
        Fact::Known(false) => {}
        Fact::Known(true) => answers.push(
            Answer::block(name, format!("the unit of {name} was changed, and systemd has not read it again"))
                .fact(format!("on {name}: systemctl show --property NeedDaemonReload: yes"))
                .remedy(remedy()),
        ),
        Fact::Unknown(why) => {
            answers.push(Answer::unknown(name, "whether systemd has the unit's files as they are", why));
        }
    }
    answers.extend(files(node, start).map(|answer| answer.remedy(remedy())));
    answers.extend(arguments(node, host, question).map(|answer| answer.remedy(remedy())));
    answers
}

/// A unit without a process has nothing in effect; `BASELINE` says that it is down.
fn files(node: &Node, start: &LastStart) -> Option<Answer> {
    let name = &node.name;
    let since = start.at?.checked_add(SLACK).ok()?;
    let newer = |time: fn(&StartFile) -> jiff::Timestamp| {
        start.reads.iter().filter(move |f| time(f) > since).collect::<Vec<_>>()
    };
    let (written, touched) = (newer(|f| f.written), newer(|f| f.changed));
    let paths = |files: &[&StartFile]| listed(files.iter().map(|f| f.path.as_str()));
    let answer = if written.is_empty() {
        if touched.is_empty() {
            return None;
        }
        let what = format!("{} was moved, copied or given other rights after K3s started on {name}", paths(&touched));
        Answer::warn(name, what)
    } else {
        Answer::block(name, format!("{} was changed after K3s started on {name}", paths(&written)))
    };
    let facts = touched.iter().map(|f| format!("on {name}: stat {}: changed {}", f.path, f.changed));
    let answer = facts.fold(answer, Answer::fact);
    Some(answer.fact(format!("K3s runs there since {}", start.at?)))
}

/// K3s's own record of its arguments on the Node, against what the files say now. Settings from the environment are not
/// in the record, and secrets are starred in it.
fn arguments(node: &Node, host: &HostFacts, question: &Question<'_>) -> Option<Answer> {
    let record = node.object.as_ref().map(|o| o.args.as_slice()).filter(|args| !args.is_empty())?;
    let entries = &host.arguments.known().filter(|a| a.unreadable.is_empty())?.entries;
    // Words that systemd puts together from variables when it starts K3s.
    if entries.iter().any(|e| e.origin == Origin::CommandLine && e.key.contains('$')) {
        return None;
    }
    let (record, disk) = (in_record(record), on_disk(entries));
    let keys: BTreeSet<&str> = record.keys().chain(disk.keys()).copied().collect();
    let differs = |key: &str| match (record.get(key), disk.get(key)) {
        (Some(Some(was)), Some(Some(is))) => !same(was, is),
        // One of the two hides its values.
        (Some(_), Some(_)) | (None, None) => false,
        (Some(_), None) => true,
        (None, Some(_)) => !is_dropped(node, key, question),
    };
    let differing: Vec<&str> = keys.into_iter().filter(|key| differs(key)).collect();
    if differing.is_empty() {
        return None;
    }
    let name = &node.name;
    let answer =
        Answer::block(name, format!("K3s on {name} runs with another {} than its files say", listed(&differing)));
    let facts = differing.iter().map(|key| {
        // A value is only told where the allow-list told it of the disk.
        let values = match (record.get(key), disk.get(key)) {
            (Some(Some(was)), Some(Some(is))) if !key.ends_with("-arg") => {
                format!("{} and {}", listed(was), listed(is))
            }
            (Some(_), Some(_)) => "different ones".to_owned(),
            (Some(_), None) => "set and not set".to_owned(),
            (None, _) => "not set and set".to_owned(),
        };
        format!("{key}, in the Node's annotation k3s.io/node-args and on the disk: {values}")
    });
    Some(facts.fold(answer, Answer::fact))
}

/// Whether the values are the same, as far as they are shown: of a component's argument perhaps only its name is.
fn same(record: &BTreeSet<&str>, disk: &BTreeSet<&str>) -> bool {
    fn name(value: &str) -> &str {
        value.split('=').next().unwrap_or_default()
    }
    record.iter().all(|was| disk.contains(was) || disk.contains(name(was)))
        && disk.iter().all(|is| record.contains(is) || record.iter().any(|was| name(was) == *is))
}

/// Whether a server that runs this version leaves the key of its config.yaml out, and so out of its record, too.
fn is_dropped(node: &Node, key: &str, question: &Question<'_>) -> bool {
    let flag = |version| question.knowledge.flags().flag(node.role, version, key);
    node.version.known().is_some_and(|v| matches!(flag(v), Flag::Removed { .. } | Flag::NotYet { .. } | Flag::Unknown))
}

/// The values of each key; `None` where they are not shown.
type Values<'a> = BTreeMap<&'a str, Option<BTreeSet<&'a str>>>;

/// `server`, then `--key` and its value; a switch can stand alone.
fn in_record(words: &[String]) -> Values<'_> {
    let mut values = Values::new();
    let mut words = words.iter().skip(1).map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        let (key, value) = match flag.split_once('=') {
            Some((key, value)) => (key, value),
            None => (flag, words.next_if(|w| !w.starts_with('-')).unwrap_or("true")),
        };
        let key = match key {
            "s" => "server",
            "t" => "token",
            "d" => "data-dir",
            "c" => "config",
            key => key,
        };
        add(&mut values, key, Some(value).filter(|v| !v.starts_with("****")));
    }
    values
}

/// Of the files, the last that has a key counts: a later one replaces what an earlier one says, or adds to it.
/// Which of both is not known here, so a value in an earlier file makes none of the later one's surprising.
fn on_disk(entries: &[Argument]) -> Values<'_> {
    let file = |a: &'_ Argument| a.place.rsplit_once(':').map_or(a.place.clone(), |(file, _)| file.to_owned());
    let mut last = BTreeMap::new();
    for entry in entries.iter().filter(|e| e.origin == Origin::ConfigFile) {
        let files: &mut BTreeSet<String> = last.entry(entry.key.as_str()).or_default();
        files.insert(file(entry));
    }
    let mut values = Values::new();
    for entry in entries.iter().filter(|e| e.origin != Origin::Environment) {
        let replaced = entry.origin == Origin::ConfigFile && last.get(entry.key.as_str()).is_some_and(|f| f.len() > 1);
        add(&mut values, &entry.key, entry.value.as_deref().filter(|value| !replaced && !value.contains('$')));
    }
    values
}

fn add<'a>(values: &mut Values<'a>, key: &'a str, value: Option<&'a str>) {
    let known = values.entry(key).or_insert_with(|| Some(BTreeSet::new()));
    match (known.as_mut(), value) {
        (Some(known), Some(value)) => {
            known.insert(value);
        }
        _ => *known = None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;
    use crate::inventory::example::{argument, ha, host_mut, node_mut, start_file};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn start(inventory: &mut Inventory) -> &mut LastStart {
        match &mut host_mut(inventory, "s2").last_start {
            Fact::Known(start) => start,
            Fact::Unknown(why) => unreachable!("the example's is known: {why}"),
        }
    }

    fn on_disk(inventory: &mut Inventory, entry: Argument) {
        if let Fact::Known(arguments) = &mut host_mut(inventory, "s2").arguments {
            arguments.entries.push(entry);
        }
    }

    fn in_record(inventory: &mut Inventory, words: &[&str]) {
        let object = node_mut(inventory, "s2").object.as_mut().expect("the example's node");
        object.args.extend(words.iter().map(|w| (*w).to_owned()));
    }

    fn run(inventory: &Inventory) -> Vec<crate::validate::finding::Finding> {
        Case::of(inventory).run()
    }

    #[test]
    fn a_file_that_was_changed_after_the_start_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        start(&mut inventory).reads.push(start_file("/etc/rancher/k3s/registries.yaml", 1));
        blocks(&run(&inventory), "PENDING-CONFIG", "registries.yaml was changed after K3s started on s2");
    }

    #[test]
    fn a_file_that_was_only_touched_warns() {
        let mut inventory = ha("v1.36.3+k3s1");
        let moved =
            StartFile { changed: start_file("", 1).changed, ..start_file("/etc/rancher/k3s/config.yaml", 24 * 90) };
        start(&mut inventory).reads = vec![moved];
        warns(&run(&inventory), "PENDING-CONFIG", "config.yaml was moved, copied or given other rights");
    }

    #[test]
    fn a_unit_that_systemd_has_not_read_again_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        start(&mut inventory).needs_daemon_reload = Fact::Known(true);
        blocks(&run(&inventory), "PENDING-CONFIG", "systemd has not read it again");
    }

    #[test]
    fn what_k3s_records_and_its_files_say_must_be_the_same() {
        let mut inventory = ha("v1.36.3+k3s1");
        on_disk(&mut inventory, argument("disable", "traefik"));
        blocks(&run(&inventory), "PENDING-CONFIG", "another disable than its files say");
        in_record(&mut inventory, &["--disable", "traefik"]);
        passes(&run(&inventory), "PENDING-CONFIG");
        in_record(&mut inventory, &["--disable=servicelb"]);
        blocks(&run(&inventory), "PENDING-CONFIG", "another disable than its files say");
    }

    #[test]
    fn what_is_hidden_is_not_guessed_at() {
        let mut inventory = ha("v1.36.3+k3s1");
        on_disk(&mut inventory, Argument { value: None, ..argument("token", "") });
        on_disk(&mut inventory, argument("selinux", "true"));
        on_disk(&mut inventory, Argument { origin: Origin::Environment, ..argument("node-name", "s2") });
        in_record(&mut inventory, &["--token", "********", "--selinux"]);
        passes(&run(&inventory), "PENDING-CONFIG");
    }

    #[test]
    fn no_value_is_told_that_the_allow_list_hides() {
        let mut inventory = ha("v1.36.3+k3s1");
        on_disk(&mut inventory, argument("kube-apiserver-arg", "oidc-client-secret"));
        in_record(&mut inventory, &["--kube-apiserver-arg", "oidc-client-secret=abc", "--vpn-auth", "joinKey=abc"]);
        let findings = run(&inventory);
        blocks(&findings, "PENDING-CONFIG", "another vpn-auth than its files say");
        assert!(!format!("{findings:?}").contains("abc"), "{findings:#?}");
    }

    #[test]
    fn what_a_server_drops_and_what_systemd_expands_is_not_missed() {
        let mut inventory = ha("v1.36.3+k3s1");
        on_disk(&mut inventory, argument("no-deploy", "traefik"));
        passes(&run(&inventory), "PENDING-CONFIG");
        on_disk(&mut inventory, Argument { origin: Origin::CommandLine, ..argument("node-ip", "${ADDRESS}") });
        in_record(&mut inventory, &["--node-ip", "10.0.0.12", "--selinux"]);
        blocks(&run(&inventory), "PENDING-CONFIG", "another selinux than");
        on_disk(&mut inventory, Argument { origin: Origin::CommandLine, ..argument("$OPTIONS", "") });
        passes(&run(&inventory), "PENDING-CONFIG");
    }

    #[test]
    fn a_later_file_may_replace_an_earlier_one() {
        let mut inventory = ha("v1.36.3+k3s1");
        on_disk(&mut inventory, argument("disable", "traefik"));
        let later = "/etc/rancher/k3s/config.yaml.d/90.yaml:1".to_owned();
        on_disk(&mut inventory, Argument { place: later, ..argument("disable", "servicelb") });
        in_record(&mut inventory, &["--disable", "servicelb"]);
        passes(&run(&inventory), "PENDING-CONFIG");
    }

    #[test]
    fn not_knowing_blocks_and_a_unit_that_is_down_has_nothing_in_effect() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s2").last_start = Fact::unknown("systemctl did not answer");
        unknown(&run(&inventory), "PENDING-CONFIG", "systemctl did not answer");
        let mut inventory = ha("v1.36.3+k3s1");
        start(&mut inventory).reads.push(start_file("/etc/rancher/k3s/config.yaml", 1));
        start(&mut inventory).at = None;
        passes(&run(&inventory), "PENDING-CONFIG");
    }
}
