//! Opens what a command works on: the configuration, the state, the ports of one cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use kadence_core::config::Config;
use kadence_core::ident::{ClusterName, ClusterUid};
use kadence_core::knowledge::Knowledge;
use kadence_engine::Engine;
use kadence_engine::config;
use kadence_engine::ports::{Clock, Observer, Store as _};
use kadence_kubernetes::KubeApi;
use kadence_probes::Probes;
use kadence_ssh::{HmacKey, SshHosts};
use kadence_store::{AgeVault, SqliteStore};

use crate::args::Global;
use crate::exit::{Exit, Failure};

/// The configuration, read, with its paths made absolute.
pub(crate) struct Opened {
    pub(crate) config: Config,
    state: PathBuf,
}

/// Reads the configuration.
pub(crate) fn config(global: &Global) -> Result<Opened, Failure> {
    let file = &global.config;
    let text = fs_err::read_to_string(file)
        .map_err(|error| Failure::new(Exit::Wrong, "E-CONFIG", error.to_string()).next("kadence init writes one"))?;
    let mut config = config::parse(&text, &file.display().to_string())?;
    let folder = std::path::absolute(file)
        .ok()
        .and_then(|f| f.parent().map(Path::to_owned))
        .unwrap_or_else(|| PathBuf::from("."));
    if let Some(releases) = &global.releases {
        config.releases.clone_from(releases);
    }
    config::resolve_paths(&mut config, &folder, std::env::home_dir().as_deref());
    let state = global.state.clone().unwrap_or_else(|| folder.join("state"));
    Ok(Opened { config, state })
}

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

impl Opened {
    /// The cluster of that name in the configuration.
    pub(crate) fn cluster(&self, name: &str) -> Result<&kadence_core::config::Cluster, Failure> {
        self.config.clusters.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.config.clusters.keys().map(ClusterName::as_str).collect();
            Failure::new(Exit::Wrong, "E-NO-SUCH-CLUSTER", format!("no cluster is called {name}"))
                .next(format!("known: {}", known.join(", ")))
        })
    }

    /// Where plans lie as files, to be read and to be kept elsewhere; the state has them, too.
    pub(crate) fn plans(&self) -> PathBuf {
        self.state.join("plans")
    }

    pub(crate) async fn store(&self) -> Result<SqliteStore, Failure> {
        Ok(SqliteStore::open(&self.state).await?)
    }

    /// The uid a cluster had when it was last seen: enough to read its history without reaching it.
    pub(crate) async fn known_uid(&self, store: &SqliteStore, name: &str) -> Result<ClusterUid, Failure> {
        self.cluster(name)?;
        store.known_uid(name).await?.ok_or_else(|| {
            Failure::new(Exit::Refused, "E-NOT-SEEN", format!("{name} was never looked at from here"))
                .next(format!("kadence inspect {name}"))
        })
    }

    /// The ports of one cluster.
    pub(crate) async fn engine(&self, name: &str, observer: Arc<dyn Observer>) -> Result<Engine, Failure> {
        let cluster = self.cluster(name)?.clone();
        let store = self.store().await?;
        let api = KubeApi::connect(&cluster.kubeconfig, cluster.context.as_deref())
            .map_err(|error| Failure::new(Exit::Wrong, "E-KUBECONFIG", error.to_string()))?;
        let hosts = SshHosts::new(&cluster, HmacKey::new(store.hash_key()))
            .map_err(|error| Failure::new(Exit::Wrong, "E-SSH", error))?;
        let releases = kadence_releases::open(&self.config.releases, &self.state.join("releases"))
            .map_err(|error| Failure::new(Exit::Wrong, "E-RELEASES", error.to_string()))?;
        let vault = AgeVault::open(&self.state, &self.config.backups)?;
        let prober = Probes::new().map_err(|error| Failure::new(Exit::Failed, "E-PROBES", error))?;
        Ok(Engine {
            cluster: ClusterName::new(name),
            config: Arc::new(cluster),
            api: Arc::new(api),
            hosts: Arc::new(hosts),
            releases: Arc::from(releases),
            store: Arc::new(store),
            vault: Arc::new(vault),
            prober: Arc::new(prober),
            clock: Arc::new(SystemClock),
            observer,
            knowledge: Knowledge::embedded(),
            actor: actor(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: Arc::default(),
        })
    }
}

/// Who asks, for the log: `user@host`.
fn actor() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "unknown".to_owned());
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}
