//! Who may depend on whom. The table is the design; this only compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Each crate with the crates of ours that it may know.
const ALLOWED: &[(&str, &[&str])] = &[
    ("kadence-core", &[]),
    ("kadence-engine", &["kadence-core"]),
    ("kadence-tell", &["kadence-core"]),
    ("kadence-kubernetes", &["kadence-core", "kadence-engine"]),
    ("kadence-probes", &["kadence-core", "kadence-engine"]),
    ("kadence-releases", &["kadence-core", "kadence-engine"]),
    ("kadence-ssh", &["kadence-core", "kadence-engine"]),
    ("kadence-store", &["kadence-core", "kadence-engine"]),
    ("kadence-sim", &["kadence-core", "kadence-engine"]),
    (
        "kadence",
        &[
            "kadence-core",
            "kadence-engine",
            "kadence-kubernetes",
            "kadence-probes",
            "kadence-releases",
            "kadence-sim",
            "kadence-ssh",
            "kadence-store",
            "kadence-tell",
        ],
    ),
    ("kadence-testbed", &[]),
    ("xtask", &[]),
];

/// What core may never know: the outside world.
const NEVER_IN_CORE: &[&str] =
    &["tokio", "tracing", "reqwest", "kube", "k8s-openapi", "sqlx", "openssh", "rand", "getrandom", "async-trait"];

pub(crate) fn check(root: &Path) -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("the output of cargo metadata")?;
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, deps)| (*name, deps.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table of xtask/src/arrows.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            // Tests may use more: the rule is about what is shipped.
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let ours = to.starts_with("kadence") || to == "xtask";
            if ours && !allowed.contains(to) {
                wrong.push(format!("{name} must not depend on {to}"));
            }
            if name == "kadence-core" && NEVER_IN_CORE.contains(&to) {
                wrong.push(format!("core must not depend on {to}: no I/O, no async, no clock, no randomness"));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("the arrows of ARCHITECTURE.md are broken:\n  {}", wrong.join("\n  ")) }
}
