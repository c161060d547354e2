//! Which versions a cluster goes through to where somebody wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

use jiff::{SignedDuration, Timestamp};

use crate::ident::NodeName;
use crate::inventory::{Arch, Role};
use crate::track::catalog::{Catalog, Release};
use crate::version::{Minor, Version};

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The newest release of the highest minor that runs.
    NewestPatch,
    /// This release.
    To(Version),
}

/// The versions to go through, in order. Never empty: the last one is the target, and where everything runs it already
/// nothing is left to do.
///
/// It reads as a list of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    rungs: Vec<Version>,
    /// Why these versions, why not newer ones, and what could not be compared.
    pub because: Vec<String>,
}

impl Deref for Ladder {
    type Target = [Version];

    fn deref(&self) -> &[Version] {
        &self.rungs
    }
}

/// Why a wish is refused. Nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No node's version is known.
    NothingRuns,
    /// Below what runs.
    Older {
        target: Version,
        node: NodeName,
        runs: Version,
    },
    /// A higher number, built before what runs: fixes that run today would be missing.
    OlderBuilt(Box<OlderBuilt>),
    NoSuchRelease {
        target: Version,
        source: String,
        /// What the source says of an entry of this name, if it has one.
        said: Option<String>,
        near: Vec<Version>,
    },
    /// Some nodes run it, and the others cannot follow.
    CannotFinish {
        target: Version,
        ahead: NodeName,
        behind: NodeName,
        why: String,
    },
    Prerelease {
        target: Version,
        instead: Option<Version>,
    },
    /// Versions of another major: how minors follow each other there is not known.
    OtherMajor {
        target: Version,
        runs: Version,
    },
    NoBinary {
        target: Version,
        arch: Arch,
        source: String,
        instead: Option<Version>,
    },
    /// A minor in between has no release that can be stepped on.
    MinorMissing(Box<MinorMissing>),
    /// Nothing of the minor that runs, or of a later one, is in the source.
    NothingOfThisMinor {
        runs: Version,
        source: String,
        newest: Option<Version>,
    },
}

/// See [`Refusal::OlderBuilt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderBuilt {
    pub target: Version,
    pub published: Timestamp,
    pub runs: Version,
    pub runs_published: Timestamp,
    pub instead: Option<Version>,
}

/// See [`Refusal::MinorMissing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinorMissing {
    pub minor: Minor,
    pub from: Version,
    pub target: Version,
    pub source: String,
    /// Releases of the minor that there are, with what speaks against each.
    pub but: Vec<String>,
}

/// Monthly releases of all minors come out together, over some days and in any order (four days at most in 2025 and
/// 2026), and different months are at least nine days apart. Within one train no release counts as older than another.
const TRAIN: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The versions to go through from what runs to what is wished for.
///
/// No minor is skipped by any node, so the ladder begins above the lowest version that runs: with servers ahead of
/// agents, the first rungs concern the agents only. In each minor in between it takes the newest release that is
/// neither older-built than what runs nor younger-built than the rung after it, because K3s expects version and build
/// date to rise together.
///
/// # Errors
/// Why the wish cannot be met.
pub fn ladder(
    running: &BTreeMap<NodeName, (Role, Version)>,
    archs: &BTreeSet<Arch>,
    wish: &Wish,
    catalog: &Catalog,
    now: Timestamp,
) -> Result<Ladder, Refusal> {
    let world = World::of(running, archs, catalog)?;
    match wish {
        Wish::NewestPatch => world.newest_patch(now),
        Wish::To(target) => world.to(target),
    }
}

/// The releases that stand before a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The highest version that runs.
    pub runs: Version,
    /// The newest release of its minor that every node could get; `None` if the source has none of that minor, or none
    /// as new as what runs.
    pub patch: Option<Offer>,
    /// The same of the next minor.
    pub next_minor: Option<Offer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub version: Version,
    /// How long ago it was published, if the source knows.
    pub age: Option<SignedDuration>,
}

/// The newest releases for this cluster, for `check` and `status`.
///
/// # Errors
/// No version is known.
pub fn newest(
    running: &BTreeMap<NodeName, (Role, Version)>,
    archs: &BTreeSet<Arch>,
    catalog: &Catalog,
    now: Timestamp,
) -> Result<Newest, Refusal> {
    let world = World::of(running, archs, catalog)?;
    let offer = |release: &Release| Offer {
        version: release.version.clone(),
        age: release.published.map(|published| now.duration_since(published)),
    };
    let of = |minor| world.candidates(minor).find(|release| world.obstacle(release).is_none()).map(offer);
    Ok(Newest {
        runs: world.highest.1.clone(),
        patch: of(world.highest.1.minor()),
        next_minor: of(world.highest.1.minor().next()),
    })
}

/// A cluster and the releases there are for it.
struct World<'a> {
    running: &'a BTreeMap<NodeName, (Role, Version)>,
    archs: &'a BTreeSet<Arch>,
    catalog: &'a Catalog,
    lowest: (&'a NodeName, &'a Version),
    highest: (&'a NodeName, &'a Version),
}

impl<'a> World<'a> {
    fn of(
        running: &'a BTreeMap<NodeName, (Role, Version)>,
        archs: &'a BTreeSet<Arch>,
        catalog: &'a Catalog,
    ) -> Result<Self, Refusal> {
        let versions = || running.iter().map(|(name, (_, version))| (name, version));
        let (Some(lowest), Some(highest)) =
            (versions().min_by_key(|(_, version)| *version), versions().max_by_key(|(_, version)| *version))
        else {
            return Err(Refusal::NothingRuns);
        };
        Ok(Self { running, archs, catalog, lowest, highest })
    }

    fn newest_patch(&self, now: Timestamp) -> Result<Ladder, Refusal> {
        let runs = self.highest.1;
        let minor = runs.minor();
        let mut left_out = Vec::new();
        for release in self.candidates(minor) {
            if let Some(obstacle) = self.obstacle(release) {
                if release.version == *runs {
                    break;
                }
                left_out.push(format!("not {}: {obstacle}", release.version));
                continue;
            }
            let target = &release.version;
            let mut ladder = self.climb(release)?;
            if *self.lowest.1 == *target {
                ladder.because.insert(0, format!("every node runs {target}, the newest release of {minor}"));
            } else {
                let age = release.published.map_or_else(String::new, |at| format!(", {} old", age(at, now)));
                ladder.because.insert(0, format!("{target} is the newest release of {minor}{age}"));
            }
            ladder.because.extend(left_out);
            return Ok(ladder);
        }
        if self.lowest.1 != runs {
            return Err(self.cannot_finish());
        }
        if !self.catalog.releases.values().any(|release| release.version.minor() == minor) {
            return Err(Refusal::NothingOfThisMinor {
                runs: runs.clone(),
                source: self.catalog.source.clone(),
                newest: self
                    .catalog
                    .releases
                    .values()
                    .rfind(|release| !release.is_prerelease())
                    .map(|r| r.version.clone()),
            });
        }
        let mut because = vec![format!("{} has no release of {minor} that is newer than {runs}", self.catalog.source)];
        because.extend(left_out);
        Ok(Ladder { rungs: vec![runs.clone()], because })
    }

    fn to(&self, target: &Version) -> Result<Ladder, Refusal> {
        let (node, runs) = self.highest;
        if target < runs {
            return Err(Refusal::Older { target: target.clone(), node: node.clone(), runs: runs.clone() });
        }
        if target == self.lowest.1 {
            return Ok(Ladder { rungs: vec![target.clone()], because: vec![format!("every node runs {target}")] });
        }
        if target.minor().above(self.lowest.1.minor()).is_none() {
            return Err(Refusal::OtherMajor { target: target.clone(), runs: self.lowest.1.clone() });
        }
        let source = self.catalog.source.clone();
        let Some(release) = self.catalog.releases.get(target) else {
            if target == runs {
                return Err(self.cannot_finish());
            }
            let said = self.catalog.unreadable.iter().find(|entry| {
                entry
                    .strip_prefix(target.to_string().as_str())
                    .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
            });
            return Err(Refusal::NoSuchRelease {
                target: target.clone(),
                source,
                said: said.cloned(),
                near: self.near(target),
            });
        };
        let instead =
            || self.candidates(target.minor()).find(|r| self.obstacle(r).is_none()).map(|r| r.version.clone());
        let target = target.clone();
        match self.obstacle(release) {
            None => self.climb(release),
            Some(Obstacle::Prerelease) => Err(Refusal::Prerelease { target, instead: instead() }),
            Some(Obstacle::NoBinary(arch)) => Err(Refusal::NoBinary { target, arch, source, instead: instead() }),
            Some(Obstacle::OlderBuilt { published, runs, runs_published }) => {
                let instead = instead();
                Err(Refusal::OlderBuilt(Box::new(OlderBuilt { target, published, runs, runs_published, instead })))
            }
        }
    }

    /// The highest version that runs is no target for the nodes below it.
    fn cannot_finish(&self) -> Refusal {
        let (ahead, target) = self.highest;
        let why = match self.catalog.releases.get(target).map(|release| self.obstacle(release)) {
            Some(Some(obstacle)) => obstacle.to_string(),
            Some(None) | None => format!("{} does not have it", self.catalog.source),
        };
        Refusal::CannotFinish { target: target.clone(), ahead: ahead.clone(), behind: self.lowest.0.clone(), why }
    }

    /// The rungs up to a target that can be had.
    fn climb(&self, target: &Release) -> Result<Ladder, Refusal> {
        let from = self.lowest.1;
        let mut because = Vec::new();
        let mut rungs = vec![target];
        let mut minors = Vec::new();
        let mut minor = from.minor().next();
        while minor < target.version.minor() {
            minors.push(minor);
            minor = minor.next();
        }
        for minor in minors.into_iter().rev() {
            let above = rungs.last().copied().unwrap_or(target);
            let mut but = Vec::new();
            // The one above is the newest of its train; a younger one below it would turn the step to it into one to an
            // older build.
            let rung = self.candidates_from(minor, from).find(|release| {
                let obstacle = match self.obstacle(release) {
                    None if older_built(above, release) => format!("it is younger-built than {}", above.version),
                    None => return true,
                    Some(obstacle) => obstacle.to_string(),
                };
                but.push(format!("{}: {obstacle}", release.version));
                false
            });
            let Some(rung) = rung else {
                let (from, target) = (from.clone(), target.version.clone());
                let source = self.catalog.source.clone();
                return Err(Refusal::MinorMissing(Box::new(MinorMissing { minor, from, target, source, but })));
            };
            because.push(format!("by way of {}, because no minor may be skipped", rung.version));
            because.extend(but.into_iter().map(|left_out| format!("not {left_out}")));
            rungs.push(rung);
        }
        rungs.reverse();
        because.extend(self.not_compared(&rungs));
        Ok(Ladder { rungs: rungs.into_iter().map(|release| release.version.clone()).collect(), because })
    }

    /// Releases of the minor that are no step down for anybody, newest first.
    fn candidates(&self, minor: Minor) -> impl Iterator<Item = &'a Release> {
        self.candidates_from(minor, self.highest.1)
    }

    fn candidates_from(&self, minor: Minor, least: &'a Version) -> impl Iterator<Item = &'a Release> {
        let releases = self.catalog.releases.values().rev();
        releases.filter(move |release| release.version.minor() == minor && release.version >= *least)
    }

    /// What speaks against bringing all nodes that are below this release to it.
    fn obstacle(&self, release: &Release) -> Option<Obstacle> {
        // A pre-release that somebody runs was consented to; here it is only about those that follow.
        if release.is_prerelease() && !self.running.values().any(|(_, version)| *version == release.version) {
            return Some(Obstacle::Prerelease);
        }
        if let Some(arch) = self.lacks(release) {
            return Some(Obstacle::NoBinary(arch));
        }
        let published = release.published?;
        let youngest = self
            .running
            .values()
            .filter(|(_, version)| *version < release.version)
            .filter_map(|(_, version)| Some((self.catalog.releases.get(version)?.published?, version)))
            .max()?;
        let (runs_published, runs) = (youngest.0, youngest.1.clone());
        (runs_published.duration_since(published) > TRAIN).then_some(Obstacle::OlderBuilt {
            published,
            runs,
            runs_published,
        })
    }

    fn lacks(&self, release: &Release) -> Option<Arch> {
        self.archs.iter().find(|arch| !release.binaries.contains_key(arch)).copied()
    }

    /// Which build dates are not known: a missing date is no pass, so it is said.
    fn not_compared(&self, rungs: &[&Release]) -> Option<String> {
        let date = |version: &Version| self.catalog.releases.get(version).and_then(|release| release.published);
        let unknown: BTreeSet<&Version> = self
            .running
            .values()
            .map(|(_, version)| version)
            .chain(rungs.iter().map(|release| &release.version))
            .filter(|version| date(version).is_none())
            .collect();
        let climbs = rungs.last().is_some_and(|target| *self.lowest.1 < target.version);
        (climbs && !unknown.is_empty())
            .then(|| format!("build dates were not compared: {} has none for {}", self.catalog.source, list(unknown)))
    }

    /// Existing releases beside one that does not exist, of those that are no step down.
    fn near(&self, target: &Version) -> Vec<Version> {
        let usable = |release: &&Release| {
            release.version >= *self.highest.1 && (!release.is_prerelease() || target.is_prerelease())
        };
        let below = self.catalog.releases.range(..target).rev().map(|(_, release)| release).find(usable);
        let above = self.catalog.releases.range(target..).map(|(_, release)| release).find(usable);
        below.into_iter().chain(above).map(|release| release.version.clone()).collect()
    }
}

/// Whether a step from `from` to `to` would be one to an older build.
fn older_built(to: &Release, from: &Release) -> bool {
    match (to.published, from.published) {
        (Some(to), Some(from)) => from.duration_since(to) > TRAIN,
        // Said by `not_compared`.
        _ => false,
    }
}

enum Obstacle {
    Prerelease,
    NoBinary(Arch),
    OlderBuilt { published: Timestamp, runs: Version, runs_published: Timestamp },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prerelease => write!(f, "it is a pre-release"),
            Self::NoBinary(arch) => write!(f, "it has no binary with a published digest for {arch}"),
            Self::OlderBuilt { published, runs, runs_published } => {
                write!(f, "it was built before {runs} ({} and {})", day(*published), day(*runs_published))
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instead = |f: &mut fmt::Formatter<'_>, instead: &Option<Version>| match instead {
            Some(version) => write!(f, "; {version} would do"),
            None => Ok(()),
        };
        match self {
            Self::NothingRuns => write!(f, "no node says which version it runs: kadence inspect shows why"),
            Self::Older { target, node, runs } => write!(
                f,
                "{target} is older than what runs: {node} has {runs}. Updates only go up; the way back is kadence rollback"
            ),
            Self::OlderBuilt(it) => {
                let OlderBuilt { target, published, runs, runs_published, instead: other } = &**it;
                write!(
                    f,
                    "{target} was published on {}, before {runs}, which runs (on {}): fixes that run today would be \
                     missing in it, and K3s does not support it",
                    day(*published),
                    day(*runs_published)
                )?;
                instead(f, other)
            }
            Self::NoSuchRelease { target, source, said, near } => {
                write!(f, "{target} does not exist in {source}")?;
                if let Some(said) = said {
                    write!(f, " ({said})")?;
                }
                if near.is_empty() { Ok(()) } else { write!(f, "; there is {}", list(near)) }
            }
            Self::CannotFinish { target, ahead, behind, why } => write!(
                f,
                "{ahead} runs {target} already, and {behind}, which does not, cannot follow: {why}. Add it to the release \
                 source, or name a newer release"
            ),
            Self::Prerelease { target, instead: other } => {
                write!(f, "{target} is a pre-release")?;
                instead(f, other)
            }
            Self::OtherMajor { target, runs } => write!(
                f,
                "{target} is of another major than {runs}, which runs: which steps lead there is not known to this Kadence"
            ),
            Self::NoBinary { target, arch, source, instead: other } => {
                write!(
                    f,
                    "{target} has no binary with a published digest for {arch} in {source}, and a node needs it"
                )?;
                instead(f, other)
            }
            Self::MinorMissing(it) => {
                let MinorMissing { minor, from, target, source, but } = &**it;
                write!(
                    f,
                    "{target} is more than one minor above {from}, and {source} has no release of {minor} to go by"
                )?;
                if !but.is_empty() {
                    write!(f, " ({})", but.join("; "))?;
                }
                write!(f, ": add one there, or name a release of a lower minor")
            }
            Self::NothingOfThisMinor { runs, source, newest } => {
                let minor = runs.minor();
                write!(f, "{source} has no release of {minor}, which runs ({runs}), so its newest patch is not known")?;
                match newest {
                    Some(newest) => {
                        write!(f, "; the newest release there is {newest}: name a version, or add {minor} there")
                    }
                    None => write!(f, "; there is no release at all"),
                }
            }
        }
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.age {
            Some(since) => write!(f, "{} ({} old)", self.version, days(since)),
            None => write!(f, "{} (age unknown)", self.version),
        }
    }
}

fn age(published: Timestamp, now: Timestamp) -> String {
    days(now.duration_since(published))
}

fn days(since: SignedDuration) -> String {
    match since.as_hours() / 24 {
        ..1 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

fn list<'v>(versions: impl IntoIterator<Item = &'v Version>) -> String {
    versions.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
