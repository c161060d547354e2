//! The kubelet: a Node with its heartbeats; and the agent, which is nothing else.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, by_token, trusting};
use super::disk::write_whole;
use super::settings::{Role, Settings};
use super::{log, notify};
use crate::apiserver::pki::connector;
use crate::apiserver::store::seconds;
use crate::apiserver::{Answer, Body, Request, arch};
use crate::release::parts_of;

const HEARTBEAT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(3);

/// What a server's kubelet adds: that it votes, and the name of its member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Etcd {
    pub(crate) member: String,
    pub(crate) votes: bool,
}

/// Makes or renews the Node and its Lease, through `ask`.
///
/// # Errors
/// The first answer that is no success.
pub(crate) async fn heartbeat(
    settings: &Settings,
    role: Role,
    etcd: Option<&Etcd>,
    ask: impl AsyncFn(Request) -> Result<Answer, String>,
) -> Result<(), String> {
    let node = &settings.node;
    let now = Timestamp::now();
    let must = async |method: &str, path: &str, body: &Value| {
        let answer = ask(Request::new(method, path, Some(body))).await?;
        match (answer.code, &answer.body) {
            (404, _) => Ok(None),
            (_, Body::Json(value)) if answer.ok() => Ok(Some(value.clone())),
            (code, body) => Err(format!("{method} {path}: {code} {body:?}")),
        }
    };
    let path = format!("/api/v1/nodes/{node}");
    let old = must("GET", &path, &Value::Null).await?;
    let since = |kind: &str, status: &str| {
        let conditions = old.as_ref().and_then(|o| o["status"]["conditions"].as_array());
        let same = conditions.into_iter().flatten().find(|c| c["type"] == kind && c["status"] == status);
        same.map_or_else(|| json!(seconds(now)), |c| c["lastTransitionTime"].clone())
    };
    let condition = |kind: &str, status: bool, reason: &str| {
        let status = if status { "True" } else { "False" };
        json!({
            "type": kind, "status": status, "reason": reason, "message": reason,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": since(kind, status),
        })
    };
    let mut conditions = vec![
        condition("MemoryPressure", false, "KubeletHasSufficientMemory"),
        condition("DiskPressure", false, "KubeletHasNoDiskPressure"),
        condition("PIDPressure", false, "KubeletHasSufficientPID"),
        condition("Ready", true, "KubeletReady"),
    ];
    let mut labels = json!({
        "kubernetes.io/hostname": node, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch(),
        "node.kubernetes.io/instance-type": "k3s",
    });
    let mut annotations = json!({
        "k3s.io/node-args": json!(settings.args).to_string(), "k3s.io/node-env": "{}",
        "k3s.io/node-config-hash": settings.hash, "k3s.io/hostname": node,
        "k3s.io/internal-ip": settings.address.to_string(),
    });
    if role == Role::Server {
        labels["node-role.kubernetes.io/control-plane"] = json!("true");
    }
    if let Some(etcd) = etcd {
        labels["node-role.kubernetes.io/etcd"] = json!("true");
        annotations["etcd.k3s.cattle.io/node-name"] = json!(etcd.member);
        annotations["etcd.k3s.cattle.io/node-address"] = json!(settings.address.to_string());
        conditions.insert(
            0,
            condition("EtcdIsVoter", etcd.votes, if etcd.votes { "MemberNotLearner" } else { "MemberIsLearner" }),
        );
    }
    let file = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
    let os = file("/etc/os-release");
    let os = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_owned();
    let containerd = settings.version.parse().map(|v| parts_of(&v).containerd).unwrap_or("0.0.0");
    let status = json!({
        "addresses": [
            { "type": "InternalIP", "address": settings.address.to_string() }, { "type": "Hostname", "address": node },
        ],
        "conditions": conditions,
        "nodeInfo": {
            "architecture": arch(), "operatingSystem": "linux", "osImage": os,
            "bootID": file("/proc/sys/kernel/random/boot_id"), "machineID": file("/etc/machine-id"), "systemUUID": "",
            "kernelVersion": file("/proc/sys/kernel/osrelease"),
            "containerRuntimeVersion": format!("containerd://{containerd}"),
            "kubeletVersion": settings.version, "kubeProxyVersion": settings.version,
        },
    });
    let object =
        json!({ "metadata": { "name": node, "labels": labels, "annotations": annotations }, "status": status });
    if old.is_some() {
        must("PATCH", &path, &object).await?;
    } else {
        let mut new = object;
        new["spec"] = json!({});
        must("POST", "/api/v1/nodes", &new).await?;
    }
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = json!({
        "metadata": { "name": node },
        "spec": { "holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now.strftime("%FT%T%.6fZ").to_string() },
    });
    if must("PATCH", &format!("{leases}/{node}"), &lease).await?.is_none() {
        must("POST", leases, &lease).await?;
    }
    Ok(())
}

/// `k3s agent`.
pub(crate) async fn run(settings: Settings, works: bool) -> Result<ExitCode, String> {
    log("info", &format!("Starting k3s agent {}", settings.version));
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    tokio::select! {
        result = work(&settings, works) => result,
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
    }
}

async fn work(settings: &Settings, works: bool) -> Result<ExitCode, String> {
    let url = settings.join.as_deref().ok_or("--server is required")?;
    let token = settings.token.as_deref().ok_or("--token is required")?;
    let first = url.strip_prefix("https://").ok_or("--server is no https address")?.trim_end_matches('/').to_owned();
    let (ca_file, first_client) = (settings.data.join("agent/server-ca.crt"), Client::new(&first, trusting()?));
    // A server that is not there yet is waited for, as K3s does.
    let ca = loop {
        match first_client.send(&Request::new("GET", "/cacerts", None), CALL).await {
            Ok(Answer { code: 200, body: Body::Text(ca) }) => break ca,
            other => match std::fs::read_to_string(&ca_file) {
                Ok(known) => break known,
                Err(_) => log("error", &format!("Failed to get CA certs: {other:?}")),
            },
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    write_whole(&ca_file, ca.as_bytes(), 0o644)?;
    if !works {
        std::future::pending::<()>().await;
    }
    let mut known = vec![(first.clone(), Client::new(&first, connector(&ca, None)?))];
    let mut told = false;
    loop {
        match anyone(settings, token, &known).await {
            Ok(servers) => {
                if !told {
                    log("info", "Node registered");
                    write_kubelet_files(settings, token, &known).await;
                    notify("READY=1");
                    told = true;
                }
                for server in servers {
                    let server = format!("{server}:{}", settings.port);
                    if !known.iter().any(|(name, _)| *name == server) {
                        known.push((server.clone(), Client::new(&server, connector(&ca, None)?)));
                    }
                }
                tokio::time::sleep(HEARTBEAT).await;
            }
            Err(why) => {
                log("error", &why);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// A heartbeat through the first server that takes it; returns the servers' addresses.
async fn anyone(settings: &Settings, token: &str, known: &[(String, Client)]) -> Result<Vec<String>, String> {
    let mut why = String::new();
    for (_, client) in known {
        let ask = async |mut request: Request| {
            request.authorization = Some(by_token("node", token));
            client.send(&request, CALL).await.map_err(|no| no.why)
        };
        match heartbeat(settings, Role::Agent, None, &ask).await {
            Ok(()) => {
                let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
                let Answer { body: Body::Json(slice), .. } = ask(Request::new("GET", slice, None)).await? else {
                    return Ok(Vec::new());
                };
                let endpoints = slice["endpoints"].as_array().into_iter().flatten();
                return Ok(endpoints.filter_map(|e| e["addresses"][0].as_str().map(str::to_owned)).collect());
            }
            Err(error) => why = error,
        }
    }
    Err(format!("no server took the heartbeat: {why}"))
}

/// The certificates that a K3s agent has on its disk; nothing here uses them.
async fn write_kubelet_files(settings: &Settings, token: &str, known: &[(String, Client)]) {
    for (_, client) in known {
        let body = json!({ "node": settings.node });
        let mut request = Request::new("POST", super::server::KUBELET, Some(&body));
        request.authorization = Some(by_token("node", token));
        let Ok(Answer { code: 200, body: Body::Json(files) }) = client.send(&request, CALL).await else { continue };
        for (name, content) in files.as_object().into_iter().flatten() {
            let content = content.as_str().unwrap_or_default();
            let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
            if let Err(why) = write_whole(&settings.data.join("agent").join(name), content.as_bytes(), mode) {
                log("error", &why);
            }
        }
        return;
    }
}
