//! As much of `k3s kubectl` as suites and scripts call: `get`, `get --raw`, `create configmap`, `delete`, `cordon`,
//! `uncordon`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::say;
use crate::apiserver::kinds;
use crate::apiserver::pki::{Pair, connector};
use crate::apiserver::{Answer, Body, Request};

const CALL: Duration = Duration::from_secs(15);

pub(crate) async fn run(words: Vec<String>) -> Result<ExitCode, String> {
    let mut flags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut names = Vec::new();
    let mut rest = words.into_iter();
    while let Some(word) = rest.next() {
        let (key, value) = match word.strip_prefix("--") {
            Some(flag) => match flag.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None if matches!(flag, "all-namespaces" | "no-headers" | "ignore-not-found") => {
                    (flag.to_owned(), String::new())
                }
                None => (flag.to_owned(), rest.next().unwrap_or_default()),
            },
            None => match word.as_str() {
                "-A" => ("all-namespaces".to_owned(), String::new()),
                "-n" => ("namespace".to_owned(), rest.next().unwrap_or_default()),
                "-o" => ("output".to_owned(), rest.next().unwrap_or_default()),
                "-l" => ("selector".to_owned(), rest.next().unwrap_or_default()),
                short if short.starts_with("-o") => ("output".to_owned(), short[2..].to_owned()),
                _ => {
                    names.push(word);
                    continue;
                }
            },
        };
        flags.entry(key).or_default().push(value);
    }
    let flag = |key: &str| flags.get(key).and_then(|v| v.last()).map(String::as_str);
    let file = flag("kubeconfig").map(str::to_owned).or_else(|| std::env::var("KUBECONFIG").ok());
    let client = client(&file.unwrap_or_else(|| "/etc/rancher/k3s/k3s.yaml".to_owned()))?;
    let namespace = flag("namespace").unwrap_or("default");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match names.as_slice() {
        ["get"] => match flag("raw") {
            Some(path) => match ask(&client, Request::new("GET", path, None)).await? {
                Body::Json(value) => say(&value.to_string()),
                Body::Text(text) => say(&text),
            },
            None => Err("You must specify the type of resource to get.".to_owned()),
        },
        ["get", what, name @ ..] => {
            let (what, name) = match what.split_once('/') {
                Some((what, name)) => (what, Some(name)),
                None => (*what, name.first().copied()),
            };
            let kind = kinds::named(what.split('.').next().unwrap_or_default())
                .ok_or_else(|| format!("the server doesn't have a resource type \"{what}\""))?;
            let place = (flag("all-namespaces").is_none()).then_some(namespace);
            let path = kind.path(place);
            let path = name.map_or(path.clone(), |name| format!("{path}/{name}"));
            let mut request = Request::new("GET", &path, None);
            if let Some(selector) = flag("selector") {
                request.query.insert("labelSelector".to_owned(), selector.to_owned());
            }
            let output = flag("output").unwrap_or_default();
            if output.is_empty() || output == "wide" {
                request.accept = "application/json;as=Table;v=v1;g=meta.k8s.io".to_owned();
            }
            let Body::Json(found) = ask(&client, request).await? else { return Err("no JSON".to_owned()) };
            print(kind.plural, output, &found)
        }
        ["create", "configmap" | "cm", name] => {
            let mut data = Map::new();
            for literal in flags.get("from-literal").into_iter().flatten() {
                let (key, value) = literal.split_once('=').ok_or("a literal is key=value")?;
                data.insert(key.to_owned(), json!(value));
            }
            let body = json!({ "metadata": { "name": name }, "data": data });
            let path = format!("/api/v1/namespaces/{namespace}/configmaps");
            ask(&client, Request::new("POST", &path, Some(&body))).await?;
            say(&format!("configmap/{name} created"))
        }
        ["create", "namespace" | "ns", name] => {
            let body = json!({ "metadata": { "name": name } });
            ask(&client, Request::new("POST", "/api/v1/namespaces", Some(&body))).await?;
            say(&format!("namespace/{name} created"))
        }
        ["delete", what, name] => {
            let kind =
                kinds::named(what).ok_or_else(|| format!("the server doesn't have a resource type \"{what}\""))?;
            ask(&client, Request::new("DELETE", &format!("{}/{name}", kind.path(Some(namespace))), None)).await?;
            say(&format!("{} \"{name}\" deleted", kind.kind.to_ascii_lowercase()))
        }
        [word @ ("cordon" | "uncordon"), name] => {
            let body =
                json!({ "spec": { "unschedulable": if *word == "cordon" { json!(true) } else { Value::Null } } });
            ask(&client, Request::new("PATCH", &format!("/api/v1/nodes/{name}"), Some(&body))).await?;
            say(&format!("node/{name} {word}ed"))
        }
        other => Err(format!("the stand-in's kubectl does not know `{}`", other.join(" "))),
    }
}

async fn ask(client: &Client, request: Request) -> Result<Body, String> {
    let answer: Answer = client.send(&request, CALL).await?;
    if answer.ok() {
        return Ok(answer.body);
    }
    Err(match answer.body {
        Body::Json(status) => format!(
            "Error from server ({}): {}",
            status["reason"].as_str().unwrap_or_default(),
            status["message"].as_str().unwrap_or_default()
        ),
        Body::Text(text) => format!("Error from server: {text}"),
    })
}

fn client(file: &str) -> Result<Client, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
    let config: Value = serde_saphyr::from_str(&text).map_err(|e| format!("{file}: {}", e.without_snippet()))?;
    let data = |value: &Value| -> Result<String, String> {
        let text = value.as_str().ok_or_else(|| format!("{file}: not as K3s writes it"))?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| format!("{file}: {e}"))?;
        String::from_utf8(bytes).map_err(|e| format!("{file}: {e}"))
    };
    let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
    let server = cluster["server"].as_str().and_then(|s| s.strip_prefix("https://")).unwrap_or("127.0.0.1:6443");
    let own = Pair { certificate: data(&user["client-certificate-data"])?, key: data(&user["client-key-data"])? };
    Ok(Client::new(server, connector(&data(&cluster["certificate-authority-data"])?, Some(&own))?))
}

fn print(plural: &str, output: &str, found: &Value) -> Result<ExitCode, String> {
    match output {
        "json" => {
            let mut found = found.clone();
            // As kubectl shows a list.
            if found["items"].is_array() {
                found["kind"] = json!("List");
                found["apiVersion"] = json!("v1");
            }
            say(&serde_json::to_string_pretty(&found).map_err(|e| e.to_string())?)
        }
        "name" => {
            let singular = kinds::named(plural).map_or(plural.to_owned(), |k| k.kind.to_ascii_lowercase());
            let items = match found["items"].as_array() {
                Some(items) => items.clone(),
                None => vec![found.clone()],
            };
            let lines: Vec<String> = items
                .iter()
                .map(|o| format!("{singular}/{}", o["metadata"]["name"].as_str().unwrap_or_default()))
                .collect();
            say(&lines.join("\n"))
        }
        "" | "wide" => say(&columns(found, output == "wide")),
        other => Err(format!("the stand-in's kubectl does not know the output `{other}`")),
    }
}

fn columns(table: &Value, wide: bool) -> String {
    let shown: Vec<usize> = (0..)
        .zip(table["columnDefinitions"].as_array().into_iter().flatten())
        .filter(|(_, c)| wide || c["priority"] == 0)
        .map(|(i, _)| i)
        .collect();
    let head = |i: &usize| table["columnDefinitions"][*i]["name"].as_str().unwrap_or_default().to_uppercase();
    let mut lines: Vec<Vec<String>> = vec![shown.iter().map(head).collect()];
    for row in table["rows"].as_array().into_iter().flatten() {
        let cell = |i: &usize| row["cells"][*i].as_str().map_or_else(|| row["cells"][*i].to_string(), str::to_owned);
        lines.push(shown.iter().map(cell).collect());
    }
    let widths: Vec<usize> = (0..shown.len()).map(|i| lines.iter().map(|l| l[i].len()).max().unwrap_or(0)).collect();
    let text = lines.iter().map(|line| {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("   ").trim_end().to_owned()
    });
    text.collect::<Vec<_>>().join("\n")
}
