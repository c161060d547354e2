//! What the stand-in is told: command line, environment and configuration, read as K3s reads them.

use std::net::{IpAddr, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};

use kadence_core::ident::Digest;
use kadence_core::inventory::Role as InventoryRole;
use kadence_core::knowledge::Knowledge;
use kadence_core::knowledge::flags::{Flag, KubeComponent};
use kadence_core::version::Version;
use serde_json::Value;

use super::log;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Agent,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) version: String,
    pub(crate) data: PathBuf,
    pub(crate) node: String,
    pub(crate) address: IpAddr,
    pub(crate) token: Option<String>,
    /// The server to join, `https://host:port`.
    pub(crate) join: Option<String>,
    pub(crate) cluster_init: bool,
    pub(crate) port: u16,
    pub(crate) snapshots: PathBuf,
    /// `--cluster-reset`, with the snapshot to restore.
    pub(crate) reset: Option<Option<PathBuf>>,
    /// All of it, for the Node's annotation; secrets are starred.
    pub(crate) args: Vec<String>,
    pub(crate) hash: String,
}

const BOOLEAN: [&str; 11] = [
    "cluster-init",
    "cluster-reset",
    "debug",
    "disable-agent",
    "disable-cloud-controller",
    "disable-helm-controller",
    "disable-kube-proxy",
    "disable-network-policy",
    "embedded-registry",
    "etcd-expose-metrics",
    "secrets-encryption",
];
const SECRET: [&str; 4] = ["token", "agent-token", "datastore-endpoint", "etcd-s3-secret-key"];

impl Settings {
    /// Command line first, then the environment, then `config.yaml`: the first that says something counts.
    pub(crate) fn read(role: Role, words: &[String], version: &str) -> Result<Self, String> {
        let given = command_line(words)?;
        let first = |key: &str| given.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        let file = first("config")
            .or_else(|| std::env::var("K3S_CONFIG_FILE").ok())
            .unwrap_or_else(|| "/etc/rancher/k3s/config.yaml".to_owned());
        let configured = configuration(Path::new(&file))?;
        let all = known(role, version, given, configured)?;
        let get = |key: &str, variable: &str| {
            let said = all.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
            let from_environment = || std::env::var(variable).ok().filter(|v| !v.is_empty());
            said.or_else(from_environment).filter(|v| !v.is_empty())
        };
        let on = |key: &str| get(key, "").is_some_and(|v| v == "true");
        let data = PathBuf::from(get("data-dir", "K3S_DATA_DIR").unwrap_or_else(|| "/var/lib/rancher/k3s".to_owned()));
        let node = match get("node-name", "K3S_NODE_NAME") {
            Some(name) => name,
            None => hostname()?,
        };
        let join = get("server", "K3S_URL");
        let address = match get("node-ip", "") {
            Some(text) => text.parse().map_err(|e| format!("node-ip {text}: {e}"))?,
            None => own_address(&node, join.as_deref())?,
        };
        let mut args = vec![if role == Role::Server { "server" } else { "agent" }.to_owned()];
        for (key, value) in &all {
            args.push(format!("--{key}"));
            args.push(if SECRET.contains(&key.as_str()) { "********".to_owned() } else { value.clone() });
        }
        let hash = Digest::of(format!("{all:?} {join:?}").as_bytes()).short(52).to_uppercase();
        let restore = get("cluster-reset-restore-path", "").map(PathBuf::from);
        Ok(Self {
            version: version.to_owned(),
            snapshots: get("etcd-snapshot-dir", "").map_or_else(|| data.join("server/db/snapshots"), PathBuf::from),
            node,
            address,
            token: get("token", "K3S_TOKEN").map(|t| bare_token(&t).to_owned()),
            join,
            cluster_init: on("cluster-init"),
            port: get("https-listen-port", "").and_then(|p| p.parse().ok()).unwrap_or(6443),
            reset: on("cluster-reset").then_some(restore),
            data,
            args,
            hash: format!("{hash}===="),
        })
    }
}

/// The secret itself, of `K10<hash>::server:<secret>` too.
pub(crate) fn bare_token(token: &str) -> &str {
    token.trim().rsplit_once("::").map_or(token.trim(), |(_, rest)| rest.split_once(':').map_or(rest, |(_, t)| t))
}

fn command_line(words: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            return Err(format!("`{word}` is no flag"));
        };
        let (key, value) = match flag.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None if BOOLEAN.contains(&flag) => (flag, "true".to_owned()),
            None => match words.next_if(|next| !next.starts_with('-')) {
                Some(value) => (flag, value.clone()),
                None => (flag, "true".to_owned()),
            },
        };
        let key = match key {
            "t" => "token",
            "s" => "server",
            "c" => "config",
            "d" => "data-dir",
            other => other,
        };
        all.push((key.to_owned(), value));
    }
    Ok(all)
}

fn configuration(file: &Path) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    let folder = PathBuf::from(format!("{}.d", file.display()));
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    files.insert(0, file.to_owned());
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        if text.trim().is_empty() {
            continue;
        }
        let entries: Option<Value> =
            serde_saphyr::from_str(&text).map_err(|e| format!("{}: {}", file.display(), e.without_snippet()))?;
        for (key, value) in entries.as_ref().and_then(Value::as_object).into_iter().flatten() {
            let key = key.trim_end_matches('+').to_owned();
            match value {
                Value::Array(items) => all.extend(items.iter().map(|item| (key.clone(), plain(item)))),
                other => all.push((key, plain(other))),
            }
        }
    }
    Ok(all)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Leaves out what this version does not know, as K3s does: a key of a server's file is dropped with a warning; on an
/// agent, on the command line, or inside the arguments of a component it is fatal.
fn known(
    role: Role,
    version: &str,
    given: Vec<(String, String)>,
    configured: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, String> {
    let version: Version = version.parse().map_err(|e| format!("the version of this file: {e}"))?;
    let flags = Knowledge::embedded().flags();
    let of = if role == Role::Server { InventoryRole::Server } else { InventoryRole::Agent };
    let unknown = |key: &str| matches!(flags.flag(of, &version, key), Flag::Unknown | Flag::Removed { .. });
    let mut all = given;
    if let Some((key, _)) = all.iter().find(|(key, _)| unknown(key)) {
        return Err(format!("flag provided but not defined: -{key}"));
    }
    for (key, value) in configured {
        if unknown(&key) {
            if role == Role::Agent {
                return Err(format!("flag provided but not defined: -{key}"));
            }
            log("warning", &format!("Unknown flag --{key} found in config.yaml, skipping"));
        } else {
            all.push((key, value));
        }
    }
    for (key, value) in &all {
        let Some(component) = KubeComponent::of_key(key) else { continue };
        let name = value.split('=').next().unwrap_or_default();
        if matches!(flags.component_flag(component, &version, name), Flag::Unknown | Flag::Removed { .. }) {
            return Err(format!("{key}: unknown flag: --{name}"));
        }
    }
    Ok(all)
}

fn hostname() -> Result<String, String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(|e| format!("the host's name: {e}"))?;
    Ok(name.trim().to_ascii_lowercase())
}

/// The address that the host's own name stands for, else the one that packets to the server leave from.
fn own_address(node: &str, join: Option<&str>) -> Result<IpAddr, String> {
    let by_name = (node, 0).to_socket_addrs().into_iter().flatten().map(|a| a.ip()).find(|ip| !ip.is_loopback());
    let towards = || {
        let target = join.and_then(|url| url.strip_prefix("https://")).unwrap_or("192.0.2.1:9");
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect(target).ok()?;
        socket.local_addr().ok().map(|a| a.ip())
    };
    by_name.or_else(towards).ok_or_else(|| "this host has no address: set node-ip".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_read_as_k3s_reads_them() {
        let all = command_line(&words("--cluster-init -t abc --data-dir=/d --kubelet-arg x=y --cluster-reset"))
            .expect("flags");
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let expected = [
            pair("cluster-init", "true"),
            pair("token", "abc"),
            pair("data-dir", "/d"),
            pair("kubelet-arg", "x=y"),
            pair("cluster-reset", "true"),
        ];
        assert_eq!(all, expected);
        assert!(command_line(&words("server")).is_err());
    }

    #[test]
    fn what_a_version_does_not_know_is_dropped_or_fatal_as_in_k3s() {
        let pair = |k: &str| vec![(k.to_owned(), "true".to_owned())];
        let ask = |role, given, configured| known(role, "v1.36.3+k3s1", given, configured);
        assert_eq!(ask(Role::Server, vec![], pair("no-such-key")), Ok(vec![]));
        assert!(ask(Role::Agent, vec![], pair("no-such-key")).is_err());
        assert!(ask(Role::Server, pair("no-such-key"), vec![]).is_err());
        let inside = vec![("kubelet-arg".to_owned(), "no-such-flag=1".to_owned())];
        assert!(ask(Role::Server, vec![], inside).is_err());
        assert_eq!(ask(Role::Server, pair("cluster-init"), vec![]), Ok(pair("cluster-init")));
    }

    #[test]
    fn a_token_is_the_same_with_and_without_its_hash() {
        assert_eq!(bare_token("K10abc::server:secret\n"), "secret");
        assert_eq!(bare_token("secret"), "secret");
    }
}
