//! Certificate authorities and what they sign, as K3s makes them: each purpose has a CA of its own.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A certificate with its private key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// For whom a certificate is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Server,
    Client,
    /// etcd's peers are both.
    Both,
}

/// Something about keys or certificates that does not work, in words.
pub(crate) type Trouble = String;

fn trouble(what: &str) -> impl Fn(rcgen::Error) -> Trouble {
    move |error| format!("{what}: {error}")
}

/// The parameters of a CA: the same each time, so that its certificate need not be read back to sign with it.
fn authority(name: &str) -> Result<CertificateParams, Trouble> {
    let mut params = CertificateParams::new(Vec::new()).map_err(trouble(name))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

pub(crate) fn new_authority(name: &str, now: Timestamp) -> Result<Pair, Trouble> {
    let key = KeyPair::generate().map_err(trouble(name))?;
    let mut params = authority(name)?;
    valid(&mut params, now, 3650);
    let certificate = params.self_signed(&key).map_err(trouble(name))?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

/// A certificate signed by the CA of that name, for a year as K3s's are.
///
/// # Errors
/// If the CA's key cannot be read, or a name is none.
pub(crate) fn sign(
    authority_name: &str,
    ca: &Pair,
    common_name: &str,
    organisation: Option<&str>,
    names: &[String],
    purpose: Purpose,
    now: Timestamp,
) -> Result<Pair, Trouble> {
    let what = trouble(common_name);
    let issuer = Issuer::new(authority(authority_name)?, KeyPair::from_pem(&ca.key).map_err(&what)?);
    let mut params = CertificateParams::new(names.to_vec()).map_err(&what)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    if purpose != Purpose::Client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if purpose != Purpose::Server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    valid(&mut params, now, 365);
    let key = KeyPair::generate().map_err(&what)?;
    let certificate = params.signed_by(&key, &issuer).map_err(&what)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

/// From yesterday on: clocks differ.
fn valid(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let day = |days: i64| {
        let date = now.checked_add(SignedDuration::from_hours(24 * days)).unwrap_or(now).to_zoned(TimeZone::UTC).date();
        let part = |number: i8| u8::try_from(number).unwrap_or(1);
        date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    (params.not_before, params.not_after) = (day(-1), day(days));
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| format!("a certificate: {e}"))
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Trouble> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| format!("a private key: {e}"))
}

fn roots(pem: &str) -> Result<RootCertStore, Trouble> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|e| format!("a CA certificate: {e}"))?;
    }
    Ok(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS of a server that asks clients for a certificate of `client_ca`; with `required`, it talks to no one else.
pub(crate) fn acceptor(own: &Pair, client_ca: &str, required: bool) -> Result<TlsAcceptor, Trouble> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca)?), provider());
    let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
    let verifier = verifier.build().map_err(|e| format!("the client CA: {e}"))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&own.certificate)?, private_key(&own.key)?)
        .map_err(|e| format!("the server's certificate: {e}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// TLS of a client that trusts `ca`.
pub(crate) fn connector(ca: &str, own: Option<&Pair>) -> Result<TlsConnector, Trouble> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots(ca)?);
    let config = match own {
        Some(own) => config
            .with_client_auth_cert(certificates(&own.certificate)?, private_key(&own.key)?)
            .map_err(|e| format!("the client's certificate: {e}"))?,
        None => config.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// An administrator's kubeconfig, as K3s writes it.
pub(crate) fn kubeconfig(server: &str, ca: &str, admin: &Pair) -> String {
    use base64::Engine as _;
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: {server}\n  name: default\n\
         contexts:\n- context:\n    cluster: default\n    user: default\n  name: default\ncurrent-context: default\n\
         kind: Config\nusers:\n- name: default\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        encoded(ca),
        encoded(&admin.certificate),
        encoded(&admin.key),
    )
}
