//! The project's own tasks: `cargo xtask --help`.

mod arrows;
mod e2e;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything that CI runs, in its order
    Ci,
    /// Check that the crates depend on each other as ARCHITECTURE.md says
    Arrows,
    /// Check licences, sources and banned crates (deny.toml); installs cargo-deny where it is missing
    Deny,
    /// Write generated files (schema, command line reference); with --check, fail if they are not current
    Generate {
        #[arg(long)]
        check: bool,
    },
    /// Run the real engine over the simulated world under random schedules of faults
    Explore {
        /// How many schedules
        #[arg(long, default_value_t = 10_000)]
        schedules: u64,
        /// The first seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Tell this one story: a seed, or `update:` and a seed
        #[arg(long, value_name = "STORY")]
        replay: Option<String>,
    },
    /// Run the end-to-end suite on test hosts: on real K3s where a release source is there, else on the stand-in
    E2e(e2e::Options),
    /// Measure, side by side in one run
    Bench {
        #[arg(trailing_var_arg = true)]
        args: Vec<String>,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let root = root()?;
    match args.task {
        Task::Ci => ci(&root),
        Task::Arrows => arrows::check(&root),
        Task::Deny => deny(&root),
        Task::Generate { check } => {
            let mut kadence = Command::new(env!("CARGO"));
            kadence.args(["run", "--quiet", "--package", "kadence", "--"]).current_dir(&root);
            generate(&root, &mut kadence, check)
        }
        Task::Explore { schedules, seed, replay } => explore(&root, schedules, seed, replay.as_deref()),
        Task::E2e(options) => e2e::asked(&root, &options),
        Task::Bench { args } => {
            release_build(&root)?;
            let bench = root.join("testbed/bench");
            run(Command::new(bench).args(args).current_dir(&root))
        }
    }
}

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask lies in the workspace")
}

fn run(command: &mut Command) -> Result<()> {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    announce(&words.join(" "));
    let status = command.status().with_context(|| format!("{} cannot be started", words[0]))?;
    if !status.success() {
        bail!("`{}` failed: {status}", words.join(" "));
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a task tells what it does")]
fn announce(what: &str) {
    eprintln!("==> {what}");
}

fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    run(Command::new(env!("CARGO")).args(args).current_dir(root))
}

/// Where cargo puts what it builds.
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn release_build(root: &Path) -> Result<()> {
    cargo(root, &["build", "--release", "--package", "kadence", "--package", "kadence-sim"])
}

/// A program that [`release_build`] makes.
fn built(root: &Path, program: &str) -> Command {
    let mut command = Command::new(target(root).join("release").join(program));
    command.current_dir(root);
    command
}

fn ci(root: &Path) -> Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    arrows::check(root)?;
    cargo(root, &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    cargo(root, &["test", "--workspace"])?;
    deny(root)?;
    // Once, and then the programs themselves: with each set of packages cargo would build much anew.
    release_build(root)?;
    run(built(root, "explore").args(["--schedules", "10000", "--seed", "1"]))?;
    generate(root, &mut built(root, "kadence"), true)
}

/// Licences, sources and bans; the advisories' database lies on the network, so it is looked at only where it is.
fn deny(root: &Path) -> Result<()> {
    let there = Command::new(env!("CARGO")).args(["deny", "--version"]).output().is_ok_and(|o| o.status.success());
    if !there {
        cargo(root, &["install", "--locked", "cargo-deny"])?;
    }
    cargo(root, &["deny", "--all-features", "check", "bans", "licenses", "sources"])
}

fn generate(root: &Path, kadence: &mut Command, check: bool) -> Result<()> {
    let output = kadence.args(["config", "schema"]).output()?;
    if !output.status.success() {
        bail!("the schema could not be printed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let file = root.join("docs/kadence.schema.json");
    let current = std::fs::read(&file).unwrap_or_default();
    if current == output.stdout {
        return Ok(());
    }
    if check {
        bail!("{} is not current: cargo xtask generate", file.display());
    }
    std::fs::write(&file, output.stdout)?;
    Ok(())
}

fn explore(root: &Path, schedules: u64, seed: u64, replay: Option<&str>) -> Result<()> {
    let (schedules, seed) = (schedules.to_string(), seed.to_string());
    let mut args = vec!["run", "--release", "--quiet", "--package", "kadence-sim", "--bin", "explore", "--"];
    match replay {
        Some(story) => args.extend(["--replay", story]),
        None => args.extend(["--schedules", &schedules, "--seed", &seed]),
    }
    cargo(root, &args)
}
