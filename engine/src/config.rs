//! Reads `kadence.yaml`: every error with its line, column and excerpt, and with the nearest known key.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use kadence_core::config::{Config, ProbeTest, SecretRef, Sudo};

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub file: String,
    /// Line and column, from 1.
    pub place: Option<(u64, u64)>,
    pub what: String,
    pub help: Option<String>,
    /// The line it is about.
    pub excerpt: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.what)?,
            None => write!(f, "{}: {}", self.file, self.what)?,
        }
        if let (Some(excerpt), Some((line, column))) = (&self.excerpt, self.place) {
            let gutter = line.to_string();
            let indent = usize::try_from(column.saturating_sub(1)).unwrap_or_default();
            write!(f, "\n  {gutter} | {excerpt}\n  {:width$} | {:indent$}^", "", "", width = gutter.len())?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  hint: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Reads a configuration. `file` is its name, for errors.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
    let config: Config = serde_saphyr::from_str(text).map_err(|error| yaml_error(text, file, &error))?;
    check(&config).map_err(|(what, needle)| {
        let place = place_of(text, &needle);
        ConfigError {
            file: file.to_owned(),
            place,
            excerpt: place.and_then(|(line, _)| line_of(text, line)),
            what,
            help: None,
        }
    })?;
    Ok(config)
}

/// What types cannot say. The second text is what to look for in the file, to point at it.
fn check(config: &Config) -> Result<(), (String, String)> {
    for (name, cluster) in &config.clusters {
        let update = &cluster.update;
        for (what, duration) in [
            ("settle", update.settle),
            ("ready_within", update.ready_within),
            ("drain_within", update.drain_within),
            ("mixed_at_most", update.mixed_at_most),
        ] {
            if duration.is_negative() || (duration.is_zero() && what != "settle") {
                return Err((format!("`{what}` of cluster {name} must be longer than nothing"), format!("{what}:")));
            }
        }
        if update.agents_at_once == 0 {
            return Err((
                format!("`agents_at_once` of cluster {name} must be at least 1"),
                "agents_at_once:".to_owned(),
            ));
        }
        let mut names = BTreeSet::new();
        for probe in &cluster.probes {
            if !names.insert(&probe.name) {
                return Err((format!("two probes of cluster {name} are called {}", probe.name), probe.name.clone()));
            }
            if let ProbeTest::Command(argv) = &probe.test
                && argv.is_empty()
            {
                return Err((format!("probe {} has an empty command", probe.name), probe.name.clone()));
            }
        }
        if cluster.datastore.as_ref().is_some_and(|d| d.backup.is_empty()) {
            return Err((format!("the backup command of cluster {name} is empty"), "backup:".to_owned()));
        }
    }
    Ok(())
}

fn yaml_error(text: &str, file: &str, error: &serde_saphyr::Error) -> ConfigError {
    let place = error.location().map(|l| (l.line(), l.column())).filter(|(line, _)| *line > 0);
    // The parser's own text begins with the place, which is printed in our own form.
    let raw = error.to_string();
    let first = raw.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let what = match first.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest,
        _ => first,
    };
    let what = what.split(", expected one of ").next().unwrap_or(what).to_owned();
    let help = did_you_mean(&raw);
    ConfigError { file: file.to_owned(), place, what, help, excerpt: place.and_then(|(line, _)| line_of(text, line)) }
}

/// From "unknown field `x`, expected one of a, b": the known word that is nearest to the one found.
fn did_you_mean(message: &str) -> Option<String> {
    let (before, list) = message.lines().next()?.split_once(", expected ")?;
    let found = before.split('`').nth(1)?;
    let list = list.trim_start_matches("one of ");
    let known: Vec<&str> =
        list.split([',', ' ']).map(|w| w.trim_matches('`')).filter(|w| !w.is_empty() && *w != "or").collect();
    let nearest = known.iter().min_by_key(|word| strsim::damerau_levenshtein(found, word))?;
    if strsim::damerau_levenshtein(found, nearest) <= found.len().div_ceil(2) {
        Some(format!("did you mean `{nearest}`?"))
    } else {
        Some(format!("known here: {}", known.join(", ")))
    }
}

fn line_of(text: &str, line: u64) -> Option<String> {
    text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?).map(str::to_owned)
}

fn place_of(text: &str, needle: &str) -> Option<(u64, u64)> {
    text.lines().zip(1_u64..).find_map(|(line, number)| {
        let at = line.find(needle)?;
        Some((number, u64::try_from(line[..at].chars().count()).ok()? + 1))
    })
}

/// The JSON Schema of `kadence.yaml`.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Config);
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

/// Makes every path in a configuration absolute: `~` is `home`, the rest is relative to the file's own folder.
pub fn resolve_paths(config: &mut Config, folder: &Path, home: Option<&Path>) {
    let fix = |path: &mut PathBuf| {
        if let (Ok(rest), Some(home)) = (path.strip_prefix("~"), home) {
            *path = home.join(rest);
        } else if path.is_relative() {
            *path = folder.join(&*path);
        }
    };
    config.backups.identity.iter_mut().for_each(fix);
    for cluster in config.clusters.values_mut() {
        fix(&mut cluster.kubeconfig);
        cluster.ssh.key.iter_mut().for_each(fix);
        cluster.ssh.known_hosts.iter_mut().for_each(fix);
        if let Sudo::Password(SecretRef::File(path)) = &mut cluster.ssh.sudo {
            fix(path);
        }
    }
    let remote =
        config.releases == "github" || config.releases.contains("://") || config.releases.starts_with("github:");
    if !remote {
        let mut path = PathBuf::from(&config.releases);
        fix(&mut path);
        config.releases = path.to_string_lossy().into_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
clusters:
  shop:
    environment: production
    kubeconfig: shop.kubeconfig
    ssh:
      user: root
      sudo: no
    update:
      settle: 5s
      drain: auto
    probes:
      - name: front
        test: {http: {url: 'http://10.0.0.1/'}}
        within: 2s
";

    #[test]
    fn a_good_file_is_read_and_has_defaults() {
        let config = parse(GOOD, "kadence.yaml").expect("good");
        let shop = &config.clusters["shop"];
        assert_eq!(shop.update.settle, jiff::SignedDuration::from_secs(5));
        assert_eq!(shop.update.ready_within, jiff::SignedDuration::from_mins(10));
        assert_eq!(config.releases, "github");
    }

    #[test]
    fn an_unknown_key_names_its_place_and_the_nearest_known_one() {
        let text = GOOD.replace("settle: 5s", "setle: 5s");
        let error = parse(&text, "kadence.yaml").expect_err("unknown key");
        assert_eq!(error.place, Some((9, 7)), "{error}");
        assert_eq!(error.help.as_deref(), Some("did you mean `settle`?"), "{error}");
        assert!(error.to_string().contains("kadence.yaml:9:7: unknown field `setle`"), "{error}");
        assert!(error.to_string().contains("9 |       setle: 5s"), "{error}");
    }

    #[test]
    fn malformed_yaml_names_its_place() {
        let error = parse("clusters:\n  shop: [\n", "kadence.yaml").expect_err("malformed");
        assert!(error.place.is_some(), "{error}");
        let error = parse("clusters: {shop: {environment: production}}", "k").expect_err("a key is missing");
        assert!(error.what.contains("kubeconfig"), "{error}");
    }

    #[test]
    fn what_types_cannot_say_is_checked_too() {
        let error = parse(&GOOD.replace("drain: auto", "agents_at_once: 0"), "k").expect_err("no agents at once");
        assert_eq!(error.place, Some((10, 7)), "{error}");
    }

    #[test]
    fn no_text_panics() {
        for text in ["", "\u{0}", "- - -", "clusters: &a {x: *a}", "clusters: 7", "{", "clusters:\n\t- x"] {
            let _ = parse(text, "k");
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let mut config = parse(GOOD, "k").expect("good");
        resolve_paths(&mut config, Path::new("/etc/kadence"), Some(Path::new("/root")));
        assert_eq!(config.clusters["shop"].kubeconfig, Path::new("/etc/kadence/shop.kubeconfig"));
        assert_eq!(config.releases, "github");
    }
}
