//! The cluster's authorities and this server's certificates, where K3s has them.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kadence_core::ident::Digest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value, json};

use super::disk::write_whole;
use crate::apiserver::pki::{Pair, Purpose, new_authority, sign};

/// `server/tls`. All servers of a cluster have the same authorities; the first one makes them.
pub(crate) struct Authorities {
    folder: PathBuf,
}

const AUTHORITIES: [&str; 4] = ["server-ca", "client-ca", "etcd/server-ca", "etcd/peer-ca"];

pub(crate) const ADMIN: &str = "client-admin";
pub(crate) const SERVING: &str = "serving-kube-apiserver";
pub(crate) const ETCD_SERVER: &str = "etcd/server-client";
pub(crate) const ETCD_CLIENT: &str = "etcd/client";
pub(crate) const PEER: &str = "etcd/peer-server-client";

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

impl Authorities {
    /// Those on the disk; `None` if there are none yet.
    pub(crate) fn there(folder: PathBuf) -> Option<Self> {
        AUTHORITIES.iter().all(|name| folder.join(format!("{name}.key")).is_file()).then_some(Self { folder })
    }

    pub(crate) fn make(folder: PathBuf) -> Result<Self, String> {
        let made = Self { folder };
        for name in AUTHORITIES {
            made.write(name, &new_authority(&common_name(name), Timestamp::now())?)?;
        }
        Ok(made)
    }

    /// Those that another server has told ([`bootstrap`](Self::bootstrap)).
    pub(crate) fn taken(folder: PathBuf, told: &Value) -> Result<Self, String> {
        let taken = Self { folder };
        for name in AUTHORITIES {
            let text = |field: &str| told[name][field].as_str().map(str::to_owned);
            let (Some(certificate), Some(key)) = (text("certificate"), text("key")) else {
                return Err(format!("the server that was asked did not tell {name}"));
            };
            taken.write(name, &Pair { certificate, key })?;
        }
        Ok(taken)
    }

    /// What a joining server needs, for whoever has the cluster's token.
    pub(crate) fn bootstrap(&self) -> Result<Value, String> {
        let mut all = Map::new();
        for name in AUTHORITIES {
            let pair = self.pair(name)?;
            all.insert(name.to_owned(), json!({ "certificate": pair.certificate, "key": pair.key }));
        }
        Ok(Value::Object(all))
    }

    fn write(&self, name: &str, pair: &Pair) -> Result<(), String> {
        write_whole(&self.folder.join(format!("{name}.crt")), pair.certificate.as_bytes(), 0o644)?;
        write_whole(&self.folder.join(format!("{name}.key")), pair.key.as_bytes(), 0o600)
    }

    pub(crate) fn pair(&self, name: &str) -> Result<Pair, String> {
        let file = |end: &str| read(&self.folder.join(format!("{name}.{end}")));
        Ok(Pair { certificate: file("crt")?, key: file("key")? })
    }

    pub(crate) fn certificate(&self, name: &str) -> Result<String, String> {
        read(&self.folder.join(format!("{name}.crt")))
    }

    /// A certificate for a name, signed anew.
    pub(crate) fn issue(
        &self,
        authority: &str,
        name: &str,
        of: Option<&str>,
        names: &[String],
        purpose: Purpose,
    ) -> Result<Pair, String> {
        sign(&common_name(authority), &self.pair(authority)?, name, of, names, purpose, Timestamp::now())
    }

    /// Makes this server's own certificates, with each start as K3s renews them.
    pub(crate) fn renew(&self, names: &[String]) -> Result<(), String> {
        let admin = self.issue("client-ca", "system:admin", Some("system:masters"), &[], Purpose::Client)?;
        self.write(ADMIN, &admin)?;
        self.write(SERVING, &self.issue("server-ca", "kube-apiserver", None, names, Purpose::Server)?)?;
        self.write(ETCD_SERVER, &self.issue("etcd/server-ca", "etcd-server", None, names, Purpose::Both)?)?;
        self.write(ETCD_CLIENT, &self.issue("etcd/server-ca", "etcd-client", None, &[], Purpose::Client)?)?;
        self.write(PEER, &self.issue("etcd/peer-ca", "etcd-peer", None, names, Purpose::Both)?)
    }

    /// The token with the hash of the CA in front, as K3s writes it.
    pub(crate) fn long_token(&self, token: &str) -> Result<String, String> {
        let pem = self.certificate("server-ca")?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| format!("server-ca.crt: {e}"))?;
        Ok(format!("K10{}::server:{token}", Digest::of(&der)))
    }
}

fn common_name(authority: &str) -> String {
    match authority {
        "server-ca" | "client-ca" => format!("k3s-{authority}"),
        other => other.replace('/', "-"),
    }
}
