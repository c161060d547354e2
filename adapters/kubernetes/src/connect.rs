//! From a kubeconfig to something that can be called, with an error for each way in which that fails.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kadence_core::ident::Digest;
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{AuthInfo, Kubeconfig, KubeconfigError, LoadDataError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_cert::der::Decode as _;

use crate::servers::{CALL, CONNECT};

/// Why a kubeconfig cannot be used. Nothing was sent to anybody yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("there is no kubeconfig {0} (kadence.yaml: kubeconfig)")]
    Missing(PathBuf),
    #[error("kubeconfig {path} cannot be read: {why}")]
    Unreadable { path: PathBuf, why: String },
    /// `place` is `line:column`, where the parser knows it.
    #[error("kubeconfig {}{} is malformed: {why}", path.display(), place.as_deref().map(|p| format!(":{p}")).unwrap_or_default())]
    Malformed { path: PathBuf, place: Option<String>, why: String },
    #[error("kubeconfig {path} has no current context; name one (kadence.yaml: context); there are: {known}")]
    NoCurrentContext { path: PathBuf, known: String },
    #[error("kubeconfig {path} has no context `{context}`; there are: {known}")]
    NoSuchContext { path: PathBuf, context: String, known: String },
    #[error("kubeconfig {path}, context `{context}`: {why}")]
    Incomplete { path: PathBuf, context: String, why: String },
    #[error(
        "the client certificate in kubeconfig {path}, context `{context}`, expired on {not_after}; \
         copy /etc/rancher/k3s/k3s.yaml from a server anew: K3s renews it when it starts"
    )]
    Expired { path: PathBuf, context: String, not_after: Timestamp },
}

/// What a kubeconfig says about one cluster.
pub(crate) struct Access {
    pub(crate) config: Config,
    /// SHA-256 of the first CA certificate in DER form.
    pub(crate) ca: Option<Digest>,
}

/// Reads a kubeconfig and takes one context of it.
pub(crate) fn read(path: &Path, context: Option<&str>, now: Timestamp) -> Result<Access, ConnectError> {
    let mut file = Kubeconfig::read_from(path).map_err(|e| unreadable(path, &e))?;
    let known = || match file.contexts.iter().map(|c| c.name.as_str()).collect::<Vec<_>>() {
        names if names.is_empty() => "none".to_owned(),
        names => names.join(", "),
    };
    // An empty name is what `kubectl config unset current-context` leaves behind.
    let Some(name) = context.map(str::to_owned).or_else(|| file.current_context.clone()).filter(|c| !c.is_empty())
    else {
        return Err(ConnectError::NoCurrentContext { path: path.to_owned(), known: known() });
    };
    let Some(chosen) = file.contexts.iter().find(|c| c.name == name).and_then(|c| c.context.clone()) else {
        return Err(ConnectError::NoSuchContext { path: path.to_owned(), context: name, known: known() });
    };
    let incomplete = |why: String| ConnectError::Incomplete { path: path.to_owned(), context: name.clone(), why };

    let user = chosen.user.as_deref().unwrap_or_default();
    let auth = file.auth_infos.iter().find(|u| u.name == user).and_then(|u| u.auth_info.clone());
    let Some(auth) = auth else {
        return Err(incomplete(format!("there is no user `{user}`")));
    };
    if let Some(not_after) = client_certificate_end(&auth)
        && not_after <= now
    {
        return Err(ConnectError::Expired { path: path.to_owned(), context: name, not_after });
    }

    file.current_context = Some(name.clone());
    let through = file.clusters.iter().find(|c| c.name == chosen.cluster).and_then(|c| c.cluster.clone());
    let Some(through) = through else {
        return Err(incomplete(format!("there is no cluster `{}`", chosen.cluster)));
    };
    if through.proxy_url.as_deref().is_some_and(|url| !url.is_empty()) {
        return Err(incomplete("it goes through a proxy (proxy-url), which Kadence cannot: it asks each server itself".to_owned()));
    }
    let mut config = Config::try_from(file).map_err(|e| incomplete(words(&e)))?;
    // Taken from the environment by the library. Servers are asked at their own addresses, never through a proxy.
    config.proxy_url = None;
    config.connect_timeout = Some(CONNECT);
    config.write_timeout = Some(CALL);
    // A 429 is the answer of a disruption budget; whether anything is tried again is the engine's decision.
    config.default_retry = false;
    if config.cluster_url.host().is_none() || config.cluster_url.scheme_str() != Some("https") {
        return Err(incomplete(format!("its server `{}` is not an https address", config.cluster_url)));
    }

    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread was quicker, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    config.rustls_client_config().map_err(|e| incomplete(format!("its certificates cannot be used: {e}")))?;
    let ca = config.root_cert.as_ref().and_then(|certificates| certificates.first()).map(|der| Digest::of(der));
    Ok(Access { config, ca })
}

fn unreadable(path: &Path, error: &KubeconfigError) -> ConnectError {
    let path = path.to_owned();
    match error {
        KubeconfigError::ReadConfig(e, _) if e.kind() == ErrorKind::NotFound => ConnectError::Missing(path),
        KubeconfigError::ReadConfig(e, _) => ConnectError::Unreadable { path, why: e.to_string() },
        KubeconfigError::Parse(e) => {
            // Without the excerpt: the lines around the error can hold keys.
            let place = e.location().map(|at| format!("{}:{}", at.line(), at.column()));
            ConnectError::Malformed { path, place, why: without_values(&e.without_snippet().to_string()) }
        }
        other => ConnectError::Malformed { path, place: None, why: other.to_string() },
    }
}

/// A parser's message with every long run of characters cut: it may quote a key.
fn without_values(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let words = line.split(' ').map(|word| if word.chars().count() > 40 { "..." } else { word });
    words.collect::<Vec<_>>().join(" ")
}

fn words(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::MissingClusterUrl => "its cluster has no server".to_owned(),
        KubeconfigError::ParseClusterUrl(e) => format!("its server is not an address: {e}"),
        KubeconfigError::LoadCertificateAuthority(e) => format!("its certificate authority: {}", data_words(e)),
        KubeconfigError::LoadClientCertificate(e) => format!("its client certificate: {}", data_words(e)),
        KubeconfigError::LoadClientKey(e) => format!("its client key: {}", data_words(e)),
        KubeconfigError::ParseCertificates(e) => format!("its certificate authority is not PEM: {e}"),
        other => other.to_string(),
    }
}

fn data_words(error: &LoadDataError) -> String {
    match error {
        LoadDataError::DecodeBase64(e) => format!("not base64: {e}"),
        LoadDataError::ReadFile(e, path) => format!("{}: {e}", path.display()),
        LoadDataError::NoBase64DataOrFile => "neither data nor a file".to_owned(),
    }
}

/// When the client certificate ends. `None` where there is none, or none that can be read: then TLS says so itself.
fn client_certificate_end(auth: &AuthInfo) -> Option<Timestamp> {
    let pem = match (&auth.client_certificate_data, &auth.client_certificate) {
        (Some(data), _) if !data.is_empty() => base64(data)?,
        (_, Some(file)) => std::fs::read(file).ok()?,
        _ => return None,
    };
    let der = CertificateDer::from_pem_slice(&pem).ok()?;
    let certificate = x509_cert::Certificate::from_der(&der).ok()?;
    let end = certificate.tbs_certificate.validity.not_after.to_unix_duration();
    Timestamp::from_second(i64::try_from(end.as_secs()).ok()?).ok()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()
}
