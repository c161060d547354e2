//! Serves a simulated cluster as Kubernetes API until Ctrl-C; `kubectl` and Kadence's own contract suite can be tried
//! on it.
//!
//! ```text
//! cargo run --package kadence-sim --example facade -- KUBECONFIG
//! ```
#![expect(clippy::print_stdout, reason = "a program for people")]

use kadence_core::apply::plan::DatastoreKind;
use kadence_core::version::Version;
use kadence_sim::facade::Facade;
use kadence_sim::{Topology, World};

#[tokio::main]
async fn main() -> Result<(), String> {
    let file = std::env::args().nth(1).ok_or("usage: facade KUBECONFIG")?;
    let topology = Topology { servers: 3, agents: 3, datastore: DatastoreKind::EmbeddedEtcd };
    let facade = Facade::serve(&World::cluster(topology, Version::new(1, 36, 3, 1)).build()).await?;
    std::fs::write(&file, facade.kubeconfig()).map_err(|e| format!("{file}: {e}"))?;
    println!("kubectl --kubeconfig {file} get nodes");
    tokio::signal::ctrl_c().await.map_err(|e| e.to_string())
}
