//! A client for one server, over one connection that is kept.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::apiserver::{Answer, Body, Request};

pub(crate) struct Client {
    /// `host:port`.
    authority: String,
    tls: TlsConnector,
    kept: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// The other side may have got the request, and done what it asks for.
    pub(crate) sent: bool,
    pub(crate) why: String,
}

impl NoAnswer {
    pub(crate) fn not_sent(why: impl ToString) -> Self {
        Self { sent: false, why: why.to_string() }
    }

    pub(crate) fn sent(why: impl ToString) -> Self {
        Self { sent: true, why: why.to_string() }
    }
}

impl From<NoAnswer> for String {
    fn from(no: NoAnswer) -> Self {
        no.why
    }
}

impl Client {
    pub(crate) fn new(authority: impl Into<String>, tls: TlsConnector) -> Self {
        Self { authority: authority.into(), tls, kept: Mutex::new(None) }
    }

    /// Sends a request and waits for the whole answer.
    ///
    /// # Errors
    /// If there was no answer.
    pub(crate) async fn send(&self, request: &Request, within: Duration) -> Result<Answer, NoAnswer> {
        let sent = tokio::time::timeout(within, self.exchange(request)).await;
        let result = sent.unwrap_or_else(|_| Err(NoAnswer::sent(format!("no answer within {within:?}"))));
        result.map_err(|no| NoAnswer { why: format!("https://{}: {}", self.authority, no.why), ..no })
    }

    async fn exchange(&self, request: &Request) -> Result<Answer, NoAnswer> {
        let mut slot = self.kept.lock().await;
        // Taken out: if this call is given up in the middle, the connection is of no use any more.
        let mut sender = match slot.take() {
            Some(kept) if !kept.is_closed() => kept,
            _ => self.connect().await.map_err(NoAnswer::not_sent)?,
        };
        let query: Vec<String> = request.query.iter().map(|(k, v)| format!("{}={}", escaped(k), escaped(v))).collect();
        let uri = if query.is_empty() { request.path.clone() } else { format!("{}?{}", request.path, query.join("&")) };
        let mut builder = http::Request::builder()
            .method(request.method.as_str())
            .uri(uri)
            .header(http::header::HOST, &self.authority)
            .header(http::header::CONTENT_TYPE, &request.content_type);
        if !request.accept.is_empty() {
            builder = builder.header(http::header::ACCEPT, &request.accept);
        }
        if let Some(authorization) = &request.authorization {
            builder = builder.header(http::header::AUTHORIZATION, authorization);
        }
        let message = builder.body(Full::new(Bytes::from(request.body.clone()))).map_err(NoAnswer::not_sent)?;
        sender.ready().await.map_err(NoAnswer::not_sent)?;
        let response = sender.send_request(message).await.map_err(NoAnswer::sent)?;
        let code = response.status().as_u16();
        let json = response
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|v| v.to_str().is_ok_and(|v| v.starts_with("application/json")));
        let bytes = response.into_body().collect().await.map_err(NoAnswer::sent)?.to_bytes();
        *slot = Some(sender);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = match serde_json::from_str(&text) {
            Ok(value) if json => Body::Json(value),
            _ => Body::Text(text),
        };
        Ok(Answer { code, body })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|e| e.to_string())?;
        let _ = stream.set_nodelay(true);
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| e.to_string())?;
        let stream = self.tls.connect(name, stream).await.map_err(|e| e.to_string())?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// `Authorization` by the cluster's token.
pub(crate) fn by_token(user: &str, token: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{token}")))
}

/// TLS to a server whose CA is not known yet: only for fetching that.
pub(crate) fn trusting() -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
