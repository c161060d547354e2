//! Feature gates of Kubernetes. K3s runs its components in one process with one list of gates, so a gate that is
//! unknown to the target stops it at its start whichever `*-arg` names it.

use std::collections::BTreeMap;
use std::fmt;

use super::{Gap, KnowledgeError, Minors, Table};
use crate::version::Minor;

/// What a minor of Kubernetes makes of a feature gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    Known(GateSpec),
    /// Minors before knew it. Setting it stops K3s: "unrecognized feature gate".
    Removed {
        since: Minor,
    },
    /// Only later minors know it. Setting it stops K3s.
    NotYet {
        since: Minor,
    },
    /// No minor in the data knows it: it was removed before the first of them, or is misspelt. Setting it stops K3s.
    NeverKnown,
    /// The data does not speak of this minor.
    NoData,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateSpec {
    pub stage: Stage,
    pub default: bool,
    /// Only the default may be set: another value stops K3s at its start.
    pub locked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Alpha,
    Beta,
    Ga,
    Deprecated,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
            Self::Ga => "GA",
            Self::Deprecated => "deprecated",
        })
    }
}

/// The gates of every minor in the data.
#[derive(Clone, Debug)]
pub struct Gates {
    minors: Minors,
    gates: BTreeMap<String, Vec<Option<GateSpec>>>,
}

impl Gates {
    pub(super) fn parse(text: &str) -> Result<Self, KnowledgeError> {
        let table = Table::parse("gates.tsv", text)?;
        let [name] = table.positions(["gate"])?;
        let minors = Minors::of(&table)?;
        let mut gates = BTreeMap::new();
        for (line, cells) in &table.rows {
            let specs = minors.cells(cells).map(|cell| {
                let what = || table.error(*line, format!("`{cell}` is not stage, default and perhaps `locked`"));
                spec(cell).ok_or_else(what)
            });
            let specs = specs.collect::<Result<Vec<_>, _>>()?;
            if gates.insert(cells[name].to_owned(), specs).is_some() {
                return Err(table.error(*line, "a second row for one gate"));
            }
        }
        Ok(Self { minors, gates })
    }

    /// Gates are case-sensitive. The answer is that of the minor's patch in the data; patches differ seldom.
    pub fn gate(&self, minor: Minor, name: &str) -> Gate {
        let Some(at) = self.minors.position(minor) else { return Gate::NoData };
        let Some(specs) = self.gates.get(name) else { return Gate::NeverKnown };
        match specs[at] {
            Some(spec) => Gate::Known(spec),
            None => match self.minors.gap(specs, at) {
                Gap::After(since) => Gate::Removed { since },
                Gap::Before(since) => Gate::NotYet { since },
                Gap::Never => Gate::NeverKnown,
            },
        }
    }
}

/// `None`: the cell is broken; `Some(None)`: the minor does not know the gate.
fn spec(cell: &str) -> Option<Option<GateSpec>> {
    if cell == "-" {
        return Some(None);
    }
    let (stage, rest) = cell.split_once(' ')?;
    let stage = match stage {
        "alpha" => Stage::Alpha,
        "beta" => Stage::Beta,
        "ga" => Stage::Ga,
        "deprecated" => Stage::Deprecated,
        _ => return None,
    };
    let (default, locked) = match rest {
        "on" => (true, false),
        "off" => (false, false),
        "on locked" => (true, true),
        "off locked" => (false, true),
        _ => return None,
    };
    Some(Some(GateSpec { stage, default, locked }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knowledge::Knowledge;

    fn minor(text: &str) -> Minor {
        text.parse().expect("a minor")
    }

    fn gate(at: &str, name: &str) -> Gate {
        Knowledge::embedded().gates().gate(minor(at), name)
    }

    fn known(stage: Stage, default: bool, locked: bool) -> Gate {
        Gate::Known(GateSpec { stage, default, locked })
    }

    /// Spot checks against pkg/features/kube_features.go of each minor.
    #[test]
    fn gates_graduate_lock_and_go() {
        assert_eq!(gate("v1.32", "SidecarContainers"), known(Stage::Beta, true, false));
        assert_eq!(gate("v1.33", "SidecarContainers"), known(Stage::Ga, true, true));
        assert_eq!(gate("v1.36", "SidecarContainers"), known(Stage::Ga, true, true));
        assert_eq!(gate("v1.37", "SidecarContainers"), Gate::Removed { since: minor("v1.37") });
        assert_eq!(gate("v1.33", "MemoryManager"), known(Stage::Ga, true, true));
        assert_eq!(gate("v1.36", "MemoryManager"), Gate::Removed { since: minor("v1.36") });
        assert_eq!(gate("v1.37", "MemoryManager"), Gate::Removed { since: minor("v1.36") });
        assert_eq!(gate("v1.36", "GangScheduling"), known(Stage::Alpha, false, false));
    }

    #[test]
    fn a_gate_of_a_later_minor_is_not_there_yet() {
        assert_eq!(gate("v1.33", "GangScheduling"), Gate::NotYet { since: minor("v1.35") });
    }

    #[test]
    fn names_that_look_alike_are_not_taken_for_each_other() {
        for wrong in ["sidecarContainers", "SidecarContainer", "SidecarContainers=true", " SidecarContainers", ""] {
            assert_eq!(gate("v1.36", wrong), Gate::NeverKnown, "{wrong:?}");
        }
    }

    #[test]
    fn another_minor_is_no_data_not_never_known() {
        for outside in ["v1.31", "v1.38", "v2.36"] {
            assert_eq!(gate(outside, "SidecarContainers"), Gate::NoData, "{outside}");
        }
    }

    #[test]
    fn every_minor_has_gates_and_the_group_switches() {
        for at in ["v1.32", "v1.33", "v1.34", "v1.35", "v1.36", "v1.37"] {
            assert!(matches!(gate(at, "AllAlpha"), Gate::Known(_)), "{at}");
            let at = Knowledge::embedded().gates().minors.position(minor(at)).expect("a column");
            let count = Knowledge::embedded().gates().gates.values().filter(|specs| specs[at].is_some()).count();
            assert!(count > 150, "{count}");
        }
    }

    #[test]
    fn broken_cells_are_refused() {
        for broken in ["", "ga", "on", "beta maybe", "gamma on", "beta on locked twice", "beta  on"] {
            let text = format!("gate\tv1.36@4\nSome\t{broken}\n");
            assert!(Gates::parse(&text).is_err(), "{broken:?}");
        }
        assert!(Gates::parse("gate\tv1.36@4\nSome\tbeta on\nSome\tbeta on\n").is_err(), "twice");
        assert!(Gates::parse("gate\tv1.36\nSome\tbeta on\n").is_err(), "a minor without its patch");
    }
}
