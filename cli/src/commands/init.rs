//! `kadence init`: from a kubeconfig and SSH to a commented `kadence.yaml`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use kadence_core::config::{Cluster, Ssh, Sudo};
use kadence_core::fact::Fact;
use kadence_core::ident::NodeName;
use kadence_core::inventory::{ApiNode, Role};
use kadence_engine::ports::{Api as _, HostAddress, HostError, Hosts as _};
use kadence_kubernetes::KubeApi;
use kadence_ssh::{HmacKey, SshHosts};
use kadence_store::generate_identity;

use age::secrecy::ExposeSecret as _;

use crate::args::{Global, Init};
use crate::exit::{Exit, Failure};
use crate::screen::{print, say};

pub(crate) async fn run(global: &Global, args: &Init) -> Result<Exit, Failure> {
    let file = &global.config;
    if file.exists() {
        return Err(Failure::new(Exit::Refused, "E-CONFIG-EXISTS", format!("{} exists already", file.display()))
            .next("add the cluster to it by hand, or move it away first"));
    }
    let kubeconfig = kubeconfig(args)?;
    let api = KubeApi::connect(&kubeconfig, args.context.as_deref())
        .map_err(|e| Failure::new(Exit::Wrong, "E-KUBECONFIG", e.to_string()))?;
    let nodes = api.nodes().await?;
    let name = answer(args, "Name of the cluster", args.name.as_deref(), "cluster")?;
    let environment = answer(args, "Environment", args.environment.as_deref(), "production")?;
    let user = answer(args, "SSH user", args.ssh_user.as_deref(), "root")?;
    check_name(&name)?;
    say(found(&kubeconfig, &nodes));

    let (ssh, reached) = reach(args, &user, &environment, &kubeconfig, &nodes).await?;
    for line in &reached {
        say(line.clone());
    }
    let (secret, recipient) = generate_identity();
    let secret = secret.expose_secret();
    let folder = std::path::absolute(file).ok().and_then(|f| f.parent().map(Path::to_owned)).unwrap_or_default();
    let key_file = folder.join("kadence-backup.key");
    write_new(
        &key_file,
        &format!("# The private key of Kadence's backups. Keep a copy away from this machine.\n{secret}\n"),
    )?;
    let releases = global.releases.clone().unwrap_or_else(|| "github".to_owned());
    let text = yaml(&Choices {
        name: &name,
        environment: &environment,
        kubeconfig: &std::path::absolute(&kubeconfig).unwrap_or(kubeconfig),
        context: args.context.as_deref(),
        ssh: &ssh,
        releases: &releases,
        recipient: &recipient,
        key_file: &key_file,
    });
    // What is written must be readable, or the next command would blame the user.
    kadence_engine::config::parse(&text, &file.display().to_string())?;
    write_new(file, &text)?;
    print(&format!(
        "Wrote {} ({} lines, commented) and {}.\nThe private key of the backups, shown this once; keep it away from this machine:\n  {secret}\nNext: kadence check {name}\n",
        file.display(),
        text.lines().count(),
        key_file.display(),
    ));
    Ok(Exit::Done)
}

/// The kubeconfig to use: the flag's, else the first that exists where kubectl and K3s look.
fn kubeconfig(args: &Init) -> Result<PathBuf, Failure> {
    if let Some(file) = &args.kubeconfig {
        return Ok(file.clone());
    }
    let mut places: Vec<PathBuf> =
        std::env::var_os("KUBECONFIG").map(|list| std::env::split_paths(&list).collect()).unwrap_or_default();
    places.extend(std::env::home_dir().map(|home| home.join(".kube/config")));
    places.push(PathBuf::from("/etc/rancher/k3s/k3s.yaml"));
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
        Failure::new(Exit::Wrong, "E-NO-KUBECONFIG", format!("no kubeconfig in {}", places.join(", ")))
            .next("kadence init --kubeconfig FILE; K3s writes one to /etc/rancher/k3s/k3s.yaml on its servers")
    })
}

fn answer(args: &Init, what: &str, given: Option<&str>, default: &str) -> Result<String, Failure> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    if args.yes {
        return Ok(default.to_owned());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Wrong, "E-INPUT", format!("{what} is not given, and nobody can be asked"))
            .next("give it as a flag, or add --yes for the defaults"));
    }
    let mut stderr = anstream::stderr();
    let _ = write!(stderr, "{what} [{default}]: ");
    let _ = stderr.flush();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|e| Failure::new(Exit::Wrong, "E-INPUT", e.to_string()))?;
    let line = line.trim();
    Ok(if line.is_empty() { default.to_owned() } else { line.to_owned() })
}

fn check_name(name: &str) -> Result<(), Failure> {
    let good =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.');
    if good {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Wrong,
        "E-NAME",
        format!("`{name}` is no name for a cluster: letters, digits, `-`, `_`, `.`"),
    ))
}

fn found(kubeconfig: &Path, nodes: &[ApiNode]) -> String {
    let servers = nodes.iter().filter(|n| n.control_plane || n.etcd_label).count();
    let mut versions: Vec<String> = nodes.iter().filter_map(|n| n.version.known()).map(ToString::to_string).collect();
    versions.sort();
    versions.dedup();
    let datastore = if nodes.iter().any(|n| n.etcd_label) { "embedded etcd" } else { "no embedded etcd" };
    format!(
        "Found kubeconfig {}. {servers} servers, {} agents, K3s {}, {datastore}.",
        kubeconfig.display(),
        nodes.len() - servers,
        if versions.is_empty() { "of unknown version".to_owned() } else { versions.join(", ") },
    )
}

/// Tries SSH to every node; finds out whether sudo is needed and whether it asks for a password.
async fn reach(
    args: &Init,
    user: &str,
    environment: &str,
    kubeconfig: &Path,
    nodes: &[ApiNode],
) -> Result<(Ssh, Vec<String>), Failure> {
    let addresses: BTreeMap<NodeName, HostAddress> = nodes
        .iter()
        .filter_map(|n| {
            let role = if n.control_plane || n.etcd_label { Role::Server } else { Role::Agent };
            Some((n.name.clone(), HostAddress { role, address: n.internal_ip.clone()? }))
        })
        .collect();
    let mut ssh = Ssh {
        user: user.to_owned(),
        key: args.ssh_key.as_deref().map(absolute),
        known_hosts: args.known_hosts.as_deref().map(absolute),
        sudo: if user == "root" { Sudo::No } else { Sudo::Passwordless },
        ..Ssh::default()
    };
    let mut lines = Vec::new();
    let mut failed = 0;
    let cluster = Cluster {
        environment: environment.to_owned(),
        kubeconfig: kubeconfig.to_owned(),
        context: args.context.clone(),
        ssh: ssh.clone(),
        nodes: BTreeMap::new(),
        probes: Vec::new(),
        update: Default::default(),
        datastore: None,
        waivers: Vec::new(),
        exclude: Vec::new(),
    };
    // Nothing is compared between runs here, so the key for hashes may be any.
    let hosts = SshHosts::new(&cluster, HmacKey::new([0; 32])).map_err(|e| Failure::new(Exit::Wrong, "E-SSH", e))?;
    hosts.learn_nodes(&addresses);
    for (name, host) in &addresses {
        match hosts.facts(name).await {
            Ok(facts) => {
                let sudo = if user == "root" { "; sudo is not needed" } else { "; sudo asks for no password" };
                let k3s = match &facts.install {
                    Fact::Known(_) => String::new(),
                    Fact::Unknown(why) => format!("; K3s is not as expected: {why}"),
                };
                lines.push(format!("SSH to {user}@{} ({name}) works{sudo}{k3s}.", host.address));
            }
            Err(error) => {
                failed += 1;
                if matches!(error, HostError::Sudo { .. }) {
                    ssh.sudo = Sudo::Password(kadence_core::config::SecretRef::Env("KADENCE_SUDO_PASSWORD".to_owned()));
                }
                lines.push(format!("SSH to {user}@{} ({name}) does not work yet: {error}", host.address));
            }
        }
    }
    if failed > 0 {
        lines.push(format!(
            "{failed} of {} hosts cannot be reached yet; kadence check says the same until they can.",
            addresses.len()
        ));
    }
    Ok((ssh, lines))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What `kadence.yaml` is made of.
struct Choices<'a> {
    name: &'a str,
    environment: &'a str,
    kubeconfig: &'a Path,
    context: Option<&'a str>,
    ssh: &'a Ssh,
    releases: &'a str,
    recipient: &'a str,
    key_file: &'a Path,
}

fn yaml(choices: &Choices<'_>) -> String {
    // A JSON string is a YAML string, whatever is in it.
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# Kadence's configuration. `kadence config check` reads it, `kadence config schema` describes it."
    );
    let _ = writeln!(text, "\n# Where releases come from: github, a folder, or an URL with a releases.json.");
    let _ = writeln!(text, "releases: {}", quoted(choices.releases));
    let _ = writeln!(text, "\n# Backups are encrypted to every key here; the private key opens them for a restore.");
    let _ = writeln!(text, "# Keep a copy of it away from this machine.");
    let _ = writeln!(text, "backups:\n  recipients:\n    - {}", quoted(choices.recipient));
    let _ = writeln!(text, "  identity: {}", path(choices.key_file));
    let _ = writeln!(text, "\nclusters:\n  {}:", quoted(choices.name));
    let _ = writeln!(text, "    environment: {}", quoted(choices.environment));
    let _ = writeln!(text, "    kubeconfig: {}", path(choices.kubeconfig));
    if let Some(context) = choices.context {
        let _ = writeln!(text, "    context: {}", quoted(context));
    }
    let ssh = choices.ssh;
    let _ = writeln!(text, "\n    # Host keys are always checked strictly: every host has to be in known_hosts.");
    let _ = writeln!(text, "    ssh:\n      user: {}", quoted(&ssh.user));
    if let Some(key) = &ssh.key {
        let _ = writeln!(text, "      key: {}", path(key));
    }
    if let Some(known_hosts) = &ssh.known_hosts {
        let _ = writeln!(text, "      known_hosts: {}", path(known_hosts));
    }
    match &ssh.sudo {
        Sudo::No => {
            let _ =
                writeln!(text, "      # sudo: passwordless    or    sudo: {{password: {{file: F}}}} or {{env: NAME}}");
        }
        Sudo::Passwordless => {
            let _ = writeln!(text, "      sudo: passwordless");
        }
        Sudo::Password(_) => {
            let _ = writeln!(text, "      # The password sudo asks for, from this environment variable (or `file:`).");
            let _ = writeln!(text, "      sudo: {{password: {{env: KADENCE_SUDO_PASSWORD}}}}");
        }
    }
    text.push_str(
        "
    update:
      # auto drains where the kubelet's minor or containerd's major changes; always; never.
      drain: auto
      # How long a node must stay healthy before the next one is touched.
      settle: 30s
      # How long a node may take from its restart to being proven healthy.
      ready_within: 10m
      # After the first agent, which goes alone.
      agents_at_once: 1

    # What must work before, while and after an update.
    # probes:
    #   - name: front
    #     test: {http: {url: \"https://shop.example/health\"}}
    #   - name: database
    #     test: {tcp: \"10.0.0.5:5432\"}
",
    );
    text
}

fn write_new(file: &Path, text: &str) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |e: std::io::Error| Failure::new(Exit::Wrong, "E-WRITE", format!("{}: {e}", file.display()));
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_is_read_as_it_was_meant() {
        let ssh = Ssh { user: "ops".to_owned(), sudo: Sudo::Passwordless, key: Some("/k ey".into()), ..Ssh::default() };
        let (_, recipient) = generate_identity();
        let text = yaml(&Choices {
            name: "shop",
            environment: "production",
            kubeconfig: Path::new("/root/it's: a \"file\""),
            context: Some("shop"),
            ssh: &ssh,
            releases: "github",
            recipient: &recipient,
            key_file: Path::new("/root/key"),
        });
        let config = kadence_engine::config::parse(&text, "kadence.yaml").expect("good");
        let shop = &config.clusters["shop"];
        assert_eq!(shop.ssh, ssh);
        assert_eq!(shop.kubeconfig, Path::new("/root/it's: a \"file\""));
        assert_eq!(config.backups.recipients, [recipient]);
    }
}
