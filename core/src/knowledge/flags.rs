//! The flags of `k3s server` and `k3s agent`, which are the keys of `config.yaml`, and those of the components inside
//! `kube-apiserver-arg`, `kubelet-arg` and so on.

use std::collections::BTreeMap;

use super::{Gap, KnowledgeError, Minors, Table};
use crate::inventory::Role;
use crate::version::{Minor, Version};

/// What a release makes of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flag<'a> {
    Known {
        /// Works and is not in `--help`.
        hidden: bool,
        deprecated: bool,
        /// What to use instead, where the data says so.
        instead: Option<&'a str>,
    },
    /// Earlier minors knew it.
    Removed {
        since: Minor,
        /// What to use instead, where the data says so.
        instead: Option<&'a str>,
    },
    /// The first release that knows it is later.
    NotYet { since: Version },
    /// No release in the data knows it, and this one is among those that were read.
    Unknown,
    /// No release in the data knows it, but this one is later than the last that was read, and may.
    NotSeen {
        /// The last patch of the minor that was read; `None`: only a state from before the minor's first release.
        up_to: Option<Version>,
    },
    /// The data does not speak of this minor.
    NoData,
}

/// A Kubernetes component that K3s runs and passes arguments to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KubeComponent {
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
}

impl KubeComponent {
    /// From a key of K3s's configuration, without its dashes: `kube-apiserver-arg`. `None` for every other key, those
    /// of kube-proxy and the cloud controller manager included, whose flags are not in the data.
    pub fn of_key(key: &str) -> Option<Self> {
        match key {
            "kube-apiserver-arg" => Some(Self::ApiServer),
            // The short one is a hidden flag of its own.
            "kube-controller-manager-arg" | "kube-controller-arg" => Some(Self::ControllerManager),
            "kube-scheduler-arg" => Some(Self::Scheduler),
            "kubelet-arg" => Some(Self::Kubelet),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::ApiServer, Self::ControllerManager, Self::Scheduler, Self::Kubelet]
            .into_iter()
            .find(|component| component.name() == text)
    }
}

/// All flags in the data.
#[derive(Clone, Debug)]
pub struct Flags {
    minors: Minors,
    /// By role and name; an alias has an entry of its own.
    k3s: BTreeMap<(Role, String), Row>,
    component_minors: Minors,
    components: BTreeMap<(KubeComponent, String), Row>,
}

#[derive(Clone, Debug)]
struct Row {
    cells: Vec<Option<Cell>>,
    removed: Option<Minor>,
    instead: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    hidden: bool,
    deprecated: bool,
    /// The first patch of the minor that has it.
    patch: u64,
}

impl Flags {
    pub(super) fn parse(k3s: &str, components: &str) -> Result<Self, KnowledgeError> {
        let table = Table::parse("flags.tsv", k3s)?;
        let [role, flag, aliases, removed, instead] =
            table.positions(["role", "flag", "aliases", "removed", "instead"])?;
        let minors = Minors::of(&table)?;
        let mut flags = BTreeMap::new();
        for (line, cells) in &table.rows {
            let role = match cells[role] {
                "server" => Role::Server,
                "agent" => Role::Agent,
                other => return Err(table.error(*line, format!("`{other}` is not a role"))),
            };
            let removed = match cells[removed] {
                "" => None,
                minor => Some(minor.parse().map_err(|e| table.error(*line, format!("{e}")))?),
            };
            let instead = Some(cells[instead]).filter(|text| !text.is_empty()).map(str::to_owned);
            let row = Row { cells: parse_cells(&table, &minors, *line, cells)?, removed, instead };
            for name in [cells[flag]].into_iter().chain(cells[aliases].split(',')).filter(|name| !name.is_empty()) {
                if flags.insert((role, name.to_owned()), row.clone()).is_some() {
                    return Err(table.error(*line, format!("a second row for `{name}`")));
                }
            }
        }

        let table = Table::parse("component-flags.tsv", components)?;
        let [component, flag] = table.positions(["component", "flag"])?;
        let component_minors = Minors::of(&table)?;
        let mut of_components = BTreeMap::new();
        for (line, cells) in &table.rows {
            let unknown = || table.error(*line, format!("`{}` is not a component", cells[component]));
            let component = KubeComponent::parse(cells[component]).ok_or_else(unknown)?;
            let row =
                Row { cells: parse_cells(&table, &component_minors, *line, cells)?, removed: None, instead: None };
            if of_components.insert((component, cells[flag].to_owned()), row).is_some() {
                return Err(table.error(*line, format!("a second row for `{}`", cells[flag])));
            }
        }
        Ok(Self { minors, k3s: flags, component_minors, components: of_components })
    }

    /// A flag of `k3s server` or `k3s agent`: its name or an alias, without dashes and without the `+` by which a
    /// drop-in of `config.yaml` appends.
    pub fn flag(&self, role: Role, version: &Version, name: &str) -> Flag<'_> {
        answer(&self.minors, self.k3s.get(&(role, name.to_owned())), version)
    }

    /// A flag inside a `*-arg` value: `service-node-port-range` in `kube-apiserver-arg`.
    pub fn component_flag(&self, component: KubeComponent, version: &Version, name: &str) -> Flag<'_> {
        let name = match component {
            // It sets its own normalisation; the others leave that to their main program, which K3s replaces.
            KubeComponent::Kubelet => name.replace('_', "-"),
            _ => name.to_owned(),
        };
        answer(&self.component_minors, self.components.get(&(component, name)), version)
    }
}

fn parse_cells(
    table: &Table<'_>,
    minors: &Minors,
    line: usize,
    cells: &[&str],
) -> Result<Vec<Option<Cell>>, KnowledgeError> {
    let parsed = minors.cells(cells).map(|cell| {
        let broken = || table.error(line, format!("`{cell}` is not yes, hidden, deprecated or -"));
        let (word, patch) = cell.split_once('@').unwrap_or((cell, "0"));
        let patch = patch.parse().map_err(|_| broken())?;
        match word {
            "yes" => Ok(Some(Cell { hidden: false, deprecated: false, patch })),
            "hidden" => Ok(Some(Cell { hidden: true, deprecated: false, patch })),
            "deprecated" => Ok(Some(Cell { hidden: false, deprecated: true, patch })),
            "-" if word == cell => Ok(None),
            _ => Err(broken()),
        }
    });
    parsed.collect()
}

fn answer<'a>(minors: &Minors, row: Option<&'a Row>, version: &Version) -> Flag<'a> {
    let minor = version.minor();
    let Some(at) = minors.position(minor) else { return Flag::NoData };
    // A minor's later patches, and those of a minor that was only read before its first release, may know more.
    let absent = || match minors.patch(at) {
        Some(patch) if version.patch() <= patch => Flag::Unknown,
        patch => Flag::NotSeen { up_to: patch.map(|patch| release(minor, patch)) },
    };
    let Some(row) = row else { return absent() };
    let instead = row.instead.as_deref();
    if let Some(cell) = row.cells[at] {
        return if version.patch() < cell.patch {
            Flag::NotYet { since: release(minor, cell.patch) }
        } else {
            Flag::Known { hidden: cell.hidden, deprecated: cell.deprecated, instead }
        };
    }
    if let Some(since) = row.removed {
        return Flag::Removed { since, instead };
    }
    match minors.gap(&row.cells, at) {
        Gap::After(since) => Flag::Removed { since, instead },
        Gap::Before(since) => match (absent(), minors.position(since).and_then(|at| row.cells[at])) {
            // This release is later than what was read: a flag of the next minor may have been brought back to it.
            (unsure @ Flag::NotSeen { .. }, _) => unsure,
            (_, Some(cell)) => Flag::NotYet { since: release(since, cell.patch) },
            (absent, None) => absent,
        },
        Gap::Never => absent(),
    }
}

/// The first build of a patch.
fn release(minor: Minor, patch: u64) -> Version {
    Version::new(minor.major, minor.minor, patch, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Role::{Agent, Server};
    use crate::knowledge::Knowledge;

    fn v(text: &str) -> Version {
        text.parse().expect("a version")
    }

    fn minor(text: &str) -> Minor {
        text.parse().expect("a minor")
    }

    fn flag(role: Role, version: &str, name: &str) -> Flag<'static> {
        Knowledge::embedded().flags().flag(role, &v(version), name)
    }

    fn component(component: KubeComponent, version: &str, name: &str) -> Flag<'static> {
        Knowledge::embedded().flags().component_flag(component, &v(version), name)
    }

    const PLAIN: Flag<'_> = Flag::Known { hidden: false, deprecated: false, instead: None };
    const HIDDEN: Flag<'_> = Flag::Known { hidden: true, deprecated: false, instead: None };

    /// Spot checks against pkg/cli/cmds of each minor.
    #[test]
    fn flags_belong_to_roles() {
        assert_eq!(flag(Server, "v1.36.3+k3s1", "cluster-cidr"), PLAIN);
        assert_eq!(flag(Agent, "v1.36.3+k3s1", "cluster-cidr"), Flag::Unknown);
        assert_eq!(flag(Agent, "v1.36.3+k3s1", "node-taint"), PLAIN);
        assert_eq!(flag(Server, "v1.36.3+k3s1", "node-taint"), PLAIN);
    }

    #[test]
    fn aliases_and_hidden_flags_are_known() {
        for (name, expected) in [("t", PLAIN), ("token", PLAIN), ("disable-agent", HIDDEN), ("kine-tls", HIDDEN)] {
            assert_eq!(flag(Server, "v1.33.13+k3s1", name), expected, "{name}");
        }
    }

    #[test]
    fn a_flag_can_arrive_in_a_patch() {
        assert_eq!(flag(Server, "v1.33.13+k3s1", "helm-controller-arg"), Flag::NotYet { since: v("v1.34.10+k3s1") });
        assert_eq!(flag(Server, "v1.36.2+k3s1", "helm-controller-arg"), Flag::NotYet { since: v("v1.36.3+k3s1") });
        assert_eq!(flag(Server, "v1.36.3+k3s1", "helm-controller-arg"), PLAIN);
        assert_eq!(flag(Server, "v1.36.4+k3s1", "helm-controller-arg"), PLAIN, "what is known stays known");
        let deprecated = flag(Server, "v1.36.3+k3s1", "helm-job-image");
        assert!(matches!(deprecated, Flag::Known { deprecated: true, instead: Some(_), .. }), "{deprecated:?}");
    }

    #[test]
    fn removed_flags_say_since_when_and_what_instead() {
        let removed = Flag::Removed { since: minor("v1.26"), instead: Some("disable") };
        assert_eq!(flag(Server, "v1.36.3+k3s1", "no-deploy"), removed);
        assert_eq!(flag(Server, "v1.36.99+k3s1", "no-deploy"), removed, "it does not come back");
        let multi = Flag::Removed { since: minor("v1.29"), instead: None };
        assert_eq!(flag(Server, "v1.33.1+k3s1", "multi-cluster-cidr"), multi);
    }

    #[test]
    fn names_that_look_alike_are_not_taken_for_each_other() {
        for wrong in ["cluster_cidr", "Cluster-cidr", "--cluster-cidr", "cluster-cidrs", "tls-san+", "", "no-deploys"] {
            assert_eq!(flag(Server, "v1.36.3+k3s1", wrong), Flag::Unknown, "{wrong:?}");
        }
    }

    #[test]
    fn later_than_what_was_read_is_not_seen_rather_than_unknown() {
        let up_to = Some(v("v1.36.3+k3s1"));
        assert_eq!(flag(Server, "v1.36.5+k3s1", "no-such-flag"), Flag::NotSeen { up_to: up_to.clone() });
        assert_eq!(flag(Server, "v1.36.5+k3s1", "write-kubeconfig-name"), Flag::NotSeen { up_to });
        let next = Flag::NotYet { since: v("v1.37.0+k3s1") };
        assert_eq!(flag(Server, "v1.36.3+k3s1", "write-kubeconfig-name"), next);
        assert_eq!(flag(Server, "v1.37.0+k3s1", "no-such-flag"), Flag::NotSeen { up_to: None });
    }

    #[test]
    fn another_minor_is_no_data() {
        for outside in ["v1.32.9+k3s1", "v1.38.0+k3s1", "v2.36.3+k3s1"] {
            assert_eq!(flag(Server, outside, "cluster-cidr"), Flag::NoData, "{outside}");
        }
    }

    #[test]
    fn component_flags_come_and_go_with_minors() {
        use KubeComponent::{ApiServer, ControllerManager, Kubelet, Scheduler};
        for (of, name) in [
            (ApiServer, "service-node-port-range"),
            (ControllerManager, "terminated-pod-gc-threshold"),
            (Scheduler, "bind-address"),
            (Kubelet, "feature-gates"),
        ] {
            for version in ["v1.33.13+k3s1", "v1.34.10+k3s1", "v1.35.8+k3s1", "v1.36.4+k3s1", "v1.37.1+k3s1"] {
                assert!(matches!(component(of, version, name), Flag::Known { .. }), "{name} {version}");
            }
        }
        // Kubernetes 1.35 dropped the kubelet's flag for the pause image, 1.37 all of cAdvisor's but one.
        let pause = "pod-infra-container-image";
        assert!(matches!(component(Kubelet, "v1.34.10+k3s1", pause), Flag::Known { deprecated: true, .. }));
        let removed = |since| Flag::Removed { since: minor(since), instead: None };
        assert_eq!(component(Kubelet, "v1.35.8+k3s1", pause), removed("v1.35"));
        assert_eq!(component(Kubelet, "v1.35.9+k3s1", pause), removed("v1.35"), "it does not come back");
        assert_eq!(component(Kubelet, "v1.37.1+k3s1", "containerd"), removed("v1.37"));
        assert_eq!(component(Kubelet, "v1.37.1+k3s1", "housekeeping-interval"), PLAIN);
        let next = Flag::NotYet { since: v("v1.36.0+k3s1") };
        assert_eq!(component(ApiServer, "v1.35.8+k3s1", "tls-curve-preferences"), next);
        assert_eq!(component(Scheduler, "v1.36.4+k3s1", "service-node-port-range"), Flag::Unknown);
    }

    #[test]
    fn only_the_kubelet_takes_underscores_for_dashes() {
        use KubeComponent::{ApiServer, ControllerManager, Kubelet};
        assert!(matches!(component(Kubelet, "v1.36.4+k3s1", "max_pods"), Flag::Known { .. }));
        assert_eq!(component(Kubelet, "v1.36.4+k3s1", "max__pods"), Flag::Unknown);
        assert_eq!(component(ApiServer, "v1.36.4+k3s1", "event_ttl"), Flag::Unknown);
        assert_eq!(component(ControllerManager, "v1.36.4+k3s1", "concurrent_rc_syncs"), PLAIN);
        assert_eq!(component(ControllerManager, "v1.36.4+k3s1", "concurrent-rc-syncs"), Flag::Unknown);
    }

    #[test]
    fn every_argument_key_leads_to_its_component() {
        assert_eq!(KubeComponent::of_key("kubelet-arg"), Some(KubeComponent::Kubelet));
        assert_eq!(KubeComponent::of_key("kube-controller-arg"), Some(KubeComponent::ControllerManager));
        for other in
            ["kubelet", "etcd-arg", "kube-proxy-arg", "kube-cloud-controller-manager-arg", "helm-controller-arg"]
        {
            assert_eq!(KubeComponent::of_key(other), None, "{other}");
        }
    }

    #[test]
    fn broken_rows_are_refused() {
        let head = "role\tflag\taliases\tv1.36@3\tremoved\tinstead\n";
        let components = "component\tflag\tv1.36@4\n";
        let parse = |row: &str| Flags::parse(&format!("{head}{row}\n"), components);
        assert!(parse("server\ttoken\tt\tyes@1\t\t").is_ok());
        for broken in [
            "master\ttoken\tt\tyes\t\t",
            "server\ttoken\tt\tmaybe\t\t",
            "server\ttoken\tt\t-@1\t\t",
            "server\ttoken\tt\tyes@x\t\t",
            "server\ttoken\tt\tyes\t1.26\t",
            "server\ttoken\ttoken\tyes\t\t",
            "server\ttoken\tt\tyes\t",
        ] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
        assert!(Flags::parse(head, &format!("{components}etcd\tname\tyes\n")).is_err());
    }
}
