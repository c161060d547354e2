//! What is asked of exactly one server, often and quickly: is it ready, does it read, does it write.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kadence_engine::ports::{ApiError, Readyz};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::servers::{Server, Trouble};

/// A probe that takes longer has failed.
const PROBE: Duration = Duration::from_secs(1);
/// `/readyz` looks at the datastore itself, with a limit of its own.
const READYZ: Duration = Duration::from_secs(2);
/// The Lease that is written to measure whether writes go through. It means nothing and is never read.
const PROBE_LEASE: &str = "kadence-probe";

/// The server's own `/readyz`.
pub(crate) async fn ready(server: &Server) -> Result<Readyz, ApiError> {
    let request = |client: kube::Client| async move {
        let request = http::Request::get("/readyz?verbose").body(Vec::new()).map_err(kube::Error::HttpError)?;
        client.request_text(request).await
    };
    match server.probes.twice(READYZ, request).await {
        Ok(_) => Ok(Readyz::Ready),
        Err(Trouble::Answer(error)) => match *error {
            kube::Error::Api(status) if status.code >= 500 => Ok(Readyz::NotReady(not_ok(&status.message))),
            error => Err(crate::servers::answer(&format!("/readyz at {}", server.authority), &error)),
        },
        Err(trouble) => Err(server.error("/readyz", &trouble)),
    }
}

/// The lines of `/readyz?verbose` that are not ok; the whole answer if it has no such lines.
fn not_ok(text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("[-]")).map(str::to_owned).collect();
    if lines.is_empty() { text.lines().next().map(str::to_owned).into_iter().collect() } else { lines }
}

/// A linearizable read: a GET without a resourceVersion goes to the datastore and needs its quorum.
pub(crate) async fn read(server: &Server) -> Result<(), ApiError> {
    let get = |client| async move { Api::<Namespace>::all(client).get_metadata("kube-system").await };
    server.probes.twice(PROBE, get).await.map(drop).map_err(|t| server.error("read probe", &t))
}

/// A write that changes something each time. Written again after a broken connection: it means nothing.
pub(crate) async fn write(server: &Server) -> Result<(), ApiError> {
    let renew = &json!({ "spec": { "renewTime": MicroTime(Timestamp::now()) } });
    let patch = |client| async move {
        let leases = Api::<Lease>::namespaced(client, "kube-system");
        match leases.patch_metadata(PROBE_LEASE, &PatchParams::default(), &Patch::Merge(renew)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                let mut lease = Lease::default();
                lease.metadata.name = Some(PROBE_LEASE.to_owned());
                match leases.create(&PostParams::default(), &lease).await {
                    // The other probe was quicker.
                    Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                    other => other.map(drop),
                }
            }
            other => other.map(drop),
        }
    };
    server.probes.twice(PROBE, patch).await.map_err(|t| server.error("write probe", &t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_ok_is_told() {
        let verbose = "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\nreadyz check failed";
        assert_eq!(not_ok(verbose), ["etcd failed: reason withheld"]);
        assert_eq!(not_ok("starting"), ["starting"]);
    }
}
