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
        return Err(incomplete(
            "it goes through a proxy (proxy-url), which Kadence cannot: it asks each server itself".to_owned(),
        ));
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

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, text).expect("written");
        (folder, path)
    }

    fn now() -> Timestamp {
        "2026-11-24T02:00:00Z".parse().expect("time")
    }

    fn error(text: &str, context: Option<&str>) -> String {
        let (_folder, path) = written(text);
        let Err(error) = read(&path, context, now()) else {
            return "no error".to_owned();
        };
        error.to_string().replace(&path.display().to_string(), "FILE")
    }

    const CONFIG: &str = "\
apiVersion: v1
kind: Config
current-context: shop
clusters:
- name: c
  cluster:
    server: https://10.0.0.11:6443
users:
- name: u
  user:
    token: t
contexts:
- name: shop
  context: { cluster: c, user: u }
- name: yard
  context: { cluster: c, user: u }
";

    #[test]
    fn each_way_in_which_it_fails_is_told() {
        let missing = read(Path::new("/nowhere/kubeconfig"), None, now()).err().expect("missing").to_string();
        assert_eq!(missing, "there is no kubeconfig /nowhere/kubeconfig (kadence.yaml: kubeconfig)");
        for (config, context, expected) in [
            (CONFIG.replace("current-context: shop", "current-context: \"\""), None, "has no current context"),
            (CONFIG.to_owned(), Some("garden"), "has no context `garden`; there are: shop, yard"),
            (CONFIG.replace("- name: c\n", "- name: other\n"), None, "there is no cluster `c`"),
            (CONFIG.replace("- name: u\n", "- name: other\n"), None, "there is no user `u`"),
            (CONFIG.replace("https://10.0.0.11:6443", "http://10.0.0.11"), None, "is not an https address"),
            (CONFIG.replace("server: h", "proxy-url: socks5://x\n    server: h"), None, "goes through a proxy"),
            (CONFIG.replace("server: h", "certificate-authority-data: '%'\n    server: h"), None, "not base64"),
            (CONFIG.replace("server: h", "certificate-authority: /nowhere/ca\n    server: h"), None, "/nowhere/ca"),
            (String::new(), None, "has no current context"),
        ] {
            let said = error(&config, context);
            assert!(said.contains(expected), "{said}");
        }
        let (_folder, path) = written(CONFIG);
        assert!(read(&path, None, now()).is_ok_and(|access| access.ca.is_none() && !access.config.default_retry));
        assert!(read(&path, Some("yard"), now()).is_ok());
    }

    #[test]
    fn a_malformed_file_is_told_by_its_place_and_without_its_secrets() {
        let key = "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tTUhjQ0FRRUVJ";
        let broken = CONFIG.replace("    token: t", &format!("    token: t\n    client-key-data: {key}\n   bad: ["));
        let said = error(&broken, None);
        assert!(said.starts_with("kubeconfig FILE:13:") && said.contains("is malformed"), "{said}");
        let of_another_type = CONFIG.replace("  user:\n    token: t", &format!("  user: {key}"));
        for text in [broken, of_another_type] {
            let said = error(&text, None);
            assert!(!said.contains(&key[..20]), "{said}");
        }
    }

    #[test]
    fn a_client_certificate_that_has_ended_is_refused_before_anything_is_sent() {
        for (end, refused) in [(date_time_ymd(2026, 11, 23), true), (date_time_ymd(2026, 11, 25), false)] {
            let key = KeyPair::generate().expect("key");
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.not_before = date_time_ymd(2025, 11, 23);
            params.not_after = end;
            let pem = params.self_signed(&key).expect("certificate").pem();
            let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
            let user = format!(
                "    client-certificate-data: {}\n    client-key-data: {}",
                base64(&pem),
                base64(&key.serialize_pem())
            );
            let said = error(&CONFIG.replace("    token: t", &user), None);
            let expected = "context `shop`, expired on 2026-11-23T00:00:00Z";
            assert_eq!(said.contains(expected), refused, "{said}");
        }
    }
}
