//! Which hops need a check that is not there yet.

use std::str::FromStr;

use super::components::{Component, ComponentVersion};
use super::{Knowledge, KnowledgeError, Table};
use crate::version::{Minor, Version};

/// A hop that only a missing check could call safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The check's number in the list of things that go wrong in the field.
    pub check: u32,
    pub name: String,
    crosses: Crosses,
    pub applies: Applies,
    /// What can go wrong and is not looked for, as a sentence without its full stop.
    pub what: String,
    pub source: String,
}

/// The clusters that it can hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    All,
    /// K3s's packaged Traefik runs.
    Traefik,
    /// A HelmChartConfig changes the packaged Traefik.
    TraefikConfig,
    /// A server is told `kube-apiserver-arg: runtime-config`.
    RuntimeConfig,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Crosses {
    /// To this minor or beyond, from below.
    Minor(Minor),
    /// To this version of a component or a later one, from below.
    Component(Component, ComponentVersion),
    /// Any change of the component that ends at this version or a later one.
    Change(Component, ComponentVersion),
}

/// Whether a hop is one that a row speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    Yes,
    No,
    /// The data has no row of one of the releases, or not this component's version.
    NoData,
}

/// All rows.
#[derive(Clone, Debug)]
pub struct Needs {
    rows: Vec<Need>,
    /// The newest minor whose removed APIs were read.
    removals_to: Minor,
}

/// The number of the check for removed APIs, in the data.
const REMOVED_APIS: u32 = 14;

impl Needs {
    pub(super) fn parse(text: &str) -> Result<Self, KnowledgeError> {
        let table = Table::parse("hop-needs.tsv", text)?;
        let [check, crosses, applies, what, source] =
            table.positions(["check", "crosses", "where", "what", "source"])?;
        let mut rows = Vec::new();
        for (line, cells) in &table.rows {
            let broken = |what: &str| table.error(*line, what);
            let (number, name) =
                cells[check].split_once(' ').ok_or_else(|| broken("a check is a number and a name"))?;
            if cells[what].is_empty() || cells[source].is_empty() {
                return Err(broken("a row without its reason or its source"));
            }
            rows.push(Need {
                check: number.parse().map_err(|_| broken("a check's number is a number"))?,
                name: name.to_owned(),
                crosses: cells[crosses].parse().map_err(|()| broken("`crosses` is neither a minor nor a component"))?,
                applies: match cells[applies] {
                    "all" => Applies::All,
                    "traefik" => Applies::Traefik,
                    "traefik-config" => Applies::TraefikConfig,
                    "runtime-config" => Applies::RuntimeConfig,
                    _ => return Err(broken("`where` is none of the words at the head of the file")),
                },
                what: cells[what].to_owned(),
                source: cells[source].to_owned(),
            });
        }
        let minors = rows.iter().filter(|row| row.check == REMOVED_APIS).filter_map(|row| match row.crosses {
            Crosses::Minor(minor) => Some(minor),
            Crosses::Component(..) | Crosses::Change(..) => None,
        });
        let removals_to = minors.max().ok_or_else(|| table.error(0, "no minor whose removed APIs were read"))?;
        Ok(Self { rows, removals_to })
    }

    /// Every row, with whether this hop is one it speaks of.
    pub fn of(&self, knowledge: &Knowledge, from: &Version, to: &Version) -> impl Iterator<Item = (&Need, Crossing)> {
        self.rows.iter().map(move |row| (row, row.crosses.by(knowledge, from, to)))
    }

    /// Whether it is known which APIs go on the way to this version.
    pub fn removals_known(&self, to: &Version) -> bool {
        to.minor() <= self.removals_to
    }
}

impl FromStr for Crosses {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let Some((component, version)) = text.split_once('@') else {
            return text.parse().map(Self::Minor).map_err(|_| ());
        };
        let component = Component::ALL.into_iter().find(|c| c.name() == component).ok_or(())?;
        let exact = |text| ComponentVersion::parse(text).filter(|v| v.patch.is_some()).ok_or(());
        match version.strip_suffix('+') {
            Some(version) => Ok(Self::Change(component, exact(version)?)),
            None => Ok(Self::Component(component, exact(version)?)),
        }
    }
}

impl Crosses {
    fn by(&self, knowledge: &Knowledge, from: &Version, to: &Version) -> Crossing {
        let part = |version: &Version, component| knowledge.components(version).and_then(|c| c.get(component));
        let reached = |version: Option<&ComponentVersion>, bound: &ComponentVersion| {
            version.map(|v| {
                (v.major, v.minor, v.patch.unwrap_or(0)) >= (bound.major, bound.minor, bound.patch.unwrap_or(0))
            })
        };
        let both = |first: Option<bool>, second: Option<bool>| match (first, second) {
            (Some(false), _) | (_, Some(false)) => Crossing::No,
            (Some(true), Some(true)) => Crossing::Yes,
            _ => Crossing::NoData,
        };
        match self {
            Self::Minor(minor) => both(Some(from.minor() < *minor), Some(to.minor() >= *minor)),
            Self::Component(component, bound) => {
                both(reached(part(from, *component), bound).map(|was| !was), reached(part(to, *component), bound))
            }
            Self::Change(component, bound) => {
                let (was, is) = (part(from, *component), part(to, *component));
                both(was.zip(is).map(|(was, is)| was != is), reached(is, bound))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(from: &str, to: &str) -> Vec<(u32, Crossing)> {
        let v = |text: &str| text.parse::<Version>().expect("a version");
        let (knowledge, from, to) = (Knowledge::embedded(), v(from), v(to));
        let all = knowledge.needs().of(knowledge, &from, &to);
        all.filter(|(_, crossing)| *crossing != Crossing::No).map(|(need, crossing)| (need.check, crossing)).collect()
    }

    #[test]
    fn a_hop_needs_what_lies_between_its_ends() {
        assert_eq!(needs("v1.32.1+k3s1", "v1.32.2+k3s1"), [(12, Crossing::Yes)], "Traefik 3 came with a patch");
        assert_eq!(needs("v1.35.6+k3s1", "v1.35.7+k3s1"), [(11, Crossing::Yes)]);
        assert_eq!(needs("v1.36.3+k3s1", "v1.36.4+k3s1"), [], "the same Traefik");
        assert_eq!(needs("v1.35.7+k3s1", "v1.36.4+k3s1"), [(14, Crossing::Yes)]);
    }

    #[test]
    fn what_the_data_does_not_say_is_not_taken_for_safe() {
        assert_eq!(needs("v1.31.9+k3s1", "v1.32.4+k3s1"), [(14, Crossing::Yes), (12, Crossing::NoData)]);
        let later = needs("v1.35.7+k3s1", "v1.35.8+k3s1");
        assert_eq!(later, [(11, Crossing::NoData)], "v1.35.7 has Traefik 3 already, so 12 is settled");
        let v = |text: &str| text.parse::<Version>().expect("a version");
        let needs = Knowledge::embedded().needs();
        assert!(needs.removals_known(&v("v1.36.4+k3s1")) && !needs.removals_known(&v("v1.37.0+k3s1")));
    }

    #[test]
    fn broken_rows_are_refused() {
        let head = "check\tcrosses\twhere\twhat\tsource\n14 removed APIs\tv1.32\tall\tx\ty\n";
        assert!(Needs::parse(head).is_ok());
        for row in [
            "14\tv1.32\tall\tx\ty",
            "x y\tv1.32\tall\tx\ty",
            "1 y\tnginx@1.0.0\tall\tx\ty",
            "1 y\tv1.32\tsome\tx\ty",
            "1 y\tv1.32\tall\tx\t",
        ] {
            assert!(Needs::parse(&format!("{head}{row}\n")).is_err(), "{row}");
        }
        assert!(Needs::parse("check\tcrosses\twhere\twhat\tsource\n").is_err());
    }
}
