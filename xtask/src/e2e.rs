//! The end-to-end suites: on real K3s where a release source is there, and on the stand-in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{announce, release_build, run, target};

/// Where releases of real K3s are looked for if `KADENCE_RELEASES` does not say.
const RELEASES: &str = "/var/tmp/kadence-releases";

#[derive(Args)]
pub(crate) struct Options {
    /// Everything on real K3s, not the short suite
    #[arg(long, conflicts_with = "stand_in")]
    full: bool,
    /// On the stand-in, where real K3s is there as well
    #[arg(long)]
    stand_in: bool,
    /// On the stand-in, then the short suite on real K3s; what this machine cannot do is skipped, and said
    #[arg(long, conflicts_with_all = ["full", "stand_in", "filter"])]
    ci: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// What a suite runs on.
#[derive(Clone, Copy)]
enum On {
    RealShort,
    RealFull,
    StandIn,
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RealShort => "REAL K3S, the short suite",
            Self::RealFull => "REAL K3S, everything",
            Self::StandIn => "THE STAND-IN, not K3s",
        })
    }
}

/// Runs what was asked for; a machine that cannot is an error.
pub(crate) fn asked(root: &Path, options: &Options) -> Result<()> {
    if options.ci {
        return ci(root);
    }
    let real = if options.stand_in { None } else { real_releases()? };
    if let Err(why) = able(root)? {
        bail!("this machine cannot boot test hosts: {why}");
    }
    let filter = options.filter.as_deref();
    release_build(root)?;
    match (real, options.full) {
        (Some(releases), full) => suite(root, if full { On::RealFull } else { On::RealShort }, &releases, filter),
        (None, true) => bail!("there is no release source: set KADENCE_RELEASES to a folder with <tag>/k3s"),
        (None, false) => {
            if !options.stand_in {
                loudly(&["There is no release source (KADENCE_RELEASES names one): real K3s is not tested."]);
            }
            suite(root, On::StandIn, &imitations(root)?, filter)
        }
    }
}

/// On the stand-in, then the short suite on real K3s where it is there. A machine that cannot boot hosts is told so.
fn ci(root: &Path) -> Result<()> {
    let real = real_releases()?;
    if let Err(why) = able(root)? {
        loudly(&["SKIPPED: the end-to-end suites. This machine cannot boot test hosts:", &why]);
        return Ok(());
    }
    release_build(root)?;
    suite(root, On::StandIn, &imitations(root)?, None)?;
    match real {
        Some(releases) => suite(root, On::RealShort, &releases, None),
        None => {
            loudly(&["SKIPPED: real K3s. There is no release source; KADENCE_RELEASES names one."]);
            Ok(())
        }
    }
}

fn loudly(lines: &[&str]) {
    let rule = "=".repeat(100);
    announce(&rule);
    lines.iter().for_each(|line| announce(line));
    announce(&rule);
}

/// Prepares the machine for test hosts; `Err` is the reason why it cannot boot them.
fn able(root: &Path) -> Result<Result<(), String>> {
    announce("testbed/able");
    let output = Command::new(root.join("testbed/able")).output().context("testbed/able cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok(if output.status.success() {
        Ok(())
    } else {
        Err(said.lines().last().unwrap_or("it does not say why").to_owned())
    })
}

/// The folder with releases of real K3s. One that was named and is none is an error, not a reason to skip.
fn real_releases() -> Result<Option<PathBuf>> {
    let named = std::env::var_os("KADENCE_RELEASES").map(PathBuf::from);
    let folder = named.clone().unwrap_or_else(|| PathBuf::from(RELEASES));
    let releases = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let count = releases.filter(|entry| entry.path().join("k3s").is_file()).count();
    match named {
        Some(_) if folder.join("STAND-IN").exists() => {
            bail!("KADENCE_RELEASES: {} holds stand-ins; for these, say --stand-in", folder.display())
        }
        Some(_) if count < 2 => {
            bail!("KADENCE_RELEASES: {} does not hold two releases, each as <tag>/k3s", folder.display())
        }
        _ => Ok((count >= 2).then_some(folder)),
    }
}

/// Makes a release source of stand-ins.
fn imitations(root: &Path) -> Result<PathBuf> {
    let folder = target(root).join("stand-in");
    let program = target(root).join("release/k3s-standin");
    run(Command::new(root.join("testbed/stand-in")).arg(&folder).env("K3S_STANDIN", program))?;
    Ok(folder)
}

fn suite(root: &Path, on: On, releases: &Path, filter: Option<&str>) -> Result<()> {
    loudly(&[&format!("END TO END ON {on} ({})", releases.display())]);
    // Stand-ins mostly wait; a real cluster needs the machine for itself.
    let (word, extent, at_a_time) = match on {
        On::RealShort => ("real", "short", "1"),
        On::RealFull => ("real", "full", "1"),
        On::StandIn => ("stand-in", "full", "3"),
    };
    run(Command::new(env!("CARGO"))
        .args(["test", "--package", "kadence-testbed", "--test", "*", "--", "--nocapture", "--test-threads", at_a_time])
        .args(filter)
        .env("KADENCE_E2E", word)
        .env("KADENCE_E2E_EXTENT", extent)
        .env("KADENCE_BIN", target(root).join("release/kadence"))
        .env("KADENCE_RELEASES", releases)
        .current_dir(root))
}
