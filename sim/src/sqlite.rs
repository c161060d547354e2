//! What stands for a copy of K3s's SQLite database: a line that says how far it reaches, and whether it is whole.

use kadence_core::apply::backup::SqliteFacts;

const MAGIC: &str = "SQLite format 3\0";
const LOG: &str = "SQLite log\0";
const WHOLE: &str = "ok";

/// A database in one file. `name` makes it another than all others.
pub(crate) fn database(name: &str, revision: u64, whole: bool) -> Vec<u8> {
    let integrity = if whole { WHOLE } else { "malformed" };
    format!("{MAGIC}{name} {integrity} {revision}").into_bytes()
}

/// The same as K3s leaves it when it is stopped: without the last write, which is in the log.
pub(crate) fn before_log(database: &[u8]) -> Vec<u8> {
    let (text, revision) = split(database).unwrap_or_default();
    format!("{text} {}", revision.saturating_sub(1)).into_bytes()
}

/// The log that belongs to it.
pub(crate) fn log(database: &[u8]) -> Vec<u8> {
    format!("{LOG}{}", split(database).unwrap_or_default().1).into_bytes()
}

/// What a database says, and the one file that it is with what its log holds. `None`: it is no database.
pub(crate) fn read(database: &[u8], log: Option<&[u8]>) -> Option<(Vec<u8>, SqliteFacts)> {
    let (text, revision) = split(database)?;
    let in_log = log.and_then(|log| std::str::from_utf8(log).ok()?.strip_prefix(LOG)?.parse().ok());
    let revision = in_log.unwrap_or(revision);
    let integrity = if text.ends_with(&format!(" {WHOLE}")) { WHOLE } else { "database disk image is malformed" };
    Some((format!("{text} {revision}").into_bytes(), SqliteFacts { integrity: integrity.to_owned(), revision }))
}

fn split(database: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(database).ok().filter(|text| text.starts_with(MAGIC))?;
    let (text, revision) = text.rsplit_once(' ')?;
    Some((text.to_owned(), revision.parse().ok()?))
}
