//! A Kubernetes API server over a store of JSON objects: what the façade of the simulated world and the `k3s` stand-in
//! have in common.
//!
//! [`answer`] is pure: a request and a store go in, an answer comes out, and the store remembers what was written.
//! Lists, gets, creates, updates, merge and JSON patches with their preconditions, evictions under budgets, watches with
//! bookmarks, tables for `kubectl`.
//!
//! Not modelled: authorisation (whoever is let in may do everything), admission, schemas and defaults, server-side apply,
//! pages (`limit` is ignored), finalizers. A strategic merge patch is taken as a merge patch, which is the same for
//! objects without lists.

pub(crate) mod controllers;
pub(crate) mod kinds;
pub(crate) mod patch;
pub(crate) mod pki;
pub(crate) mod serve;
pub(crate) mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use kinds::{Kind, Route, route};
use store::{Store, seconds};

/// A request without its connection, so that it can be passed on to another server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) accept: String,
    pub(crate) content_type: String,
    /// The `Authorization` header.
    pub(crate) authorization: Option<String>,
    /// The client has shown a certificate of the cluster's client CA.
    pub(crate) certified: bool,
    pub(crate) body: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Body {
    Json(Value),
    Text(String),
}

impl Request {
    pub(crate) fn new(method: &str, path: &str, body: Option<&Value>) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: parse_query(query),
            content_type: if method == "PATCH" { "application/merge-patch+json" } else { "application/json" }
                .to_owned(),
            certified: true,
            body: body.map(Value::to_string).unwrap_or_default(),
            ..Self::default()
        }
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub(crate) fn is_watch(&self) -> bool {
        matches!(self.parameter("watch"), Some("true" | "1"))
    }

    fn is_read(&self) -> bool {
        self.method == "GET" || self.method == "HEAD"
    }
}

impl Answer {
    pub(crate) fn json(code: u16, body: Value) -> Self {
        Self { code, body: Body::Json(body) }
    }

    pub(crate) fn text(code: u16, body: impl Into<String>) -> Self {
        Self { code, body: Body::Text(body.into()) }
    }

    /// A `Status` that is no success.
    pub(crate) fn refusal(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self::json(
            code,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
                "code": code, "message": message.into(),
            }),
        )
    }

    pub(crate) fn ok(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

/// What the server says of itself.
pub(crate) struct About<'a> {
    pub(crate) version: &'a str,
    pub(crate) now: Timestamp,
}

/// Performs a request on the store. Watches are [`serve`]'s.
pub(crate) fn answer(store: &mut Store, request: &Request, about: &About<'_>) -> Answer {
    match request.path.as_str() {
        "/version" => return Answer::json(200, version(about)),
        "/metrics" => return Answer::text(200, metrics(store)),
        _ => {}
    }
    if !request.is_read() && request.parameter("dryRun").is_some() {
        // On a copy that is thrown away.
        let mut draft = store.clone();
        return perform(&mut draft, request, about);
    }
    perform(store, request, about)
}

fn perform(store: &mut Store, request: &Request, about: &About<'_>) -> Answer {
    let result = match (route(&request.path), request.method.as_str()) {
        (Route::Discovery(found), "GET") => Ok(Answer::json(200, found)),
        (Route::Collection { kind, namespace }, "GET") => Ok(list(store, request, kind, namespace, about.now)),
        (Route::Collection { kind, namespace }, "POST") => create(store, request, kind, namespace, about.now),
        (Route::Collection { kind, namespace }, "DELETE") => Ok(delete_all(store, request, kind, namespace, about.now)),
        (Route::Object { kind: _, namespace, name, sub: Some("eviction") }, "POST") => {
            evict(store, request, namespace, name, about.now)
        }
        (Route::Object { kind, namespace, name, sub: None | Some("status") }, method) => {
            let key = kind.key(namespace, name);
            match method {
                "GET" => get(store, kind, name, &key).map(|object| render(request, kind, object, about.now)),
                "PUT" => update(store, request, kind, name, &key, about.now),
                "PATCH" => patched(store, request, kind, name, &key, about.now),
                "DELETE" => delete(store, request, kind, name, &key, about.now),
                other => Err(Answer::refusal(405, "MethodNotAllowed", format!("{other} is not allowed here"))),
            }
        }
        (Route::Nothing, _) => {
            Err(Answer::refusal(404, "NotFound", "the server could not find the requested resource"))
        }
        (_, method) => Err(Answer::refusal(405, "MethodNotAllowed", format!("{method} is not allowed here"))),
    };
    result.unwrap_or_else(|refusal| refusal)
}

fn version(about: &About<'_>) -> Value {
    let mut parts = about.version.trim_start_matches('v').split('.');
    json!({
        "major": parts.next(), "minor": parts.next(), "gitVersion": about.version, "gitCommit": "0000000",
        "gitTreeState": "clean", "platform": format!("linux/{}", arch()), "goVersion": "go0", "compiler": "gc",
        "buildDate": "1970-01-01T00:00:00Z",
    })
}

pub(crate) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn metrics(store: &Store) -> String {
    let bytes: usize = store.with_prefix("/registry/").map(|(key, object)| key.len() + object.to_string().len()).sum();
    // Every database has some pages of its own.
    format!(
        "# TYPE apiserver_storage_size_bytes gauge\napiserver_storage_size_bytes{{storage_cluster_id=\"etcd-0\"}} {}\n",
        bytes + 131_072
    )
}

fn not_found(kind: &Kind, name: &str) -> Answer {
    let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
    let mut answer = Answer::refusal(404, "NotFound", format!("{}{group} \"{name}\" not found", kind.plural));
    if let Body::Json(status) = &mut answer.body {
        status["details"] = json!({ "name": name, "group": kind.group, "kind": kind.plural });
    }
    answer
}

fn get(store: &Store, kind: &Kind, name: &str, key: &str) -> Result<Value, Answer> {
    store.get(key).cloned().ok_or_else(|| not_found(kind, name))
}

fn typed(kind: &Kind, mut object: Value) -> Value {
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    object
}

/// An object as the client wants it: whole, its metadata alone, or as a row of a table.
fn render(request: &Request, kind: &Kind, object: Value, now: Timestamp) -> Answer {
    let accept = &request.accept;
    if accept.contains("as=Table") {
        return Answer::json(200, table(kind, &[object], None, now));
    }
    if accept.contains("as=PartialObjectMetadata") {
        return Answer::json(200, partial(&object));
    }
    Answer::json(200, typed(kind, object))
}

fn partial(object: &Value) -> Value {
    json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"] })
}

fn list(store: &Store, request: &Request, kind: &Kind, namespace: Option<&str>, now: Timestamp) -> Answer {
    let (labels, fields) = (request.parameter("labelSelector"), request.parameter("fieldSelector"));
    let found: Vec<Value> = store
        .with_prefix(&kind.prefix(namespace))
        .filter(|(_, object)| patch::selected(object, labels, fields))
        .map(|(_, object)| (**object).clone())
        .collect();
    let meta = json!({ "resourceVersion": store.revision.to_string() });
    if request.accept.contains("as=Table") {
        return Answer::json(200, table(kind, &found, Some(meta), now));
    }
    if request.accept.contains("as=PartialObjectMetadataList") {
        let items: Vec<Value> = found.iter().map(partial).collect();
        return Answer::json(
            200,
            json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": meta, "items": items }),
        );
    }
    Answer::json(
        200,
        json!({ "apiVersion": kind.api_version(), "kind": format!("{}List", kind.kind), "metadata": meta, "items": found }),
    )
}

fn body(request: &Request) -> Result<Value, Answer> {
    serde_json::from_str(&request.body)
        .map_err(|e| Answer::refusal(400, "BadRequest", format!("the body is not JSON: {e}")))
}

fn create(
    store: &mut Store,
    request: &Request,
    kind: &Kind,
    namespace: Option<&str>,
    now: Timestamp,
) -> Result<Answer, Answer> {
    let mut object = body(request)?;
    let meta = &mut object["metadata"];
    if let (None, Some(prefix)) = (meta["name"].as_str(), meta["generateName"].as_str()) {
        meta["name"] = json!(format!("{prefix}{:05x}", store.revision % 0x10_0000));
    }
    let Some(name) = meta["name"].as_str().filter(|n| !n.is_empty()).map(str::to_owned) else {
        return Err(Answer::refusal(422, "Invalid", "metadata.name: Required value: name or generateName is required"));
    };
    if kind.namespaced {
        let Some(namespace) = namespace else {
            return Err(Answer::refusal(405, "MethodNotAllowed", "objects of this kind are made in a namespace"));
        };
        if store.get(&kinds::key("namespaces", None, namespace)).is_none() {
            return Err(Answer::refusal(404, "NotFound", format!("namespaces \"{namespace}\" not found")));
        }
        meta["namespace"] = json!(namespace);
    }
    let key = kind.key(namespace, &name);
    if store.get(&key).is_some() {
        return Err(Answer::refusal(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.plural)));
    }
    if kind.plural == "namespaces" {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
        object["status"]["phase"] = json!("Active");
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("uid");
        meta.remove("resourceVersion");
    }
    let stored = store.put(&key, untyped(object), now);
    let mut answer = render(request, kind, (*stored).clone(), now);
    answer.code = 201;
    Ok(answer)
}

/// Kind and version are the path's: they are not stored.
fn untyped(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    object
}

/// The preconditions that a write names: the version and the uid it was decided on.
fn preconditions(kind: &Kind, name: &str, old: &Value, meta: &Value) -> Result<(), Answer> {
    for field in ["resourceVersion", "uid"] {
        let wanted = meta[field].as_str().filter(|v| !v.is_empty());
        if wanted.is_some_and(|wanted| old["metadata"][field] != wanted) {
            return Err(Answer::refusal(
                409,
                "Conflict",
                format!(
                    "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your \
                     changes to the latest version and try again",
                    kind.plural
                ),
            ));
        }
    }
    Ok(())
}

fn update(
    store: &mut Store,
    request: &Request,
    kind: &Kind,
    name: &str,
    key: &str,
    now: Timestamp,
) -> Result<Answer, Answer> {
    let object = body(request)?;
    let old = get(store, kind, name, key)?;
    preconditions(kind, name, &old, &object["metadata"])?;
    write(store, request, kind, name, key, &old, object, now)
}

fn patched(
    store: &mut Store,
    request: &Request,
    kind: &Kind,
    name: &str,
    key: &str,
    now: Timestamp,
) -> Result<Answer, Answer> {
    let wanted = body(request)?;
    let old = get(store, kind, name, key)?;
    let mut object = old.clone();
    match request.content_type.split(';').next().unwrap_or_default() {
        "application/json-patch+json" => {
            patch::apply(&mut object, &wanted).map_err(|why| Answer::refusal(422, "Invalid", why))?;
        }
        "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
            preconditions(kind, name, &old, &wanted["metadata"])?;
            json_patch::merge(&mut object, &wanted);
        }
        other => {
            let why = format!("a patch of the type `{other}` is not supported here");
            return Err(Answer::refusal(415, "UnsupportedMediaType", why));
        }
    }
    write(store, request, kind, name, key, &old, object, now)
}

#[expect(clippy::too_many_arguments, reason = "one object and where it goes")]
fn write(
    store: &mut Store,
    request: &Request,
    kind: &Kind,
    name: &str,
    key: &str,
    old: &Value,
    mut object: Value,
    now: Timestamp,
) -> Result<Answer, Answer> {
    if object["metadata"]["name"].as_str().is_some_and(|n| n != name) {
        return Err(Answer::refusal(400, "BadRequest", "the name of an object cannot be changed"));
    }
    object["metadata"]["name"] = json!(name);
    object["metadata"]["namespace"] = old["metadata"]["namespace"].clone();
    if old["metadata"]["namespace"].is_null()
        && let Some(meta) = object["metadata"].as_object_mut()
    {
        meta.remove("namespace");
    }
    let stored = store.put(key, untyped(object), now);
    Ok(render(request, kind, (*stored).clone(), now))
}

fn delete(
    store: &mut Store,
    request: &Request,
    kind: &Kind,
    name: &str,
    key: &str,
    now: Timestamp,
) -> Result<Answer, Answer> {
    let old = get(store, kind, name, key)?;
    let options: Value = serde_json::from_str(&request.body).unwrap_or_default();
    preconditions(kind, name, &old, &options["preconditions"])?;
    remove(store, kind, key, &old, options["gracePeriodSeconds"].as_i64(), now);
    Ok(Answer::json(
        200,
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": { "name": name, "kind": kind.plural, "uid": old["metadata"]["uid"] } }),
    ))
}

fn delete_all(store: &mut Store, request: &Request, kind: &Kind, namespace: Option<&str>, now: Timestamp) -> Answer {
    let (labels, fields) = (request.parameter("labelSelector"), request.parameter("fieldSelector"));
    let chosen: Vec<(String, Arc<Value>)> = store
        .with_prefix(&kind.prefix(namespace))
        .filter(|(_, object)| patch::selected(object, labels, fields))
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect();
    for (key, object) in chosen {
        remove(store, kind, &key, &object, None, now);
    }
    Answer::json(200, json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }))
}

/// A pod that runs gets time to end; a namespace takes along what is in it; what an object owned goes with it.
fn remove(store: &mut Store, kind: &Kind, key: &str, old: &Value, grace: Option<i64>, now: Timestamp) {
    if kind.plural == "pods" && !old["spec"]["nodeName"].is_null() && grace != Some(0) {
        terminate(store, key, old, now);
        return;
    }
    store.delete(key);
    let inside: Vec<String> = if kind.plural == "namespaces" {
        let place = format!("/{}/", old["metadata"]["name"].as_str().unwrap_or_default());
        let in_it =
            |key: &&String| key.splitn(4, '/').nth(3).is_some_and(|rest| format!("/{rest}").starts_with(&place));
        store.keys().filter(in_it).cloned().collect()
    } else {
        let owner = &old["metadata"]["uid"];
        let owned = |object: &Value| {
            object["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|o| o["uid"] == *owner)
        };
        store.with_prefix("/registry/").filter(|(_, o)| owned(o)).map(|(key, _)| key.clone()).collect()
    };
    for key in inside {
        store.delete(&key);
    }
}

fn terminate(store: &mut Store, key: &str, old: &Value, now: Timestamp) {
    if !old["metadata"]["deletionTimestamp"].is_null() {
        return;
    }
    let grace = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let mut going = old.clone();
    let ends = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    going["metadata"]["deletionTimestamp"] = json!(seconds(ends));
    going["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    store.put(key, going, now);
}

fn evict(
    store: &mut Store,
    request: &Request,
    namespace: Option<&str>,
    name: &str,
    now: Timestamp,
) -> Result<Answer, Answer> {
    let Some(kind) = kinds::named("pods") else { return Err(Answer::refusal(404, "NotFound", "no pods")) };
    let key = kind.key(namespace, name);
    let pod = get(store, kind, name, &key)?;
    let eviction = body(request)?;
    preconditions(kind, name, &pod, &eviction["deleteOptions"]["preconditions"])?;
    let success = || {
        Answer::json(
            201,
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
        )
    };
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return Ok(success());
    }
    let budgets: Vec<(String, Arc<Value>)> = match kinds::named("pdb") {
        Some(budget) => store
            .with_prefix(&budget.prefix(namespace))
            .filter(|(_, b)| patch::selects(&b["spec"]["selector"], &pod["metadata"]["labels"]))
            .map(|(key, b)| (key.clone(), b.clone()))
            .collect(),
        None => Vec::new(),
    };
    match budgets.as_slice() {
        [] => {}
        [(key, budget)] => {
            let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
            if allowed < 1 {
                return Err(blocked(budget));
            }
            let mut used = (**budget).clone();
            used["status"]["disruptionsAllowed"] = json!(allowed - 1);
            store.put(key, used, now);
        }
        _ => return Err(too_many_budgets()),
    }
    terminate(store, &key, &pod, now);
    Ok(success())
}

pub(crate) fn too_many_budgets() -> Answer {
    Answer::refusal(
        500,
        "InternalError",
        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
    )
}

/// The answer of a budget that allows nothing.
pub(crate) fn blocked(budget: &Value) -> Answer {
    let why = format!(
        "The disruption budget {} needs {} healthy pods and has {} currently",
        budget["metadata"]["name"].as_str().unwrap_or_default(),
        budget["status"]["desiredHealthy"],
        budget["status"]["currentHealthy"],
    );
    let mut answer =
        Answer::refusal(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.");
    if let Body::Json(status) = &mut answer.body {
        status["details"] = json!({ "causes": [{ "reason": "DisruptionBudget", "message": why }] });
    }
    answer
}

/// What `kubectl get` prints: the columns of nodes, and name and age for all else.
pub(crate) fn table(kind: &Kind, objects: &[Value], meta: Option<Value>, now: Timestamp) -> Value {
    let nodes = kind.plural == "nodes";
    let columns: &[(&str, u8)] = match nodes {
        true => &[
            ("Name", 0),
            ("Status", 0),
            ("Roles", 0),
            ("Age", 0),
            ("Version", 0),
            ("Internal-IP", 1),
            ("OS-Image", 1),
            ("Container-Runtime", 1),
        ],
        false => &[("Name", 0), ("Age", 0)],
    };
    let definitions: Vec<Value> = columns
        .iter()
        .map(|(name, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({ "name": name, "type": "string", "format": format, "description": "", "priority": priority })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells = if nodes {
                node_cells(object, now)
            } else {
                vec![object["metadata"]["name"].clone(), age(object, now)]
            };
            json!({ "cells": cells, "object": partial(object) })
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta.unwrap_or_else(|| json!({})),
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn node_cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let ready = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    let mut status = match ready.and_then(|c| c["status"].as_str()) {
        Some("True") => "Ready",
        Some("False") => "NotReady",
        _ => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let labels = node["metadata"]["labels"].as_object();
    let roles: Vec<&str> =
        labels.into_iter().flatten().filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/")).collect();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let info = &node["status"]["nodeInfo"];
    let address = node["status"]["addresses"].as_array().into_iter().flatten().find(|a| a["type"] == "InternalIP");
    vec![
        node["metadata"]["name"].clone(),
        json!(status),
        json!(roles),
        age(node, now),
        info["kubeletVersion"].clone(),
        address.map(|a| a["address"].clone()).unwrap_or_default(),
        info["osImage"].clone(),
        info["containerRuntimeVersion"].clone(),
    ]
}

/// In the largest unit that fits, as `kubectl` shows it.
fn age(object: &Value, now: Timestamp) -> Value {
    let made = object["metadata"]["creationTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
    let Some(seconds) = made.map(|made| now.duration_since(made).as_secs().max(0)) else { return json!("<unknown>") };
    json!(match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    })
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescaped(key), unescaped(value))
        })
        .collect()
}

/// Percent-encoding undone.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let number = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok());
                bytes.extend(number);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About<'_> = About { version: "v1.36.4+k3s1", now: Timestamp::UNIX_EPOCH };

    fn ask(store: &mut Store, method: &str, path: &str, body: Value) -> Answer {
        answer(store, &Request::new(method, path, Some(&body)), &ABOUT)
    }

    fn json_of(answer: &Answer) -> &Value {
        match &answer.body {
            Body::Json(value) => value,
            Body::Text(text) => unreachable!("{text}"),
        }
    }

    fn with_namespace() -> Store {
        let mut store = Store::at(0);
        let made = ask(&mut store, "POST", "/api/v1/namespaces", json!({ "metadata": { "name": "shop" } }));
        assert_eq!(made.code, 201);
        store
    }

    #[test]
    fn objects_are_made_read_changed_and_deleted() {
        let mut store = with_namespace();
        let path = "/api/v1/namespaces/shop/configmaps";
        let map = json!({ "metadata": { "name": "a" }, "data": { "x": "1" } });
        assert_eq!(ask(&mut store, "POST", path, map.clone()).code, 201);
        assert_eq!(ask(&mut store, "POST", path, map.clone()).code, 409);
        assert_eq!(ask(&mut store, "POST", "/api/v1/namespaces/none/configmaps", map).code, 404);
        let one = format!("{path}/a");
        let got = ask(&mut store, "GET", &one, Value::Null);
        let version = json_of(&got)["metadata"]["resourceVersion"].clone();
        assert_eq!(json_of(&got)["kind"], "ConfigMap");

        let stale = json!({ "metadata": { "resourceVersion": "1" }, "data": { "x": "2" } });
        assert_eq!(ask(&mut store, "PATCH", &one, stale).code, 409);
        let fresh = json!({ "metadata": { "resourceVersion": version }, "data": { "x": "2" } });
        assert_eq!(ask(&mut store, "PATCH", &one, fresh.clone()).code, 200);
        assert_eq!(ask(&mut store, "PATCH", &one, fresh).code, 409, "it has another version now");
        let dry = ask(&mut store, "PATCH", &format!("{one}?dryRun=All"), json!({ "data": { "x": "3" } }));
        assert_eq!(json_of(&dry)["data"]["x"], "3");
        assert_eq!(json_of(&ask(&mut store, "GET", &one, Value::Null))["data"]["x"], "2");

        assert_eq!(ask(&mut store, "DELETE", "/api/v1/namespaces/shop", Value::Null).code, 200);
        assert_eq!(ask(&mut store, "GET", &one, Value::Null).code, 404, "it went with its namespace");
    }

    #[test]
    fn a_budget_stands_in_the_way_of_an_eviction() {
        let mut store = with_namespace();
        let pods = "/api/v1/namespaces/shop/pods";
        let pod = json!({ "metadata": { "name": "web", "labels": { "app": "web" } }, "spec": { "nodeName": "a1" } });
        ask(&mut store, "POST", pods, pod);
        let evict = |store: &mut Store, uid: Value| {
            let body = json!({ "deleteOptions": { "preconditions": { "uid": uid } } });
            ask(store, "POST", &format!("{pods}/web/eviction"), body)
        };
        let budgets = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets";
        let budget = |name: &str| {
            json!({
                "metadata": { "name": name }, "spec": { "selector": { "matchLabels": { "app": "web" } } },
                "status": { "disruptionsAllowed": 0, "desiredHealthy": 1, "currentHealthy": 1 },
            })
        };
        ask(&mut store, "POST", budgets, budget("one"));
        assert_eq!(evict(&mut store, json!("another")).code, 409);
        let refused = evict(&mut store, Value::Null);
        assert_eq!(
            (refused.code, &json_of(&refused)["details"]["causes"][0]["reason"]),
            (429, &json!("DisruptionBudget"))
        );
        ask(&mut store, "POST", budgets, budget("two"));
        assert_eq!(evict(&mut store, Value::Null).code, 500);
        ask(&mut store, "DELETE", &format!("{budgets}/two"), Value::Null);
        ask(&mut store, "PATCH", &format!("{budgets}/one"), json!({ "status": { "disruptionsAllowed": 1 } }));
        assert_eq!(evict(&mut store, Value::Null).code, 201);
        let going = ask(&mut store, "GET", &format!("{pods}/web"), Value::Null);
        assert!(json_of(&going)["metadata"]["deletionTimestamp"].is_string());
    }

    #[test]
    fn a_table_of_nodes_reads_as_kubectl_prints_it() {
        let mut store = Store::at(0);
        let node = json!({
            "metadata": { "name": "s1", "labels": { "node-role.kubernetes.io/control-plane": "true" } },
            "spec": { "unschedulable": true },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }], "nodeInfo": { "kubeletVersion": "v1.36.4+k3s1" } },
        });
        ask(&mut store, "POST", "/api/v1/nodes", node);
        let mut request = Request::new("GET", "/api/v1/nodes", None);
        request.accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json".to_owned();
        let table = answer(&mut store, &request, &ABOUT);
        let cells = &json_of(&table)["rows"][0]["cells"];
        assert_eq!(
            (&cells[1], &cells[2], &cells[4]),
            (&json!("Ready,SchedulingDisabled"), &json!("control-plane"), &json!("v1.36.4+k3s1"))
        );
    }
}
