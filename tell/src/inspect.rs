//! What runs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kadence_core::fact::Fact;
use kadence_core::inventory::{Certificate, Cordon, Datastore, Disk, EtcdRole, Install, Inventory, Manager, Node};

use crate::Style;
use crate::layout::{Page, bad, dim, good, strong, warn};
use crate::words::{bytes, count, duration, fact, names, servers_and_agents, time};

/// The inventory: the answer, the nodes, the datastore, what stands around, what is not known.
///
/// `verbose` 1 adds what each host says of itself, 2 the arguments of its K3s (secrets are not in an inventory).
pub fn text(inventory: &Inventory, style: Style) -> String {
    let mut page = Page::new(style);
    page.say(&strong(&answer(inventory)));
    page.gap();
    nodes(&mut page, inventory);
    page.gap();
    datastore(&mut page, inventory);
    workload(&mut page, inventory);
    surroundings(&mut page, inventory);
    if page.verbose(1) {
        for node in &inventory.nodes {
            page.gap();
            host(&mut page, node, inventory.taken);
        }
    }
    contradictions(&mut page, inventory);
    unknown(&mut page, inventory);
    page.gap();
    page.say(&format!("Next: kadence check {}", inventory.cluster));
    page.finish()
}

fn answer(inventory: &Inventory) -> String {
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for node in &inventory.nodes {
        *versions.entry(fact(&node.version)).or_default() += 1;
    }
    let versions = match versions.len() {
        0 => "no node was found".to_owned(),
        1 => format!("all on {}", versions.keys().next().map(String::as_str).unwrap_or_default()),
        _ => versions.iter().map(|(v, n)| format!("{n} on {v}")).collect::<Vec<_>>().join(", "),
    };
    let not_ready: Vec<_> = inventory.nodes.iter().filter(|n| n.ready.is(&false)).map(|n| &n.name).collect();
    let unsure: Vec<_> = inventory.nodes.iter().filter(|n| n.ready.known().is_none()).map(|n| &n.name).collect();
    let ready = match (not_ready.is_empty(), unsure.is_empty()) {
        (true, true) => "all Ready".to_owned(),
        (false, true) => format!("not Ready: {}", names(not_ready)),
        (true, false) => format!("whether Ready is not known of {}", names(unsure)),
        (false, false) => format!("not Ready: {}, not known of {}", names(not_ready), names(unsure)),
    };
    let shape = servers_and_agents(inventory.nodes.iter().map(|n| n.role));
    format!("{}: {shape}, {versions}, {ready}; {}.", inventory.cluster, store(inventory))
}

fn store(inventory: &Inventory) -> String {
    match &inventory.datastore {
        Fact::Unknown(_) => "its datastore is not known".to_owned(),
        Fact::Known(datastore @ (Datastore::Sqlite | Datastore::External)) => datastore.word().to_owned(),
        Fact::Known(datastore @ Datastore::EmbeddedEtcd { .. }) => {
            let voters = inventory.nodes.iter().filter(|n| n.etcd.is(&EtcdRole::Voter)).count();
            let leader = leader(inventory).map_or_else(String::new, |n| format!(", {} leads", n.name));
            format!("{}, {}{leader}", datastore.word(), count(voters, "voter"))
        }
    }
}

fn leader(inventory: &Inventory) -> Option<&Node> {
    inventory.nodes.iter().find(|n| n.etcd_local().is_some_and(|e| e.leader))
}

fn nodes(page: &mut Page, inventory: &Inventory) {
    // Worth a column only where it tells nodes apart.
    let mixed = inventory.nodes.windows(2).any(|pair| pair[0].arch != pair[1].arch);
    let arch = if mixed { "arch" } else { "" };
    let mut rows: Vec<Vec<String>> =
        vec![["", "node", "role", "version", "state", "etcd", "runtime", arch, "address"].map(dim).to_vec()];
    rows.extend(inventory.nodes.iter().map(|node| {
        let mark = match (&node.ready, node.cordon()) {
            (Fact::Known(true), Cordon::None) => good("✔"),
            (Fact::Known(true), _) => warn("!"),
            (Fact::Known(false), _) => bad("✘"),
            (Fact::Unknown(_), _) => warn("?"),
        };
        vec![
            mark,
            node.name.to_string(),
            node.role.to_string(),
            fact(&node.version),
            state(node),
            etcd(node),
            node.object.as_ref().map(|o| o.runtime.replace("://", " ")).unwrap_or_default(),
            if mixed { fact(&node.arch) } else { String::new() },
            node.address.clone(),
        ]
    }));
    page.table(2, &rows);
}

fn state(node: &Node) -> String {
    let ready = match &node.ready {
        Fact::Known(true) => "Ready",
        Fact::Known(false) => "NotReady",
        Fact::Unknown(_) => "unknown",
    };
    let cordon = match node.cordon() {
        Cordon::None => String::new(),
        Cordon::Ours { mark } => format!(", cordoned by Kadence ({})", mark.rollout),
        Cordon::Foreign => ", cordoned".to_owned(),
    };
    let pressures: String =
        node.object.iter().flat_map(|o| &o.pressures).map(|pressure| format!(", {pressure}")).collect();
    format!("{ready}{cordon}{pressures}")
}

fn etcd(node: &Node) -> String {
    let role = match &node.etcd {
        Fact::Known(EtcdRole::None) => return String::new(),
        Fact::Known(EtcdRole::Voter) => "voter",
        Fact::Known(EtcdRole::Learner) => "learner",
        Fact::Unknown(_) => "unknown",
    };
    match node.etcd_local() {
        Some(local) if !local.healthy => format!("{role}, {}", bad("unhealthy")),
        Some(local) if local.leader => format!("{role}, leads"),
        Some(_) => role.to_owned(),
        None => format!("{role}, not asked"),
    }
}

fn datastore(page: &mut Page, inventory: &Inventory) {
    match &inventory.datastore {
        Fact::Unknown(why) => page.entry("  datastore  ", &format!("{} {why}", warn("? not known:"))),
        Fact::Known(Datastore::EmbeddedEtcd { members }) => {
            let text = match members {
                Fact::Unknown(why) => format!("{} {why}", warn("? members not known:")),
                Fact::Known(members) => {
                    let list: BTreeSet<String> = members
                        .iter()
                        .map(|m| {
                            let node = m.node().map_or_else(|| m.name.clone(), |n| n.to_string());
                            let learner = if m.learner { " (learner)" } else { "" };
                            let id = if page.verbose(1) { format!(" {}", m.id) } else { String::new() };
                            format!("{node}{learner}{id}")
                        })
                        .collect();
                    let list = list.into_iter().collect::<Vec<_>>().join(", ");
                    format!("{} by etcd's own list: {list}", count(members.len(), "member"))
                }
            };
            page.entry("  etcd       ", &text);
            let known = |f: &dyn Fn(&kadence_core::inventory::EtcdLocal) -> Option<String>| {
                let all: BTreeSet<String> = inventory.nodes.iter().filter_map(Node::etcd_local).filter_map(f).collect();
                all.into_iter().collect::<Vec<_>>().join(", ")
            };
            let versions = known(&|e| e.version.known().cloned());
            let local = leader(inventory).and_then(Node::etcd_local);
            let size = local.and_then(|e| e.db_bytes.known().copied()).map(bytes);
            let quota = local.and_then(|e| e.quota_bytes.known().copied()).map(bytes);
            let alarms = known(&|e| e.alarms.known().filter(|a| !a.is_empty()).map(|a| a.join(", ")));
            let mut parts = Vec::new();
            if !versions.is_empty() {
                parts.push(format!("version {versions}"));
            }
            if let Some(size) = size {
                parts.push(match quota {
                    Some(quota) => format!("{size} of {quota} used"),
                    None => format!("{size} used"),
                });
            }
            if !alarms.is_empty() {
                parts.push(bad(&format!("alarms: {alarms}")));
            }
            if !parts.is_empty() {
                page.entry("             ", &parts.join(" · "));
            }
        }
        Fact::Known(other) => {
            let files = inventory
                .nodes
                .iter()
                .filter_map(|n| n.host.known()?.sqlite.as_ref()?.known())
                .map(|f| format!(": {} ({}, and {} not yet merged)", f.path, bytes(f.db_bytes), bytes(f.wal_bytes)))
                .collect::<String>();
            page.entry("  datastore  ", &format!("{}{files}", other.word()));
        }
    }
    match &inventory.surroundings.newest_snapshot {
        Fact::Known(Some(at)) => page.entry("  snapshot   ", &format!("the newest that K3s lists is of {}", time(*at))),
        Fact::Known(None) | Fact::Unknown(_) => {}
    }
}

fn workload(page: &mut Page, inventory: &Inventory) {
    let workload = &inventory.workload;
    let mut parts = Vec::new();
    match &workload.controllers {
        Fact::Unknown(why) => parts.push(warn(&format!("? workloads not known: {why}"))),
        Fact::Known(all) => {
            let short: Vec<String> = all
                .iter()
                .filter(|c| c.available < c.desired)
                .map(|c| format!("{}/{} {} of {}", c.namespace, c.name, c.available, c.desired))
                .collect();
            let workloads = count(all.len(), "workload");
            parts.push(match (all.is_empty(), short.is_empty()) {
                (true, _) => "no workload".to_owned(),
                (false, true) => format!("{workloads}, all available"),
                (false, false) => format!("{workloads}, {}", warn(&format!("not all available: {}", short.join(", ")))),
            });
        }
    }
    if let Fact::Known(pods) = &workload.pods {
        parts.push(count(pods.len(), "pod"));
    }
    if let Fact::Known(budgets) = &workload.budgets
        && !budgets.is_empty()
    {
        let shut: Vec<String> = budgets
            .iter()
            .filter(|b| b.disruptions_allowed == 0 && b.expected_pods > 0)
            .map(|b| format!("{}/{}", b.namespace, b.name))
            .collect();
        let shut = if shut.is_empty() { String::new() } else { format!(" ({} lets no pod go now)", shut.join(", ")) };
        parts.push(format!("{}{shut}", count(budgets.len(), "disruption budget")));
    }
    page.entry("  workload   ", &parts.join(" · "));
}

fn surroundings(page: &mut Page, inventory: &Inventory) {
    let around = &inventory.surroundings;
    let mut parts = Vec::new();
    if let Fact::Known(packaged) = &around.packaged {
        let open: Vec<&str> = packaged.iter().filter(|p| !p.settled).map(|p| p.name.as_str()).collect();
        let open = if open.is_empty() { String::new() } else { warn(&format!(" ({} not settled)", open.join(", "))) };
        parts.push(format!("{}{open}", count(packaged.len(), "packaged component")));
    }
    if let Fact::Known(releases) = &around.helm_releases
        && !releases.is_empty()
    {
        let bad: Vec<String> = releases
            .iter()
            .filter(|r| r.status != "deployed")
            .map(|r| format!("{}/{} {}", r.namespace, r.name, r.status))
            .collect();
        let bad = if bad.is_empty() { String::new() } else { warn(&format!(" ({})", bad.join(", "))) };
        parts.push(format!("{}{bad}", count(releases.len(), "Helm release")));
    }
    if let Fact::Known(webhooks) = &around.webhooks
        && !webhooks.is_empty()
    {
        parts.push(format!("{} that fails closed", count(webhooks.len(), "webhook")));
    }
    if let Fact::Known(broken) = &around.broken_api_services
        && !broken.is_empty()
    {
        parts.push(warn(&format!("APIService not available: {}", broken.join(", "))));
    }
    if !parts.is_empty() {
        page.entry("  around     ", &parts.join(" · "));
    }
    for manager in around.managers.known().into_iter().flatten() {
        page.entry("  managed by ", &warn(&managed(manager)));
    }
    if let Fact::Known(Some(lease)) = &around.lease {
        let rollout = lease.rollout.as_deref().map(|r| format!(", rollout {r}")).unwrap_or_default();
        page.entry("  lease      ", &format!("held by {}{rollout}, renewed {}", lease.holder, time(lease.renewed)));
    }
}

fn managed(manager: &Manager) -> String {
    match manager {
        Manager::UpgradePlan { name, applying, rancher, gitops } => {
            let now = if applying.is_empty() { String::new() } else { format!(", at work on {}", applying.join(", ")) };
            let whose = match (rancher, gitops) {
                (true, _) => " (Rancher's)",
                (false, true) => " (from GitOps)",
                (false, false) => "",
            };
            format!("system-upgrade-controller, Plan {name}{whose}{now}")
        }
        Manager::Rancher { evidence } => format!("Rancher ({evidence})"),
        Manager::KuredLock { node } => format!("kured, which holds its reboot lock for {node}"),
        Manager::GitOps { object, owner } => format!("{owner}, which owns {object}"),
    }
}

fn host(page: &mut Page, node: &Node, now: Timestamp) {
    page.say(&format!("  {}", strong(node.name.as_str())));
    let mut entry = |label: &str, text: String| {
        if !text.is_empty() {
            page.entry(&format!("    {label:<14}"), &text);
        }
    };
    if let Some(object) = &node.object {
        entry("system", format!("{}, kernel {}, {}", object.os_image, object.kernel, fact(&node.arch)));
        entry("taints", object.taints.join(", "));
    }
    let host = match &node.host {
        Fact::Known(host) => host,
        Fact::Unknown(why) => return entry("host", warn(&format!("? not known: {why}"))),
    };
    entry("installed", known("K3s", host.install.as_ref().map(installed)));
    entry("disks", known("disks", host.disks.as_ref().map(|all| disks(all))));
    let clock = known("offset", host.clock_offset.as_ref().map(|o| format!("{} from here", duration(o.abs()))));
    let ntp = host.ntp_synchronised.as_ref().map(|s| if *s { "synchronised" } else { "not synchronised" }.to_owned());
    entry("clock", format!("{clock}, {}", known("NTP", ntp)));
    let cgroup = host.cgroup.as_ref().map(|c| format!("cgroup {}", format!("{c:?}").to_lowercase()));
    entry("cgroup", known("cgroup", cgroup));
    entry("certificates", known("certificates", host.certificates.as_ref().map(|all| certificates(all, now))));
    if let Some(encryption) = &host.secrets_encryption {
        let words = encryption.as_ref().map(|e| match e.enabled {
            true => format!("of Secrets on, stage {}", e.stage),
            false => "of Secrets off".to_owned(),
        });
        entry("encryption", known("secrets", words));
    }
    if let Fact::Known(arguments) = &host.arguments {
        entry("arguments", format!("{} set", count(arguments.entries.len(), "argument")));
        for unreadable in &arguments.unreadable {
            entry("", warn(&format!("? {unreadable}")));
        }
        if page.verbose(2) {
            for argument in &arguments.entries {
                let value = argument.value.as_deref().unwrap_or("(not shown)");
                page.entry("      ", &format!("{} = {value}  {}", argument.key, dim(&argument.place)));
            }
        }
    }
}

/// What a host said, or why it is not known.
fn known(label: &str, fact: Fact<String>) -> String {
    match fact {
        Fact::Known(text) => text,
        Fact::Unknown(why) => format!("{label} {} {why}", warn("? not known:")),
    }
}

fn installed(install: &Install) -> String {
    let Install { binary, size, digest, unit, data_dir, .. } = install;
    format!(
        "{binary} ({}, sha256 {}), unit {} {} {}, data in {data_dir}",
        bytes(*size),
        digest.short(12),
        unit.name,
        unit.active,
        if unit.enabled { "and enabled" } else { "but not enabled" },
    )
}

fn disks(disks: &[Disk]) -> String {
    let free = |d: &Disk| format!("{} {} of {} free", d.mount, bytes(d.free), bytes(d.total));
    disks.iter().map(free).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" · ")
}

fn certificates(all: &[Certificate], now: Timestamp) -> String {
    let ends = |ca: bool| all.iter().filter(|c| c.ca == ca).map(|c| c.not_after).min();
    let days = |at: Timestamp| format!("{} (in {})", time(at), duration(at.duration_since(now)));
    let leaf = ends(false).map(|at| format!("first to end {}", days(at)));
    let ca = ends(true).map(|at| format!("CA {}", days(at)));
    leaf.into_iter().chain(ca).collect::<Vec<_>>().join(", ")
}

fn contradictions(page: &mut Page, inventory: &Inventory) {
    if inventory.contradictions.is_empty() {
        return;
    }
    page.gap();
    page.say(&format!("  {}", bad("✘ The sources disagree; nothing is planned before this is explained:")));
    for what in &inventory.contradictions {
        page.entry("    ", what);
    }
}

fn unknown(page: &mut Page, inventory: &Inventory) {
    if inventory.unknown.is_empty() {
        return;
    }
    page.gap();
    let is = if inventory.unknown.len() == 1 { "is" } else { "are" };
    page.say(&format!("  {}", warn(&format!("? {} {is} not known:", count(inventory.unknown.len(), "fact")))));
    // The same reason for many facts of one node is said once.
    let mut grouped: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for u in &inventory.unknown {
        match grouped.iter_mut().find(|(of, why, _)| *of == u.of && *why == u.why) {
            Some((_, _, facts)) => facts.push(&u.fact),
            None => grouped.push((&u.of, &u.why, vec![&u.fact])),
        }
    }
    let width = grouped.iter().map(|(of, ..)| of.chars().count()).max().unwrap_or_default();
    for (of, why, facts) in grouped {
        page.entry(&format!("    {of:<width$}  "), &format!("{}: {why}", facts.join(", ")));
    }
}
