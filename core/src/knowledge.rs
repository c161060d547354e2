//! Data about K3s releases that code must not guess.
//!
//! The data lies in `knowledge/` beside the code, each row with its source, and is part of the binary. What it does not
//! say is unknown: nothing here takes the nearest release, the newest minor or a blank cell for an answer.

pub mod components;
pub mod flags;
pub mod gates;
pub mod needs;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::knowledge::components::{Components, KineFormats};
use crate::knowledge::flags::Flags;
use crate::knowledge::gates::Gates;
use crate::knowledge::needs::Needs;
use crate::version::{Minor, Version};

/// All that is known.
#[derive(Clone, Debug)]
pub struct Knowledge {
    components: BTreeMap<Version, Components>,
    kine: KineFormats,
    flags: Flags,
    gates: Gates,
    needs: Needs,
}

/// The texts that [`Knowledge::parse`] reads, in the formats of `knowledge/README.md`.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    pub components: &'a str,
    pub kine_formats: &'a str,
    pub flags: &'a str,
    pub component_flags: &'a str,
    pub gates: &'a str,
    pub hop_needs: &'a str,
}

impl Files<'static> {
    /// The data this program was built with.
    pub const EMBEDDED: Self = Self {
        components: include_str!("../../knowledge/components.tsv"),
        kine_formats: include_str!("../../knowledge/kine-formats.toml"),
        flags: include_str!("../../knowledge/flags.tsv"),
        component_flags: include_str!("../../knowledge/component-flags.tsv"),
        gates: include_str!("../../knowledge/gates.tsv"),
        hop_needs: include_str!("../../knowledge/hop-needs.tsv"),
    };
}

/// Data that is not what its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct KnowledgeError {
    pub file: &'static str,
    /// From 1; 0 if it is about the whole file.
    pub line: usize,
    pub what: String,
}

impl Knowledge {
    /// The data this program was built with, read once.
    pub fn embedded() -> &'static Self {
        static EMBEDDED: LazyLock<Knowledge> = LazyLock::new(|| match Knowledge::parse(Files::EMBEDDED) {
            Ok(knowledge) => knowledge,
            #[expect(clippy::panic, reason = "the data is part of the binary, and a test reads every row of it")]
            Err(error) => panic!("built with broken data: {error}"),
        });
        &EMBEDDED
    }

    /// Reads all files.
    ///
    /// # Errors
    /// The first row that is not what the format says. Nothing is skipped: half a table would answer "unknown" where
    /// a whole one knows better.
    pub fn parse(files: Files<'_>) -> Result<Self, KnowledgeError> {
        Ok(Self {
            components: components::parse(files.components)?,
            kine: KineFormats::parse(files.kine_formats)?,
            flags: Flags::parse(files.flags, files.component_flags)?,
            gates: Gates::parse(files.gates)?,
            needs: Needs::parse(files.hop_needs)?,
        })
    }

    /// The components of exactly this release; `None` if no row speaks of it.
    pub fn components(&self, version: &Version) -> Option<&Components> {
        self.components.get(version)
    }

    pub fn kine(&self) -> &KineFormats {
        &self.kine
    }

    pub fn flags(&self) -> &Flags {
        &self.flags
    }

    pub fn gates(&self) -> &Gates {
        &self.gates
    }

    pub fn needs(&self) -> &Needs {
        &self.needs
    }
}

/// A tab-separated table: lines that begin with `#` are comments, the first other line names the columns.
struct Table<'a> {
    file: &'static str,
    columns: Vec<&'a str>,
    rows: Vec<(usize, Vec<&'a str>)>,
}

impl<'a> Table<'a> {
    fn parse(file: &'static str, text: &'a str) -> Result<Self, KnowledgeError> {
        let mut lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
            .map(|(at, line)| (at + 1, line.split('\t').collect::<Vec<_>>()));
        let none = || KnowledgeError { file, line: 0, what: "no row names the columns".to_owned() };
        let (_, columns) = lines.next().ok_or_else(none)?;
        let rows = lines.collect::<Vec<_>>();
        match rows.iter().find(|(_, cells)| cells.len() != columns.len()) {
            Some((line, cells)) => {
                let what = format!("{} cells in a table of {} columns", cells.len(), columns.len());
                Err(KnowledgeError { file, line: *line, what })
            }
            None => Ok(Self { file, columns, rows }),
        }
    }

    /// The positions of these columns.
    fn positions<const N: usize>(&self, names: [&str; N]) -> Result<[usize; N], KnowledgeError> {
        let mut positions = [0; N];
        for (position, name) in positions.iter_mut().zip(names) {
            *position = self.columns.iter().position(|column| *column == name).ok_or_else(|| KnowledgeError {
                file: self.file,
                line: 0,
                what: format!("no column `{name}`"),
            })?;
        }
        Ok(positions)
    }

    fn error(&self, line: usize, what: impl Into<String>) -> KnowledgeError {
        KnowledgeError { file: self.file, line, what: what.into() }
    }
}

/// The columns of a table that belong to minors: `v1.36@4` is what v1.36 was at its patch 4; without a number, what it
/// was before its first release.
#[derive(Clone, Debug)]
struct Minors(Vec<MinorColumn>);

#[derive(Clone, Debug)]
struct MinorColumn {
    minor: Minor,
    patch: Option<u64>,
    column: usize,
}

impl Minors {
    /// Ascending and without gaps, so that neighbours are neighbours.
    fn of(table: &Table<'_>) -> Result<Self, KnowledgeError> {
        let mut minors = Vec::<MinorColumn>::new();
        for (column, name) in table.columns.iter().enumerate().filter(|(_, name)| name.contains('@')) {
            let broken = || table.error(0, format!("`{name}` is not a minor with `@` and its patch"));
            let (minor, patch) = name.split_once('@').ok_or_else(broken)?;
            let minor: Minor = minor.parse().map_err(|_| broken())?;
            let patch = match patch {
                "" => None,
                patch => Some(patch.parse().map_err(|_| broken())?),
            };
            if minors.last().is_some_and(|last| last.minor.next() != minor) {
                return Err(table.error(0, format!("`{name}` does not follow the minor before it")));
            }
            minors.push(MinorColumn { minor, patch, column });
        }
        if minors.is_empty() { Err(table.error(0, "no column of a minor")) } else { Ok(Self(minors)) }
    }

    fn position(&self, minor: Minor) -> Option<usize> {
        self.0.iter().position(|column| column.minor == minor)
    }

    fn minor(&self, position: usize) -> Minor {
        self.0[position].minor
    }

    fn patch(&self, position: usize) -> Option<u64> {
        self.0[position].patch
    }

    fn cells<'a>(&self, row: &[&'a str]) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(|column| row[column.column])
    }

    fn gap<T>(&self, values: &[Option<T>], at: usize) -> Gap {
        let last_before = values[..at].iter().rposition(Option::is_some);
        let first_after = values[at..].iter().position(Option::is_some);
        match (last_before, first_after) {
            (Some(last), _) => Gap::After(self.minor(last + 1)),
            (None, Some(first)) => Gap::Before(self.minor(at + first)),
            (None, None) => Gap::Never,
        }
    }
}

/// Where a column without a value stands among those that have one.
enum Gap {
    /// Since this minor it is gone.
    After(Minor),
    /// This minor is the first to have it.
    Before(Minor),
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_row_is_read() {
        Knowledge::parse(Files::EMBEDDED).expect("the embedded data");
    }

    #[test]
    fn a_broken_row_names_its_line() {
        let broken = Files { components: "# comment\nk3s\tetcd\nv1.36.4+k3s1\t3.6\textra\n", ..Files::EMBEDDED };
        let error = Knowledge::parse(broken).expect_err("three cells in two columns");
        assert_eq!(error.to_string(), "components.tsv:3: 3 cells in a table of 2 columns");
    }

    #[test]
    fn the_data_stays_small() {
        let Files { components, kine_formats, flags, component_flags, gates, hop_needs } = Files::EMBEDDED;
        let bytes: usize =
            [components, kine_formats, flags, component_flags, gates, hop_needs].iter().map(|f| f.len()).sum();
        assert!(bytes < 400_000, "{bytes} bytes: it is part of every binary");
    }
}
