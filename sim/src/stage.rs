//! A Kadence on the simulated world: its engine, and what outlives it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use kadence_core::apply::plan::DatastoreKind;
use kadence_core::config::{Cluster, DatastoreCommands, Ssh, Update, WaiverEntry};
use kadence_core::ident::ClusterName;
use kadence_core::knowledge::Knowledge;
use kadence_engine::Engine;
use kadence_engine::ports::Observer;

use crate::store::MemoryStore;
use crate::vault::MemoryVault;
use crate::world::World;

/// A runtime for a world of its own: one thread, and a clock that jumps to the next thing that happens, so that waiting
/// costs nothing.
///
/// # Errors
/// The system gives none.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()
}

/// What a Kadence leaves behind when it dies: its state, its backups, its configuration.
pub struct Stage {
    pub world: World,
    pub store: MemoryStore,
    pub vault: Arc<MemoryVault>,
    pub config: Arc<Cluster>,
    cluster: ClusterName,
}

impl Stage {
    /// A stage for a world, whose cluster the configuration knows by this name. Files on their way into the vault lie
    /// below `scratch` for a moment.
    pub fn new(world: World, cluster: &str, scratch: &Path) -> Self {
        let external = world.look(|s| s.topology.datastore) == DatastoreKind::External;
        let config = Cluster {
            environment: "simulated".to_owned(),
            kubeconfig: "/simulated/kubeconfig".into(),
            context: None,
            ssh: Ssh::default(),
            nodes: BTreeMap::new(),
            probes: Vec::new(),
            update: Update::default(),
            datastore: external.then(|| DatastoreCommands {
                backup: vec!["dump".to_owned()],
                restore: Some(vec!["restore".to_owned()]),
            }),
            // The stories are about what an update does: what the data about releases does not know yet is not.
            waivers: vec![WaiverEntry {
                check: "CHECK-MISSING".to_owned(),
                about: None,
                owner: "eva".to_owned(),
                reason: "nothing of the kind is in this cluster".to_owned(),
                until: Timestamp::MAX,
            }],
            exclude: Vec::new(),
        };
        Self {
            store: MemoryStore::new(world.clock()),
            vault: Arc::new(MemoryVault::of(world.clone(), scratch.to_owned())),
            config: Arc::new(config),
            cluster: ClusterName::new(cluster),
            world,
        }
    }

    /// The engine of a Kadence that begins now. It is dead for good once the world was
    /// [revived](crate::World::revive).
    pub fn engine(&self, observer: Arc<dyn Observer>) -> Engine {
        Engine {
            cluster: self.cluster.clone(),
            config: Arc::clone(&self.config),
            api: self.world.api(),
            hosts: self.world.hosts(),
            releases: self.world.releases(),
            store: self.world.store(self.store.clone()),
            vault: self.vault.clone(),
            prober: self.world.prober(),
            clock: self.world.clock(),
            observer,
            knowledge: Knowledge::embedded(),
            actor: "you@simulated".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: Arc::new(Mutex::new(BTreeMap::new())),
        }
    }
}
