//! What K3s is told on a node: its configuration files, its unit's command line and environment, read as K3s reads
//! them.
//!
//! Secrets end here. A value is kept only if its key is on the allow-list; all others take part in the digest as a
//! keyed hash, so that a changed secret is noticed and none can be guessed from what is stored.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use kadence_core::ident::Digest;
use kadence_core::inventory::{Argument, Arguments, Origin};

use crate::HmacKey;

/// Keys whose values are no secrets and mean something to a check or to a person.
const SHOWN: &[&str] = &[
    "advertise-address",
    "advertise-port",
    "agent-token-file",
    "airgap-extra-registry",
    "bind-address",
    "cluster-cidr",
    "cluster-dns",
    "cluster-domain",
    "cluster-init",
    "cluster-reset",
    "config",
    "container-runtime-endpoint",
    "data-dir",
    "debug",
    "default-local-storage-path",
    "default-runtime",
    "disable",
    "disable-agent",
    "disable-apiserver",
    "disable-apiserver-lb",
    "disable-cloud-controller",
    "disable-controller-manager",
    "disable-default-registry-endpoint",
    "disable-etcd",
    "disable-helm-controller",
    "disable-kube-proxy",
    "disable-network-policy",
    "disable-scheduler",
    "docker",
    "egress-selector-mode",
    "embedded-registry",
    "enable-pprof",
    "etcd-disable-snapshots",
    "etcd-expose-metrics",
    "etcd-s3",
    "etcd-s3-retention",
    "etcd-snapshot-compress",
    "etcd-snapshot-dir",
    "etcd-snapshot-name",
    "etcd-snapshot-retention",
    "etcd-snapshot-schedule-cron",
    "flannel-backend",
    "flannel-conf",
    "flannel-cni-conf",
    "flannel-external-ip",
    "flannel-iface",
    "flannel-ipv6-masq",
    "helm-job-image",
    "https-listen-port",
    "image-service-endpoint",
    "kine-tls",
    "lb-server-port",
    "log",
    "multus",
    "node-external-dns",
    "node-external-ip",
    "node-internal-dns",
    "node-ip",
    "node-label",
    "node-name",
    "node-taint",
    "nonroot-devices",
    "pause-image",
    "prefer-bundled-bin",
    "private-registry",
    "protect-kernel-defaults",
    "resolv-conf",
    "rootless",
    "secrets-encryption",
    "secrets-encryption-provider",
    "selinux",
    "server",
    "service-cidr",
    "service-node-port-range",
    "servicelb-namespace",
    "snapshotter",
    "supervisor-metrics",
    "supervisor-port",
    "system-default-registry",
    "tls-san",
    "tls-san-security",
    "token-file",
    "v",
    "vmodule",
    "with-node-id",
    "write-kubeconfig",
    "write-kubeconfig-group",
    "write-kubeconfig-mode",
];

/// Flags of Kubernetes' components and of etcd whose values mean something to a check or to a person and are no secrets.
/// Of every other flag inside a `*-arg` only the name is kept.
const SHOWN_OF_COMPONENTS: &[&str] = &[
    "cgroup-driver",
    "election-timeout",
    "emulated-version",
    "eviction-hard",
    "fail-cgroupv1",
    "feature-gates",
    "heartbeat-interval",
    "image-gc-high-threshold",
    "max-pods",
    "proxy-mode",
    "quota-backend-bytes",
    "runtime-config",
    "v",
];

/// Flags without a value: the word after them is not theirs. Every other flag takes one.
const SWITCHES: &[&str] = &[
    "cluster-init",
    "cluster-reset",
    "debug",
    "disable-agent",
    "disable-apiserver",
    "disable-apiserver-lb",
    "disable-cloud-controller",
    "disable-controller-manager",
    "disable-default-registry-endpoint",
    "disable-etcd",
    "disable-helm-controller",
    "disable-kube-proxy",
    "disable-network-policy",
    "disable-scheduler",
    "docker",
    "embedded-registry",
    "enable-pprof",
    "etcd-disable-snapshots",
    "etcd-expose-metrics",
    "etcd-s3",
    "etcd-s3-insecure",
    "etcd-s3-skip-ssl-verify",
    "etcd-snapshot-compress",
    "flannel-external-ip",
    "flannel-ipv6-masq",
    "kine-tls",
    "multus",
    "nonroot-devices",
    "prefer-bundled-bin",
    "protect-kernel-defaults",
    "rootless",
    "secrets-encryption",
    "selinux",
    "supervisor-metrics",
    "tls-san-security",
    "with-node-id",
];

/// Where an argument was found, with its value.
struct Found {
    key: String,
    value: String,
    origin: Origin,
    file: String,
    line: Option<u64>,
}

/// Collects what the node's script sent.
#[derive(Default)]
pub(crate) struct Collector {
    found: Vec<Found>,
    unreadable: Vec<String>,
}

impl Collector {
    pub(crate) fn unreadable(&mut self, file: &str, why: &str) {
        self.unreadable.push(format!("{file}: {why}"));
    }

    /// A configuration file: a YAML map of scalars and lists.
    pub(crate) fn config(&mut self, file: &str, text: &str) {
        let entries = match serde_saphyr::from_str::<Entries>(text) {
            Ok(entries) => entries.0,
            // An empty file, or one of comments only, tells K3s nothing.
            Err(_) if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) => Vec::new(),
            Err(error) => return self.unreadable(file, &first_line(&error.to_string())),
        };
        for (key, values) in entries {
            let line = Some(key.referenced.line());
            // `key+:` adds to what an earlier file said.
            let name = key.value.trim_end_matches('+').to_owned();
            for value in values.0 {
                self.found.push(Found {
                    key: name.clone(),
                    value,
                    origin: Origin::ConfigFile,
                    file: file.to_owned(),
                    line,
                });
            }
        }
    }

    /// The words of the unit's `ExecStart`, each in double quotes as `busctl` prints them.
    pub(crate) fn command_line(&mut self, unit_file: &str, quoted: &str) {
        let Some(words) = unquote(quoted) else {
            return self.unreadable(unit_file, "its ExecStart could not be taken apart");
        };
        // The program and its subcommand come first.
        let mut words = words.into_iter().skip(1).skip_while(|w| !w.starts_with('-')).peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                // A word that belongs to no flag: K3s refuses it, so it has to be seen.
                self.push_exec(unit_file, word, String::new());
                continue;
            };
            let (key, value) = match flag.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None if SWITCHES.contains(&flag) => (flag.to_owned(), "true".to_owned()),
                None => match words.next_if(|w| !w.starts_with('-')) {
                    Some(value) => (flag.to_owned(), value),
                    None => (flag.to_owned(), "true".to_owned()),
                },
            };
            let key = match key.as_str() {
                "s" => "server".to_owned(),
                "t" => "token".to_owned(),
                "d" => "data-dir".to_owned(),
                "c" => "config".to_owned(),
                _ => key,
            };
            self.push_exec(unit_file, key, value);
        }
    }

    fn push_exec(&mut self, unit_file: &str, key: String, value: String) {
        self.found.push(Found { key, value, origin: Origin::CommandLine, file: unit_file.to_owned(), line: None });
    }

    /// An environment file of the unit, as systemd reads it: a variable a line, perhaps quoted.
    pub(crate) fn environment(&mut self, file: &str, text: &str) {
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = value.trim();
            let value = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(value);
            self.found.push(Found {
                key: key_of_variable(name.trim()),
                value: value.to_owned(),
                origin: Origin::Environment,
                file: file.to_owned(),
                line: Some(number),
            });
        }
    }

    /// What was collected, in the order in which K3s looks: configuration, environment, command line.
    pub(crate) fn finish(self, key: &HmacKey) -> Arguments {
        let mut found = self.found;
        found.sort_by_key(|f| match f.origin {
            Origin::ConfigFile => 0,
            Origin::Environment => 1,
            Origin::CommandLine => 2,
        });
        let mut canonical = String::new();
        let mut entries = Vec::with_capacity(found.len());
        for f in found {
            let shown = shown(&f.key, &f.value);
            let in_digest = match &shown {
                Some(value) if *value == f.value => value.clone(),
                _ => format!("hmac:{}", key.hash(&f.value)),
            };
            // Fields are told apart by a character that no argument has; a line's number is no part of what K3s is told.
            canonical.push_str(&format!("{:?}\0{}\0{}\0{in_digest}\0\n", f.origin, f.file, f.key));
            let place = f.line.map_or_else(|| f.file.clone(), |line| format!("{}:{line}", f.file));
            entries.push(Argument { key: f.key, value: shown, origin: f.origin, place });
        }
        let digest = self.unreadable.is_empty().then(|| Digest::of(canonical.as_bytes()));
        Arguments { entries, digest, unreadable: self.unreadable }
    }
}

/// What may be shown of a value: all of it, the part before its own `=`, or nothing.
fn shown(key: &str, value: &str) -> Option<String> {
    if key.ends_with("-arg") {
        let name = value.split_once('=').map_or(value, |(name, _)| name);
        let bare = name.trim_start_matches("--").trim_end_matches(['+', '-']);
        return Some(if SHOWN_OF_COMPONENTS.contains(&bare) { value } else { name }.to_owned());
    }
    // A URL may carry a user's password.
    (SHOWN.contains(&key) && !value.contains('@')).then(|| value.to_owned())
}

/// The flag that an environment variable of K3s's stands for; another variable keeps its name.
fn key_of_variable(name: &str) -> String {
    let Some(rest) = name.strip_prefix("K3S_") else { return name.to_owned() };
    match rest {
        "URL" => "server".to_owned(),
        "KUBECONFIG_OUTPUT" => "write-kubeconfig".to_owned(),
        "KUBECONFIG_MODE" => "write-kubeconfig-mode".to_owned(),
        "KUBECONFIG_GROUP" => "write-kubeconfig-group".to_owned(),
        "CONFIG_FILE" => "config".to_owned(),
        "DATASTORE_CAFILE" => "datastore-cafile".to_owned(),
        "DATASTORE_CERTFILE" => "datastore-certfile".to_owned(),
        "DATASTORE_KEYFILE" => "datastore-keyfile".to_owned(),
        _ => rest.to_lowercase().replace('_', "-"),
    }
}

/// Words in double quotes with C's escapes, separated by blanks.
fn unquote(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut bytes = Vec::new();
        let mut chars = rest.strip_prefix('"')?.char_indices();
        let end = loop {
            let (at, c) = chars.next()?;
            match c {
                '"' => break at,
                '\\' => match chars.next()?.1 {
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    'r' => bytes.push(b'\r'),
                    c @ ('"' | '\\' | '\'') => bytes.extend(c.to_string().as_bytes()),
                    c @ '0'..='7' => {
                        let digits = [c, chars.next()?.1, chars.next()?.1];
                        bytes.push(u8::from_str_radix(&digits.iter().collect::<String>(), 8).ok()?);
                    }
                    'x' => {
                        let digits = [chars.next()?.1, chars.next()?.1];
                        bytes.push(u8::from_str_radix(&digits.iter().collect::<String>(), 16).ok()?);
                    }
                    _ => return None,
                },
                c => bytes.extend(c.to_string().as_bytes()),
            }
        };
        words.push(String::from_utf8(bytes).ok()?);
        rest = rest.get(end + 2..)?.trim_start();
    }
    Some(words)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// A map in the order of its text, keys with their places.
struct Entries(Vec<(Spanned<String>, Values)>);

/// A scalar as text, or each element of a list.
struct Values(Vec<String>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of K3s's settings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
            fn visit_unit<E>(self) -> Result<Entries, E> {
                Ok(Entries(Vec::new()))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Values;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }
            fn visit_str<E>(self, text: &str) -> Result<Values, E> {
                Ok(Values(vec![text.to_owned()]))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Values, E> {
                Ok(Values(vec![value.to_string()]))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Values, E> {
                Ok(Values(vec![value.to_string()]))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Values, E> {
                Ok(Values(vec![value.to_string()]))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Values, E> {
                Ok(Values(vec![value.to_string()]))
            }
            fn visit_unit<E>(self) -> Result<Values, E> {
                Ok(Values(vec![String::new()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Values, A::Error> {
                let mut all = Vec::new();
                while let Some(Values(values)) = seq.next_element()? {
                    all.extend(values);
                }
                Ok(Values(all))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> HmacKey {
        HmacKey::new([7; 32])
    }

    fn config(text: &str) -> Arguments {
        let mut collector = Collector::default();
        collector.config("/etc/rancher/k3s/config.yaml", text);
        collector.finish(&key())
    }

    #[test]
    fn secrets_are_never_kept_and_always_counted() {
        let one = config("token: very-secret-1\ncluster-cidr: 10.42.0.0/16\n");
        let two = config("token: very-secret-2\ncluster-cidr: 10.42.0.0/16\n");
        assert!(!format!("{one:?}").contains("very-secret"));
        assert_eq!(one.entries[0].value, None);
        assert_eq!(one.entries[1].value.as_deref(), Some("10.42.0.0/16"));
        assert_ne!(one.digest, two.digest, "a changed token is a change");
        let other_key = {
            let mut collector = Collector::default();
            collector.config("/etc/rancher/k3s/config.yaml", "token: very-secret-1\ncluster-cidr: 10.42.0.0/16\n");
            collector.finish(&HmacKey::new([8; 32]))
        };
        assert_ne!(one.digest, other_key.digest, "without the key nobody can try tokens against the digest");
    }

    #[test]
    fn what_is_not_on_the_list_is_not_shown() {
        let arguments = config(
            "datastore-endpoint: postgres://k3s:pw@db/k3s\netcd-s3-secret-key: AKIA\nvpn-auth: name=tailscale,joinKey=k\n\
             server: https://u:pw@s1:6443\nkube-apiserver-arg:\n- oidc-client-secret=abc\n- feature-gates=A=true\n\
             - oidc-issuer-url=https://u:pw@idp\n",
        );
        let shown: Vec<_> = arguments.entries.iter().map(|a| (a.key.as_str(), a.value.as_deref())).collect();
        assert_eq!(
            shown,
            [
                ("datastore-endpoint", None),
                ("etcd-s3-secret-key", None),
                ("vpn-auth", None),
                ("server", None),
                ("kube-apiserver-arg", Some("oidc-client-secret")),
                ("kube-apiserver-arg", Some("feature-gates=A=true")),
                ("kube-apiserver-arg", Some("oidc-issuer-url")),
            ]
        );
    }

    #[test]
    fn lines_lists_and_additions() {
        let arguments = config(
            "# comment\n\ndisable: [traefik, servicelb]\nwrite-kubeconfig-mode: \"0644\"\nselinux: true\ntls-san+:\n  - a\n",
        );
        let found: Vec<_> = arguments
            .entries
            .iter()
            .map(|a| format!("{}={} {}", a.key, a.value.as_deref().unwrap_or("-"), a.place))
            .collect();
        assert_eq!(
            found,
            [
                "disable=traefik /etc/rancher/k3s/config.yaml:3",
                "disable=servicelb /etc/rancher/k3s/config.yaml:3",
                "write-kubeconfig-mode=0644 /etc/rancher/k3s/config.yaml:4",
                "selinux=true /etc/rancher/k3s/config.yaml:5",
                "tls-san=a /etc/rancher/k3s/config.yaml:6",
            ]
        );
        assert_eq!(
            config("disable: [traefik, servicelb]\nwrite-kubeconfig-mode: \"0644\"\nselinux: true\ntls-san: [a]\n")
                .digest,
            arguments.digest,
            "comments and layout are no change"
        );
    }

    #[test]
    fn a_file_that_is_not_yaml_is_named_and_there_is_no_digest() {
        let arguments = config("disable: [traefik\nfoo: : bar");
        assert_eq!(arguments.digest, None);
        assert!(arguments.unreadable[0].starts_with("/etc/rancher/k3s/config.yaml: "), "{:?}", arguments.unreadable);
        assert_eq!(config("# nothing\n").unreadable, Vec::<String>::new());
    }

    #[test]
    fn a_command_line_is_read_as_k3s_reads_it() {
        let mut collector = Collector::default();
        collector.command_line(
            "/etc/systemd/system/k3s.service",
            r#""/usr/local/bin/k3s" "server" "--tls-san" "a b" "--cluster-init" "--disable=traefik" "-t" "secret" "--node-label" "x=\"y\"" "stray""#,
        );
        let arguments = collector.finish(&key());
        let found: Vec<_> =
            arguments.entries.iter().map(|a| format!("{}={}", a.key, a.value.as_deref().unwrap_or("-"))).collect();
        assert_eq!(
            found,
            ["tls-san=a b", "cluster-init=true", "disable=traefik", "token=-", "node-label=x=\"y\"", "stray=-"]
        );
    }

    #[test]
    fn variables_are_the_flags_they_stand_for() {
        let mut collector = Collector::default();
        collector.environment(
            "/etc/systemd/system/k3s.service.env",
            "# c\nK3S_URL='https://s1:6443'\nK3S_TOKEN=x\nHTTP_PROXY=http://u:p@proxy\nK3S_NODE_NAME=n1\n",
        );
        let found: Vec<_> = collector
            .finish(&key())
            .entries
            .iter()
            .map(|a| {
                format!("{}={} {}", a.key, a.value.as_deref().unwrap_or("-"), a.place.rsplit(':').next().unwrap_or(""))
            })
            .collect();
        assert_eq!(found, ["server=https://s1:6443 2", "token=- 3", "HTTP_PROXY=- 4", "node-name=n1 5"]);
    }

    #[test]
    fn broken_quotes_are_not_guessed() {
        for text in [r#""a"#, r#"a"#, r#""a\"#, r#""\q""#] {
            assert_eq!(unquote(text), None, "{text}");
        }
        assert_eq!(unquote(r#""a\303\244" "\x41""#), Some(vec!["aä".to_owned(), "A".to_owned()]));
    }
}
