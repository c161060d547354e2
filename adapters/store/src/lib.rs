//! Kadence's state on this machine: one folder that belongs to one user.
//!
//! ```text
//! <state>/                0700
//!   kadence.db            event logs, plans, requests, turns (SQLite; also -wal and -shm)
//!   hash.key              key for comparing secrets without keeping them
//!   turns/<cluster>.lock  held by the Kadence whose turn it is
//!   backups/<name>/       age files, and a page that tells how to restore by hand
//!   scratch/              plain files on their way into a backup
//! ```

mod folder;
mod sqlite;
mod turn;
mod vault;

pub use sqlite::SqliteStore;
pub use vault::{AgeVault, generate_identity};
