//! Reads `kadence.yaml`: every error with its line, column and excerpt, and with the nearest known key.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kadence_core::config::{Cluster, Config, ProbeTest, SecretRef, Sudo};
use kadence_core::validate::checks::waiver_fault;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

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
    match faults(&config).into_iter().next() {
        Some(fault) => Err(fault.at(text, file)),
        None => Ok(config),
    }
}

/// What is not wrong in itself and cannot work as it is: files that are not there, waivers that do nothing. `config` is
/// what [`parse`] made of the text, its paths made absolute by [`resolve_paths`].
pub fn doubts(config: &Config, text: &str, file: &str, now: Timestamp) -> Vec<ConfigError> {
    let mut doubts = Vec::new();
    let mut missing = |path: Option<&PathBuf>, at: Vec<String>| {
        if let Some(path) = path.filter(|p| !p.is_file()) {
            doubts.push(Fault::new(format!("there is no file {}", path.display()), at));
        }
    };
    missing(config.backups.identity.as_ref(), at(&["backups", "identity"]));
    for (name, cluster) in &config.clusters {
        let of = |path: &[&str]| at(&[&["clusters", name.as_str()], path].concat());
        missing(Some(&cluster.kubeconfig), of(&["kubeconfig"]));
        missing(cluster.ssh.key.as_ref(), of(&["ssh", "key"]));
        missing(cluster.ssh.known_hosts.as_ref(), of(&["ssh", "known_hosts"]));
        if let Sudo::Password(SecretRef::File(path)) = &cluster.ssh.sudo {
            missing(Some(path), of(&["ssh", "sudo", "password", "file"]));
        }
    }
    if config.backups.recipients.is_empty() {
        let what = "`backups.recipients` names nobody: without one there is no backup, and without a backup no update";
        doubts.push(Fault::new(what.to_owned(), at(&["backups"])));
    }
    for (name, cluster) in &config.clusters {
        for (i, waiver) in cluster.waivers.iter().enumerate() {
            if let Some(fault) = waiver_fault(waiver, now) {
                let key = if waiver.until <= now { "until" } else { "check" };
                let place = at(&["clusters", name.as_str(), "waivers", &i.to_string(), key]);
                doubts.push(Fault::new(format!("the waiver of {} {fault}", waiver.owner), place));
            }
        }
    }
    for (name, cluster) in &config.clusters {
        for (i, entry) in cluster.exclude.iter().enumerate() {
            if let Some(fault) = entry.fault(now) {
                let place = at(&["clusters", name.as_str(), "exclude", &i.to_string(), "until"]);
                doubts.push(Fault::new(format!("the exclusion of {} {fault}", entry.owner), place));
            }
        }
    }
    doubts.into_iter().map(|doubt| doubt.at(text, file)).collect()
}

/// Something that is wrong with one value.
struct Fault {
    what: String,
    help: Option<String>,
    /// The keys that lead to the value; of a list, the position.
    at: Vec<String>,
}

fn at(path: &[&str]) -> Vec<String> {
    path.iter().map(|key| (*key).to_owned()).collect()
}

impl Fault {
    fn new(what: String, at: Vec<String>) -> Self {
        Self { what, help: None, at }
    }

    fn help(mut self, help: &str) -> Self {
        self.help = Some(help.to_owned());
        self
    }

    fn at(self, text: &str, file: &str) -> ConfigError {
        let place = Tree::of(text).and_then(|tree| tree.place(&self.at));
        let excerpt = place.and_then(|(line, _)| line_of(text, line));
        ConfigError { file: file.to_owned(), place, what: self.what, help: self.help, excerpt }
    }
}

/// What types cannot say.
fn faults(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (i, text) in config.backups.recipients.iter().enumerate() {
        if !is_recipient(text) {
            let fault = Fault::new(
                format!("`{text}` is no public key in the age format"),
                at(&["backups", "recipients", &i.to_string()]),
            );
            faults.push(fault.help("it begins with age1 and has 62 characters; age-keygen -y KEYFILE prints it"));
        }
    }
    if config.releases.contains("://") && !is_url(&config.releases) {
        faults.push(Fault::new(format!("`{}` is no http or https URL", config.releases), at(&["releases"])));
    }
    if config.clusters.is_empty() {
        faults.push(
            Fault::new("there is no cluster in `clusters`".to_owned(), at(&["clusters"]))
                .help("kadence init writes one"),
        );
    }
    for (name, cluster) in &config.clusters {
        of_cluster(name.as_str(), cluster, &mut faults);
    }
    faults
}

fn of_cluster(name: &str, cluster: &Cluster, faults: &mut Vec<Fault>) {
    let of = |path: &[&str]| at(&[&["clusters", name], path].concat());
    let update = &cluster.update;
    for (key, duration) in [
        ("settle", update.settle),
        ("ready_within", update.ready_within),
        ("drain_within", update.drain_within),
        ("mixed_at_most", update.mixed_at_most),
    ] {
        if duration.is_negative() || (duration.is_zero() && key != "settle") {
            let what = format!("`{key}` of cluster {name} must be longer than nothing");
            faults.push(Fault::new(what, of(&["update", key])));
        }
    }
    if update.agents_at_once == 0 {
        let what = format!("`agents_at_once` of cluster {name} must be at least 1");
        faults.push(Fault::new(what, of(&["update", "agents_at_once"])));
    }
    let mut names = BTreeSet::new();
    for (i, probe) in cluster.probes.iter().enumerate() {
        let i = i.to_string();
        if !names.insert(&probe.name) {
            let what = format!("two probes of cluster {name} are called {}", probe.name);
            faults.push(Fault::new(what, of(&["probes", &i, "name"])));
        }
        if probe.within.is_negative() || probe.within.is_zero() {
            let what = format!("`within` of probe {} must be longer than nothing", probe.name);
            faults.push(Fault::new(what, of(&["probes", &i, "within"])));
        }
        let (what, key) = match &probe.test {
            ProbeTest::Command(argv) if argv.is_empty() => {
                (format!("probe {} has an empty command", probe.name), "command")
            }
            ProbeTest::Http(http) if !is_url(&http.url) => (format!("`{}` is no http or https URL", http.url), "http"),
            ProbeTest::Tcp(address) if !is_address(address) => (format!("`{address}` is not host:port"), "tcp"),
            _ => continue,
        };
        let place =
            if key == "http" { of(&["probes", &i, "test", "http", "url"]) } else { of(&["probes", &i, "test", key]) };
        faults.push(Fault::new(what, place));
    }
    if cluster.datastore.as_ref().is_some_and(|d| d.backup.is_empty()) {
        faults.push(Fault::new(format!("the backup command of cluster {name} is empty"), of(&["datastore", "backup"])));
    }
}

/// Whether a text is a public X25519 key as age writes it.
fn is_recipient(text: &str) -> bool {
    bech32::decode(text).is_ok_and(|(prefix, key)| prefix.as_str() == "age" && key.len() == 32)
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    host.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace))
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0))
}

/// The file's keys and values with their places; the types of the configuration keep none.
#[derive(Default)]
struct Tree {
    place: (u64, u64),
    children: Vec<(String, (u64, u64), Self)>,
    list: bool,
}

impl Tree {
    fn of(text: &str) -> Option<Self> {
        serde_saphyr::from_str::<Spanned<Self>>(text).ok().map(Self::placed)
    }

    fn placed(spanned: Spanned<Self>) -> Self {
        let place = spanned.referenced;
        Self { place: (place.line(), place.column()), ..spanned.value }
    }

    /// The place of the key, or of the list's element, that the path leads to; of the last one that is there.
    fn place(&self, path: &[String]) -> Option<(u64, u64)> {
        let mut tree = self;
        let mut place = None;
        for key in path {
            let Some((_, key, child)) = tree.children.iter().find(|(k, ..)| k == key) else { break };
            place = Some(if tree.list { child.place } else { *key });
            tree = child;
        }
        place
    }

    /// The key whose value begins at a place.
    fn key_at(&self, place: (u64, u64)) -> Option<&str> {
        self.children.iter().find_map(|(key, at, child)| {
            if child.place == place || *at == place {
                return child.key_at(place).or(if self.list { None } else { Some(key) });
            }
            child.key_at(place)
        })
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Tree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
                Ok(Tree::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::default())
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut tree = Tree { list: true, ..Tree::default() };
                while let Some(element) = seq.next_element::<Spanned<Tree>>()? {
                    let element = Tree::placed(element);
                    tree.children.push((tree.children.len().to_string(), element.place, element));
                }
                Ok(tree)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut tree = Tree::default();
                while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Tree>>()? {
                    let place = (key.referenced.line(), key.referenced.column());
                    tree.children.push((key.value, place, Tree::placed(value)));
                }
                Ok(tree)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn yaml_error(text: &str, file: &str, error: &serde_saphyr::Error) -> ConfigError {
    let place = error.location().map(|l| (l.line(), l.column())).filter(|(line, _)| *line > 0);
    // The parser's own text begins with the place, which is printed in our own form.
    let raw = error.to_string();
    let first = raw.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let said = match first.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest,
        _ => first,
    };
    let tree = Tree::of(text);
    let key = place.and_then(|place| tree.as_ref()?.key_at(place));
    let what = in_words(said, key);
    let help = did_you_mean(&raw);
    ConfigError { file: file.to_owned(), place, what, help, excerpt: place.and_then(|(line, _)| line_of(text, line)) }
}

/// What the parser says of its types, in the words of the file.
fn in_words(said: &str, key: Option<&str>) -> String {
    let value = key.map_or_else(|| "this".to_owned(), |key| format!("`{key}`"));
    let found = said.split('`').nth(1).unwrap_or_default();
    match said {
        _ if said.starts_with("unknown field") => format!("unknown key `{found}`"),
        _ if said.starts_with("unknown variant") => format!("{value} cannot be `{found}`"),
        _ if said.starts_with("missing field") => format!("`{found}` is missing"),
        _ if said.starts_with("cannot deserialize null") => format!("{value} has no value"),
        _ if said.starts_with("duplicate mapping key") => format!("{value} is there twice"),
        "invalid u16" => format!("{value} must be a whole number from 0 to 65535"),
        "invalid u32" => format!("{value} must be a whole number from 0 to 4294967295"),
        "invalid boolean" => format!("{value} must be true or false"),
        "expected mapping start" => format!("{value} must hold keys with values"),
        "expected sequence start" => format!("{value} must be a list"),
        "expected string scalar" => format!("{value} must be one value, no list and no keys"),
        _ if said.contains("duration") => format!("{value} must be a duration such as 30s, 10m or 1h 30m"),
        _ if said.starts_with("failed to parse") => {
            format!("{value} must be a time with its zone, such as 2027-03-31T00:00:00Z")
        }
        other => other.to_owned(),
    }
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
        assert!(error.to_string().contains("kadence.yaml:9:7: unknown key `setle`"), "{error}");
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

    fn wrong(text: &str) -> ConfigError {
        parse(text, "k").expect_err("something is wrong with it")
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_told_in_the_words_of_the_file() {
        for (from, to, what) in [
            ("settle: 5s", "settle: fast", "`settle` must be a duration such as 30s, 10m or 1h 30m"),
            ("settle: 5s", "agents_at_once: many", "`agents_at_once` must be a whole number from 0 to 4294967295"),
            ("settle: 5s", "airgap_images: maybe", "`airgap_images` must be true or false"),
            ("drain: auto", "drain: sometimes", "`drain` cannot be `sometimes`"),
            ("kubeconfig: shop.kubeconfig", "kubeconfig:", "`kubeconfig` has no value"),
            ("user: root", "user: [root]", "`user` must be one value, no list and no keys"),
            ("user: root", "port: 99999", "`port` must be a whole number from 0 to 65535"),
            ("    kubeconfig: shop.kubeconfig\n", "", "`kubeconfig` is missing"),
        ] {
            let error = wrong(&GOOD.replace(from, to));
            assert_eq!(error.what, what, "{error}");
            assert!(error.place.is_some(), "{error}");
        }
        assert_eq!(wrong("clusters: [shop]").what, "`clusters` must hold keys with values");
    }

    #[test]
    fn what_cannot_work_is_refused_where_it_stands() {
        for (from, to, what, place) in [
            ("url: 'http://10.0.0.1/'", "url: nonsense", "`nonsense` is no http or https URL", (13, 23)),
            ("{http: {url: 'http://10.0.0.1/'}}", "{tcp: db}", "`db` is not host:port", (13, 16)),
            ("within: 2s", "within: 0s", "`within` of probe front must be longer than nothing", (14, 9)),
        ] {
            let error = wrong(&GOOD.replace(from, to));
            assert_eq!((error.what.as_str(), error.place), (what, Some(place)), "{error}");
        }
        let error = wrong(&format!("backups: {{recipients: [age1xyz]}}\n{GOOD}"));
        assert_eq!(error.place, Some((1, 24)), "{error}");
        assert!(error.what.contains("age1xyz"), "{error}");
        assert_eq!(wrong("clusters: {}").what, "there is no cluster in `clusters`");
    }

    /// The same key stands in the other cluster, too, and before.
    #[test]
    fn an_error_points_at_its_own_cluster() {
        let two =
            format!("{GOOD}  depot:\n    environment: staging\n    kubeconfig: k\n    update:\n      settle: -5s\n");
        assert_eq!(wrong(&two).place, Some((19, 7)), "{}", wrong(&two));
    }

    #[test]
    fn what_is_not_there_and_what_has_ended_is_doubted() {
        let text = format!(
            "{GOOD}    waivers:\n      - {{check: NOPE, owner: ada, reason: r, until: 2027-01-01T00:00:00Z}}\n      - {{check: DISK, \
             owner: ada, reason: r, until: 2020-01-01T00:00:00Z}}\n"
        );
        let mut config = parse(&text, "k").expect("good");
        resolve_paths(&mut config, Path::new("/nowhere"), None);
        let now = "2026-11-25T00:00:00Z".parse().expect("a time");
        let doubts = doubts(&config, &text, "k", now);
        let told: Vec<_> = doubts.iter().map(|d| (d.what.as_str(), d.place.map(|(line, _)| line))).collect();
        assert_eq!(
            told,
            [
                ("there is no file /nowhere/shop.kubeconfig", Some(4)),
                (
                    "`backups.recipients` names nobody: without one there is no backup, and without a backup no update",
                    None
                ),
                ("the waiver of ada names NOPE, which is no check", Some(16)),
                ("the waiver of ada for DISK ended at 2020-01-01T00:00:00Z", Some(17)),
            ]
        );
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
