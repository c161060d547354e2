//! Snapshots: `k3s etcd-snapshot save` and `delete`, and what is in a file.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use kadence_core::apply::backup::verify_etcd_snapshot;
use serde_json::{Value, json};

use super::client::{Client, by_token};
use super::say;
use super::settings::bare_token;
use crate::apiserver::pki::connector;
use crate::apiserver::store::Store;
use crate::apiserver::{Body, Request};
use crate::bbolt;

/// Looks like a snapshot of embedded etcd, and has the whole store in it.
pub(crate) fn bytes(store: &Store) -> Result<Vec<u8>, String> {
    let content = serde_json::to_vec(store).map_err(|e| e.to_string())?;
    Ok(bbolt::snapshot_of(store.revision, &content))
}

pub(crate) fn read(path: &Path) -> Result<Store, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    verify_etcd_snapshot(Cursor::new(&bytes), None).map_err(|e| format!("{}: {e}", path.display()))?;
    let content = bbolt::content_of(&bytes).unwrap_or_default();
    let store: Store = serde_json::from_slice(content)
        .map_err(|e| format!("{}: not a snapshot of the stand-in's: {e}", path.display()))?;
    Ok(store.loaded())
}

/// `k3s etcd-snapshot save|delete`: asks the server on this host.
pub(crate) async fn command(words: Vec<String>) -> Result<ExitCode, String> {
    let mut flags = BTreeMap::new();
    let mut names = Vec::new();
    let mut rest = words.iter().skip(1).peekable();
    while let Some(word) = rest.next() {
        match word.strip_prefix("--") {
            Some(flag) => match flag.split_once('=') {
                Some((key, value)) => drop(flags.insert(key, value)),
                None => drop(flags.insert(flag, rest.next().map_or("", String::as_str))),
            },
            None => names.push(word.clone()),
        }
    }
    let data = PathBuf::from(flags.get("data-dir").copied().unwrap_or("/var/lib/rancher/k3s"));
    let server = flags.get("etcd-server").copied().unwrap_or("https://127.0.0.1:6443");
    let authority = server.strip_prefix("https://").ok_or("etcd-server is no https address")?;
    let token = std::fs::read_to_string(data.join("server/token")).map_err(|e| format!("server/token: {e}"))?;
    let ca =
        std::fs::read_to_string(data.join("server/tls/server-ca.crt")).map_err(|e| format!("server-ca.crt: {e}"))?;
    let body: Value = json!({
        "operation": words.first(),
        "name": flags.get("name").copied().unwrap_or("on-demand"),
        "folder": flags.get("etcd-snapshot-dir"),
        "names": names,
    });
    let mut request = Request::new("POST", "/db/snapshot", Some(&body));
    request.authorization = Some(by_token("server", bare_token(&token)));
    let answer = Client::new(authority, connector(&ca, None)?).send(&request, Duration::from_secs(60)).await?;
    match answer.body {
        Body::Json(value) if answer.code == 200 => say(value["message"].as_str().unwrap_or_default()),
        Body::Json(value) => Err(value["message"].as_str().unwrap_or_default().to_owned()),
        Body::Text(text) => Err(text),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_snapshot_brings_the_store_back() {
        let mut store = Store::at(100);
        store.put(
            "/registry/configmaps/default/a",
            json!({ "metadata": { "name": "a" }, "data": {} }),
            Timestamp::UNIX_EPOCH,
        );
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("snapshot");
        std::fs::write(&path, bytes(&store).expect("bytes")).expect("written");
        let found = read(&path).expect("read");
        assert_eq!(
            (found.revision, found.get("/registry/configmaps/default/a")),
            (101, store.get("/registry/configmaps/default/a"))
        );
        let mut torn = std::fs::read(&path).expect("bytes");
        torn[9000] ^= 1;
        std::fs::write(&path, torn).expect("written");
        assert!(read(&path).is_err());
    }
}
