//! What is inside each K3s release, and where kine changed the format of its database.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::{KnowledgeError, Table};
use crate::version::Version;

/// A component of K3s whose version the data knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    Etcd,
    Kine,
    Containerd,
    Runc,
    Sqlite,
    Flannel,
    CoreDns,
    Traefik,
    MetricsServer,
    LocalPathProvisioner,
    HelmController,
    /// The Go release that the binary was built with.
    Go,
}

impl Component {
    pub const ALL: [Self; 12] = [
        Self::Etcd,
        Self::Kine,
        Self::Containerd,
        Self::Runc,
        Self::Sqlite,
        Self::Flannel,
        Self::CoreDns,
        Self::Traefik,
        Self::MetricsServer,
        Self::LocalPathProvisioner,
        Self::HelmController,
        Self::Go,
    ];

    /// Its name, which is also that of its column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Kine => "kine",
            Self::Containerd => "containerd",
            Self::Runc => "runc",
            Self::Sqlite => "sqlite",
            Self::Flannel => "flannel",
            Self::CoreDns => "coredns",
            Self::Traefik => "traefik",
            Self::MetricsServer => "metrics-server",
            Self::LocalPathProvisioner => "local-path-provisioner",
            Self::HelmController => "helm-controller",
            Self::Go => "go",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The components of one K3s release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Components {
    parts: BTreeMap<Component, ComponentVersion>,
    /// Where the row comes from, as `components.tsv` explains.
    pub source: String,
}

impl Components {
    /// `None`: the row does not say. Not the same as "not in there".
    pub fn get(&self, component: Component) -> Option<&ComponentVersion> {
        self.parts.get(&component)
    }
}

/// The version of a component: numbers, perhaps without the patch, and what K3s appends to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentVersion {
    text: String,
    pub major: u64,
    pub minor: u64,
    /// `None`: only major and minor are known.
    pub patch: Option<u64>,
}

impl ComponentVersion {
    /// Reads `3.6.14-k3s1` or `2.2`; a suffix is kept and not compared.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_once('-').map_or(text, |(numbers, _)| numbers).split('.');
        let mut number = || numbers.next().map(|n| n.parse::<u64>().ok());
        let (major, minor, patch) = (number()??, number()??, number());
        let patch = match patch {
            Some(patch) => Some(patch?),
            None => None,
        };
        numbers.next().is_none().then(|| Self { text: text.to_owned(), major, minor, patch })
    }

    fn exact(&self) -> Option<(u64, u64, u64)> {
        Some((self.major, self.minor, self.patch?))
    }
}

impl fmt::Display for ComponentVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

pub(super) fn parse(text: &str) -> Result<BTreeMap<Version, Components>, KnowledgeError> {
    let table = Table::parse("components.tsv", text)?;
    let [k3s, source] = table.positions(["k3s", "source"])?;
    let columns = table.positions(Component::ALL.map(Component::name))?;
    let mut releases = BTreeMap::new();
    for (line, cells) in &table.rows {
        let version: Version = cells[k3s].parse().map_err(|e| table.error(*line, format!("{e}")))?;
        if cells[source].is_empty() {
            return Err(table.error(*line, "a row without a source"));
        }
        let mut parts = BTreeMap::new();
        for (component, column) in Component::ALL.into_iter().zip(columns) {
            let cell = cells[column];
            if !cell.is_empty() {
                let what = || table.error(*line, format!("`{cell}` is not a version of {component}"));
                parts.insert(component, ComponentVersion::parse(cell).ok_or_else(what)?);
            }
        }
        if releases.insert(version, Components { parts, source: cells[source].to_owned() }).is_some() {
            return Err(table.error(*line, "a second row for one release"));
        }
    }
    Ok(releases)
}

/// Where kine changed what is in the database.
#[derive(Clone, Debug)]
pub struct KineFormats {
    reviewed: [(u64, u64, u64); 2],
    changes: Vec<((u64, u64, u64), KineChange)>,
}

/// A change of kine's database.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KineChange {
    /// The first kine with it.
    pub since: String,
    pub touches: Touches,
    /// What changes, as a sentence without its full stop.
    pub what: String,
    pub source: String,
}

/// The databases that a change of kine reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Touches {
    Sqlite,
    All,
}

impl KineFormats {
    pub(super) fn parse(text: &str) -> Result<Self, KnowledgeError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            reviewed: Reviewed,
            change: Vec<KineChange>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Reviewed {
            from: String,
            to: String,
        }
        let error = |what: String| KnowledgeError { file: "kine-formats.toml", line: 0, what };
        let exact = |text: &str| {
            let version = ComponentVersion::parse(text).and_then(|v| v.exact());
            version.ok_or_else(|| error(format!("`{text}` is not a version of kine")))
        };
        let file: File = toml::from_str(text).map_err(|e| error(e.to_string()))?;
        let changes = file.change.into_iter().map(|change| Ok((exact(&change.since)?, change)));
        Ok(Self {
            reviewed: [exact(&file.reviewed.from)?, exact(&file.reviewed.to)?],
            changes: changes.collect::<Result<_, KnowledgeError>>()?,
        })
    }

    /// The changes that lie between two kine versions, in either direction, and reach SQLite or an external database.
    ///
    /// # Errors
    /// Why it is not known: one of the versions is not exact, or is older or newer than those compared.
    pub fn between(
        &self,
        one: &ComponentVersion,
        other: &ComponentVersion,
        sqlite: bool,
    ) -> Result<Vec<&KineChange>, String> {
        let known = |version: &ComponentVersion| match version.exact() {
            Some(exact) if (self.reviewed[0]..=self.reviewed[1]).contains(&exact) => Ok(exact),
            Some(_) => Err(format!("the database format of kine {version} is not in the data")),
            None => Err(format!("the patch of kine {version} is not in the data")),
        };
        let (one, other) = (known(one)?, known(other)?);
        let (low, high) = (one.min(other), one.max(other));
        let between = self.changes.iter().filter(|(since, _)| low < *since && *since <= high);
        Ok(between.map(|(_, change)| change).filter(|c| sqlite || c.touches == Touches::All).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knowledge::Knowledge;

    fn of(version: &str, component: Component) -> Option<String> {
        let version = version.parse().expect("a version");
        Knowledge::embedded().components(&version)?.get(component).map(ToString::to_string)
    }

    fn kine(text: &str) -> ComponentVersion {
        ComponentVersion::parse(text).expect("a component version")
    }

    #[test]
    fn a_patch_of_kubernetes_can_hide_a_minor_of_etcd() {
        assert_eq!(of("v1.33.10+k3s1", Component::Etcd).as_deref(), Some("3.5.26-k3s1"));
        assert_eq!(of("v1.33.11+k3s1", Component::Etcd).as_deref(), Some("3.6.7-k3s1"));
    }

    #[test]
    fn releases_that_look_alike_are_not_taken_for_each_other() {
        assert_eq!(of("v1.33.7+k3s1", Component::Etcd).as_deref(), Some("3.5.25-k3s1"));
        assert_eq!(of("v1.33.7+k3s3", Component::Etcd).as_deref(), Some("3.5.26-k3s1"));
        assert_eq!(of("v1.33.7+k3s2", Component::Etcd), None, "no such release");
        assert_eq!(of("v1.36.4-rc1+k3s1", Component::Etcd), None, "a pre-release is not its release");
    }

    #[test]
    fn a_blank_cell_and_a_missing_row_are_unknown() {
        assert_eq!(of("v1.35.8+k3s1", Component::Etcd).as_deref(), Some("3.6.14-k3s1"));
        assert_eq!(of("v1.35.8+k3s1", Component::Kine), None);
        assert_eq!(of("v1.35.9+k3s1", Component::Etcd), None);
        assert_eq!(of("v1.99.0+k3s1", Component::Etcd), None);
    }

    #[test]
    fn every_supported_minor_has_rows_with_what_undo_needs() {
        for minor in 32..=37 {
            let rows = Knowledge::embedded().components.iter().filter(|(v, _)| v.minor().minor == minor);
            let full = rows.filter(|(_, c)| {
                [Component::Etcd, Component::Kine, Component::Containerd].iter().all(|part| c.get(*part).is_some())
            });
            assert!(full.count() >= 2, "v1.{minor}");
        }
    }

    #[test]
    fn versions_are_numbers_and_a_suffix() {
        assert_eq!(kine("2.2").patch, None);
        assert_eq!(kine("0.14.6-k3s1.32").exact(), Some((0, 14, 6)));
        assert_eq!(kine("0.14.6-k3s1.32").to_string(), "0.14.6-k3s1.32");
        for not_a_version in ["", "3", "v3.6.1", "3.6.x", "3.6.1.2", "3..1", "3.6.", "-k3s1"] {
            assert_eq!(ComponentVersion::parse(not_a_version), None, "{not_a_version}");
        }
    }

    #[test]
    fn kine_changes_count_from_their_first_version_and_in_both_directions() {
        let formats = Knowledge::embedded().kine();
        let count = |a: &str, b: &str, sqlite| formats.between(&kine(a), &kine(b), sqlite).map(|c| c.len());
        assert_eq!(count("0.14.12", "0.14.14", true), Ok(1));
        assert_eq!(count("0.14.14", "0.14.12", true), Ok(1));
        assert_eq!(count("0.14.12", "0.14.14", false), Ok(0), "the index is SQLite's alone");
        assert_eq!(count("0.14.13", "0.16.5", true), Ok(0), "the change itself is on both sides");
        assert_eq!(count("0.13.15", "0.14.6-k3s1.32", false), Ok(2));
    }

    #[test]
    fn kine_that_nobody_compared_is_unknown() {
        let formats = Knowledge::embedded().kine();
        let reviewed = kine("0.16.3");
        for unknown in ["0.13.4", "0.17.2", "0.16", "1.0.0"] {
            assert!(formats.between(&kine(unknown), &reviewed, true).is_err(), "{unknown}");
        }
    }
}
