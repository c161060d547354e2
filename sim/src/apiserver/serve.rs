//! The API over TLS: connections, and watches that go on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use http::{HeaderMap, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::kinds::{Kind, Route, route};
use super::patch::selected;
use super::store::Store;
use super::{Answer, Body, Request, parse_query, partial, table, typed};

/// Whoever knows the objects.
#[async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// Answers whatever is no watch.
    async fn answer(&self, request: Request) -> Answer;

    /// Whether a watch may be opened; the answer if not. A backend that says nothing else has nothing to watch.
    async fn admit(&self, _: &Request) -> Result<(), Answer> {
        Err(Answer::text(404, "nothing to watch"))
    }

    /// Lets see what a watch is made from. False: this server serves no more.
    fn look(&self, _: &mut dyn FnMut(&Store)) -> bool {
        false
    }

    /// Changes when the store has.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// How long a watch lasts that names no time.
const WATCH: Duration = Duration::from_secs(1800);
/// How often a watch that asked for bookmarks is told how far it is.
const BOOKMARK: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until it is dropped: then all its connections close.
/// Without TLS it speaks plainly.
pub(crate) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, backend: Arc<dyn Backend>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, tls.clone(), backend.clone()));
                }
                // Out of file descriptors, or the client was gone already.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, backend: Arc<dyn Backend>) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return speak(stream, false, backend).await };
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
    let certified = stream.get_ref().1.peer_certificates().is_some_and(|c| !c.is_empty());
    speak(stream, certified, backend).await;
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin, certified: bool, backend: Arc<dyn Backend>) {
    let service = service_fn(move |request| {
        let backend = backend.clone();
        async move { Ok::<_, Infallible>(respond(request, certified, &backend).await) }
    });
    // Ends with an error when the client goes away in the middle.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Reply = http::Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn respond(request: http::Request<Incoming>, certified: bool, backend: &Arc<dyn Backend>) -> Reply {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return reply(&Answer::text(400, "the body broke off")) };
    let text = |name| header_text(&parts.headers, &name);
    let request = Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parse_query(parts.uri.query().unwrap_or_default()),
        accept: text(header::ACCEPT).unwrap_or_default(),
        content_type: text(header::CONTENT_TYPE).unwrap_or_default(),
        authorization: text(header::AUTHORIZATION),
        certified,
        body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    };
    if !request.is_watch() {
        return reply(&backend.answer(request).await);
    }
    let Route::Collection { kind, namespace } = route(&request.path) else {
        return reply(&Answer::refusal(404, "NotFound", "only collections can be watched"));
    };
    if let Err(refusal) = backend.admit(&request).await {
        return reply(&refusal);
    }
    let namespace = namespace.map(str::to_owned);
    watch_reply(Watch::new(backend.clone(), request, kind, namespace))
}

fn header_text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn reply(answer: &Answer) -> Reply {
    let (text, kind) = match &answer.body {
        Body::Json(value) => (value.to_string(), "application/json"),
        Body::Text(text) => (text.clone(), "text/plain; charset=utf-8"),
    };
    let mut reply = http::Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *reply.status_mut() = StatusCode::from_u16(answer.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}

fn watch_reply(watch: Watch) -> Reply {
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{line}\n")))), watch))
    });
    let mut reply = http::Response::new(StreamBody::new(lines).boxed_unsync());
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    reply
}

/// One client's watch on a collection.
struct Watch {
    backend: Arc<dyn Backend>,
    request: Request,
    kind: &'static Kind,
    prefix: String,
    changes: watch::Receiver<u64>,
    at: u64,
    ready: VecDeque<Value>,
    ends: Instant,
    bookmark: Option<Instant>,
    over: bool,
}

impl Watch {
    fn new(backend: Arc<dyn Backend>, request: Request, kind: &'static Kind, namespace: Option<String>) -> Self {
        let seconds = request.parameter("timeoutSeconds").and_then(|s| s.parse().ok());
        let ends = Instant::now() + seconds.map_or(WATCH, Duration::from_secs);
        let bookmarks = matches!(request.parameter("allowWatchBookmarks"), Some("true" | "1"));
        let mut watch = Self {
            changes: backend.changes(),
            prefix: kind.prefix(namespace.as_deref()),
            backend,
            kind,
            at: 0,
            ready: VecDeque::new(),
            ends,
            bookmark: bookmarks.then(|| Instant::now() + BOOKMARK),
            over: false,
            request,
        };
        match watch.request.parameter("resourceVersion").and_then(|v| v.parse::<u64>().ok()) {
            Some(from) if from > 0 => watch.at = from,
            // From no version: first all that is there.
            _ => watch.list(),
        }
        watch
    }

    fn list(&mut self) {
        let (backend, mut found) = (self.backend.clone(), Vec::new());
        let mut at = 0;
        backend.look(&mut |store| {
            at = store.revision;
            let mine = store.with_prefix(&self.prefix).filter(|(_, object)| self.wants(object));
            found = mine.map(|(_, object)| (**object).clone()).collect();
        });
        self.at = at;
        let events: Vec<Value> = found.into_iter().map(|object| self.event("ADDED", object)).collect();
        self.ready.extend(events);
    }

    fn wants(&self, object: &Value) -> bool {
        selected(object, self.request.parameter("labelSelector"), self.request.parameter("fieldSelector"))
    }

    fn event(&self, what: &str, object: Value) -> Value {
        let accept = &self.request.accept;
        let object = if accept.contains("as=Table") {
            table(self.kind, &[object], None, jiff::Timestamp::now())
        } else if accept.contains("as=PartialObjectMetadata") {
            partial(&object)
        } else {
            typed(self.kind, object)
        };
        json!({ "type": what, "object": object })
    }

    /// Takes what has happened since.
    fn take(&mut self) {
        let backend = self.backend.clone();
        let mut found = Vec::new();
        let mut at = Some(self.at);
        let serves = backend.look(&mut |store| match store.events_after(self.at) {
            Some(events) => {
                let mine = events.filter(|e| e.key.starts_with(&self.prefix) && self.wants(&e.object));
                found = mine.map(|e| (e.what, (*e.object).clone())).collect();
                at = Some(store.revision);
            }
            None => at = None,
        });
        let events: Vec<Value> = found.into_iter().map(|(what, object)| self.event(what, object)).collect();
        self.ready.extend(events);
        match at {
            Some(at) => self.at = at,
            None => {
                let expired = Answer::refusal(410, "Expired", format!("too old resource version: {}", self.at));
                if let Body::Json(status) = expired.body {
                    self.ready.push_back(json!({ "type": "ERROR", "object": status }));
                }
                self.over = true;
            }
        }
        self.over |= !serves;
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            self.changes.mark_unchanged();
            self.take();
            if !self.ready.is_empty() || self.over {
                continue;
            }
            let until = self.bookmark.map_or(self.ends, |b| b.min(self.ends));
            tokio::select! {
                changed = self.changes.changed() => self.over |= changed.is_err(),
                () = tokio::time::sleep_until(until) => {
                    if Instant::now() >= self.ends {
                        return None;
                    }
                    self.bookmark = Some(Instant::now() + BOOKMARK);
                    let here = json!({ "metadata": { "resourceVersion": self.at.to_string() } });
                    return Some(json!({ "type": "BOOKMARK", "object": typed(self.kind, here) }));
                }
            }
        }
    }
}
