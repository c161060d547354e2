//! Turns the answers of the node's script into words of the domain. Pure: text in, facts out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use x509_cert::der::Decode as _;

use kadence_core::fact::Fact;
use kadence_core::ident::Digest;
use kadence_core::inventory::{
    ActionRecord, Addresses, Arch, Arguments, Certificate, Cgroup, Disk, EtcdLocal, EtcdMember, HostFacts, Install,
    LastStart, RecordState, Role, SecretsEncryption, SqliteFiles, StartFile, Tools, Unit,
};
use kadence_core::validate::prove::Process;
use kadence_core::version::Version;
use kadence_engine::ports::{HostGlance, RemoteFile, TaskReport};

use crate::HmacKey;
use crate::arguments::Collector;

/// A whole answer: lines of fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    lines: Vec<Vec<String>>,
}

impl Answer {
    pub(crate) fn push(&mut self, line: &str) {
        self.lines.push(line.split('\t').map(str::to_owned).collect());
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.lines.extend(more.lines);
    }

    /// The fields after the first line with this key.
    pub(crate) fn get(&self, key: &str) -> Option<&[String]> {
        self.all(key).next()
    }

    /// The first field of the first line with this key, unless it is empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.first().map(String::as_str).filter(|t| !t.is_empty())
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &[String]> {
        self.lines.iter().filter(move |l| l.first().is_some_and(|k| k == key)).map(|l| &l[1..])
    }

    fn required(&self, key: &str) -> Fact<&str> {
        self.text(key).map_or_else(|| Fact::unknown(format!("the host did not tell its {key}")), Fact::Known)
    }
}

fn decode(field: Option<&String>) -> Option<String> {
    let bytes = BASE64.decode(field?).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `received` is when the host's time arrived, `round_trip` how long the question and the answer took.
pub(crate) fn facts(answer: &Answer, key: &HmacKey, received: Timestamp, round_trip: SignedDuration) -> HostFacts {
    let pems = pems(answer);
    let role = role(answer);
    let data = answer.text("data-dir").unwrap_or("/var/lib/rancher/k3s");
    let ca = match role {
        Some(Role::Agent) => format!("{data}/agent/server-ca.crt"),
        _ => format!("{data}/server/tls/server-ca.crt"),
    };
    let ca_hash = match pems.get(ca.as_str()).and_then(|ders| ders.first()) {
        Some(der) => Fact::Known(Digest::of(der)),
        None => Fact::unknown(no_install(answer).unwrap_or(format!("{ca} could not be read"))),
    };
    let etcd = has_etcd(answer);
    HostFacts {
        hostname: answer.text("hostname").unwrap_or_default().to_owned(),
        machine_id: answer.text("machine-id").unwrap_or_default().to_owned(),
        boot_id: answer.text("boot-id").unwrap_or_default().to_owned(),
        arch: answer.required("arch").and_then(|arch| {
            Arch::parse(arch).map_or_else(|| Fact::unknown(format!("no K3s release is for {arch}")), Fact::Known)
        }),
        ca_hash,
        install: install(answer),
        arguments: arguments(answer, key),
        cgroup: answer.required("cgroup").map(|c| if c == "v2" { Cgroup::V2 } else { Cgroup::V1 }),
        disks: disks(answer),
        clock_offset: clock_offset(answer, received, round_trip),
        ntp_synchronised: match answer.text("ntp") {
            Some("yes") => Fact::Known(true),
            Some("no") => Fact::Known(false),
            _ => Fact::unknown("the host has no timedatectl that tells"),
        },
        certificates: match (no_install(answer), pems.is_empty()) {
            (Some(why), _) => Fact::Unknown(why),
            (None, true) => Fact::unknown(format!("there is no certificate in {data}")),
            (None, false) => certificates(&pems),
        },
        token: match role {
            Some(Role::Server) => match decode(answer.get("token").and_then(|f| f.first())) {
                Some(token) => Fact::Known(Some(key.hash(password(&token)))),
                None => Fact::unknown(format!("{data}/server/token could not be read")),
            },
            Some(Role::Agent) => Fact::Known(None),
            None => Fact::unknown(no_install(answer).unwrap_or_default()),
        },
        etcd: etcd.then(|| etcd_local(answer)),
        etcd_members: etcd.then(|| etcd_members(answer)),
        sqlite: sqlite(answer),
        secrets_encryption: (role == Some(Role::Server)).then(|| secrets_encryption(answer)),
        tools: tools(answer),
        turn: answer.text("turn").and_then(|t| t.parse().ok()).unwrap_or(0),
        records: answer.all("record").filter_map(record).collect(),
        containerd_templates: answer.all("template").filter_map(|f| f.first().cloned()).collect(),
        last_start: last_start(answer),
        addresses: addresses(answer),
    }
}

pub(crate) fn glance(answer: &Answer, key: &HmacKey) -> HostGlance {
    let etcd = has_etcd(answer);
    HostGlance {
        machine_id: answer.text("machine-id").unwrap_or_default().to_owned(),
        boot_id: answer.text("boot-id").unwrap_or_default().to_owned(),
        arguments: arguments(answer, key).and_then(|arguments| match arguments.digest {
            Some(digest) => Fact::Known(digest),
            None => Fact::unknown(arguments.unreadable.join("; ")),
        }),
        binary: binary_digest(answer),
        etcd: etcd.then(|| etcd_local(answer)),
        etcd_members: etcd.then(|| etcd_members(answer)),
        unit: no_install(answer).map_or_else(|| Fact::Known(unit(answer)), Fact::Unknown),
        running: no_install(answer).map_or_else(|| running(answer), Fact::Unknown),
    }
}

fn no_install(answer: &Answer) -> Option<String> {
    answer.text("no-install").map(str::to_owned)
}

fn role(answer: &Answer) -> Option<Role> {
    match answer.text("role")? {
        "server" => Some(Role::Server),
        "agent" => Some(Role::Agent),
        _ => None,
    }
}

fn has_etcd(answer: &Answer) -> bool {
    role(answer) == Some(Role::Server) && answer.text("datastore") == Some("etcd")
}

/// The part of a token that is the same in all its forms: `K10<hash of the CA>::server:<password>`.
fn password(token: &str) -> &str {
    let token = token.trim();
    let token = token.rsplit_once("::").map_or(token, |(_, rest)| rest);
    token.strip_prefix("server:").unwrap_or(token)
}

fn install(answer: &Answer) -> Fact<Install> {
    if let Some(why) = no_install(answer) {
        return Fact::Unknown(why);
    }
    let Some(role) = role(answer) else { return Fact::unknown("the host did not tell the role of its K3s") };
    let binary = answer.text("binary").unwrap_or_default().to_owned();
    binary_digest(answer).map(|digest| Install {
        role,
        digest,
        size: answer.text("size").and_then(|s| s.parse().ok()).unwrap_or(0),
        version: match answer.text("version") {
            Some(text) => text.parse::<Version>().into(),
            None => Fact::unknown(format!("`{binary} --version` did not tell")),
        },
        binary,
        unit: unit(answer),
        other_unit_enabled: answer.get("other-unit").is_some(),
        data_dir: answer.text("data-dir").unwrap_or_default().to_owned(),
    })
}

fn binary_digest(answer: &Answer) -> Fact<Digest> {
    if let Some(why) = no_install(answer) {
        return Fact::Unknown(why);
    }
    match answer.text("digest") {
        Some(digest) => digest.parse().into(),
        None => Fact::unknown(format!("{} could not be read", answer.text("binary").unwrap_or("the binary"))),
    }
}

pub(crate) fn unit(answer: &Answer) -> Unit {
    let mut properties = BTreeMap::new();
    for fields in answer.all("unit") {
        if let [key, value @ ..] = fields {
            properties.insert(key.as_str(), value.join("\t"));
        }
    }
    let get = |key: &str| properties.get(key).cloned().unwrap_or_default();
    Unit {
        name: get("Id").trim_end_matches(".service").to_owned(),
        enabled: get("UnitFileState").starts_with("enabled"),
        active: get("ActiveState"),
        sub: get("SubState"),
        restarts: get("NRestarts").parse().unwrap_or(0),
        main_pid: get("MainPID").parse().unwrap_or(0),
        files: [get("FragmentPath"), get("DropInPaths")]
            .iter()
            .flat_map(|paths| paths.split_whitespace())
            .map(str::to_owned)
            .collect(),
    }
}

/// The unit's main process, unless a restart that was asked for has yet to end it.
pub(crate) fn process(answer: &Answer) -> Option<Process> {
    if answer.get("restart-due").is_some() {
        return None;
    }
    Some(Process { version: running(answer), started: started(answer)? })
}

fn running(answer: &Answer) -> Fact<Version> {
    match answer.text("process") {
        Some(text) => text.parse::<Version>().into(),
        None => Fact::unknown("no process runs, or its version could not be told"),
    }
}

/// When the unit's main process was started, from the monotonic clock: wall time may have been set since.
fn started(answer: &Answer) -> Option<Timestamp> {
    let started: i128 = answer
        .all("unit")
        .find_map(|f| (f.first()? == "ExecMainStartTimestampMonotonic").then(|| f.get(1)?.parse().ok())?)
        .filter(|micros| *micros > 0)?;
    let [now, uptime] = answer.get("time")? else { return None };
    let now: i128 = now.parse().ok()?;
    let (seconds, hundredths) = uptime.split_once('.')?;
    let uptime = seconds.parse::<i128>().ok()? * 1_000_000_000 + hundredths.parse::<i128>().ok()? * 10_000_000;
    Timestamp::from_nanosecond(now - uptime + started * 1000).ok()
}

fn last_start(answer: &Answer) -> Fact<LastStart> {
    if let Some(why) = no_install(answer) {
        return Fact::Unknown(why);
    }
    let at = started(answer);
    if at.is_none() && unit(answer).main_pid != 0 {
        return Fact::unknown("systemd did not tell when K3s was started");
    }
    let file = |fields: &[String]| {
        let [path, written, changed] = fields else { return None };
        let time = |text: &str| text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        Some(StartFile { path: path.clone(), written: time(written)?, changed: time(changed)? })
    };
    match answer.all("start-file").map(file).collect::<Option<Vec<_>>>() {
        // The unit's own file is always among them.
        Some(reads) if !reads.is_empty() => Fact::Known(LastStart {
            at,
            reads,
            needs_daemon_reload: match answer.text("daemon-reload") {
                Some("yes") => Fact::Known(true),
                Some("no") => Fact::Known(false),
                _ => Fact::unknown("systemd did not tell NeedDaemonReload"),
            },
        }),
        _ => Fact::unknown("the times of the files that K3s reads did not arrive"),
    }
}

fn addresses(answer: &Answer) -> Fact<Addresses> {
    if answer.get("addresses-end").is_none() {
        return Fact::unknown("the host has no `ip` that would tell its addresses");
    }
    let mut interfaces: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for fields in answer.all("address") {
        let [interface, address] = fields else { continue };
        let Ok(address) = address.parse() else {
            return Fact::unknown(format!("`ip` told an address that is none: {address}"));
        };
        interfaces.entry(interface.clone()).or_default().push(address);
    }
    Fact::Known(Addresses { default_route: answer.text("default-route").map(str::to_owned), interfaces })
}

fn arguments(answer: &Answer, key: &HmacKey) -> Fact<Arguments> {
    if let Some(why) = no_install(answer) {
        return Fact::Unknown(why);
    }
    let unit_file = unit(answer).files.first().cloned().unwrap_or_else(|| "the unit".to_owned());
    let mut collector = Collector::default();
    for fields in answer.all("config") {
        match (fields.first(), decode(fields.get(1))) {
            (Some(file), Some(text)) => collector.config(file, &text),
            (file, _) => collector.unreadable(file.map_or("config", String::as_str), "it did not arrive whole"),
        }
    }
    for fields in answer.all("env") {
        match (fields.first(), decode(fields.get(1))) {
            (Some(file), Some(text)) => collector.environment(file, &text),
            (file, _) => collector.unreadable(file.map_or("environment", String::as_str), "it did not arrive whole"),
        }
    }
    for fields in answer.all("unreadable") {
        if let [file, why] = fields {
            collector.unreadable(file, why);
        }
    }
    match decode(answer.get("exec").and_then(|f| f.first())) {
        Some(words) => collector.command_line(&unit_file, &words),
        None => collector.unreadable(&unit_file, answer.text("no-exec").unwrap_or("its ExecStart did not arrive")),
    }
    Fact::Known(collector.finish(key))
}

fn disks(answer: &Answer) -> Fact<Vec<Disk>> {
    let disks: Option<Vec<Disk>> = answer.all("disk").map(disk).collect();
    match disks {
        Some(disks) if !disks.is_empty() => Fact::Known(disks),
        _ => Fact::unknown("df did not answer as expected"),
    }
}

/// Two lines of `df -P`: device, total, used, available, used %, mount point; first in kB, then in inodes.
fn disk(fields: &[String]) -> Option<Disk> {
    let [holds, blocks, inodes] = fields else { return None };
    let blocks: Vec<&str> = blocks.splitn(6, ' ').collect();
    let inodes: Vec<&str> = inodes.splitn(6, ' ').collect();
    let kilobytes = |text: &str| text.parse::<u64>().ok().map(|kb| kb.saturating_mul(1024));
    Some(Disk {
        holds: holds.clone(),
        mount: (*blocks.get(5)?).to_owned(),
        total: kilobytes(blocks.get(1)?)?,
        free: kilobytes(blocks.get(3)?)?,
        // btrfs and others have no fixed number of inodes and say 0 or `-`.
        inodes: inodes.get(1)?.parse().unwrap_or(0),
        inodes_free: inodes.get(3)?.parse().unwrap_or(0),
    })
}

fn clock_offset(answer: &Answer, received: Timestamp, round_trip: SignedDuration) -> Fact<SignedDuration> {
    // A date without nanoseconds prints the letters instead.
    let theirs = answer.text("now").and_then(|t| t.parse().ok()).and_then(|n| Timestamp::from_nanosecond(n).ok());
    match (theirs, received.checked_sub(round_trip / 2)) {
        (Some(theirs), Ok(ours)) => Fact::Known(theirs.duration_since(ours)),
        _ => Fact::unknown("the host's `date` does not tell fractions of a second"),
    }
}

/// The certificates of each file, in DER form.
fn pems(answer: &Answer) -> BTreeMap<&str, Vec<Vec<u8>>> {
    let mut pems: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    let mut open: Option<(&str, String)> = None;
    for fields in answer.all("pem") {
        let Some((path, line)) = fields.first().and_then(|l| l.split_once(':')) else { continue };
        match line.trim() {
            "-----BEGIN CERTIFICATE-----" => open = Some((path, String::new())),
            "-----END CERTIFICATE-----" => {
                if let Some((path, text)) = open.take()
                    && let Ok(der) = BASE64.decode(text)
                {
                    pems.entry(path).or_default().push(der);
                }
            }
            text => {
                if let Some((_, body)) = &mut open {
                    body.push_str(text);
                }
            }
        }
    }
    pems
}

/// The first certificate of each file; what follows it is its chain, which has files of its own.
fn certificates(pems: &BTreeMap<&str, Vec<Vec<u8>>>) -> Fact<Vec<Certificate>> {
    let mut certificates = Vec::new();
    for (path, ders) in pems {
        let Some(der) = ders.first() else { continue };
        let Ok(parsed) = x509_cert::Certificate::from_der(der) else {
            return Fact::unknown(format!("{path} holds something that is no certificate"));
        };
        let seconds = parsed.tbs_certificate.validity.not_after.to_unix_duration().as_secs();
        let Some(not_after) = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok()) else {
            return Fact::unknown(format!("{path} ends at no time that can be told"));
        };
        let constraints = parsed.tbs_certificate.get::<x509_cert::ext::pkix::BasicConstraints>();
        let ca = matches!(constraints, Ok(Some((_, constraints))) if constraints.ca);
        certificates.push(Certificate { path: (*path).to_owned(), not_after, ca });
    }
    Fact::Known(certificates)
}

pub(crate) fn etcd_local(answer: &Answer) -> Fact<EtcdLocal> {
    #[derive(Deserialize)]
    struct Health {
        health: String,
        #[serde(default)]
        reason: String,
    }
    let Some(text) = answer.text("etcd-health") else {
        return Fact::unknown("etcd does not answer on 127.0.0.1:2381");
    };
    let Ok(health) = serde_json::from_str::<Health>(text) else {
        return Fact::unknown(format!(
            "etcd answers on 127.0.0.1:2381 with: {}",
            text.chars().take(200).collect::<String>()
        ));
    };
    let metrics = Metrics::of(answer);
    let Some(has_leader) = metrics.value("etcd_server_has_leader") else {
        return Fact::unknown("etcd tells no metrics on 127.0.0.1:2381");
    };
    let number = |name: &str| match metrics.value(name) {
        Some(value) => whole(value),
        None => Fact::unknown(format!("etcd does not tell {name}")),
    };
    let label = |name: &str| match metrics.label(name) {
        Some(value) => Fact::Known(value),
        None => Fact::unknown(format!("etcd does not tell {name}")),
    };
    let healthy = health.health == "true";
    Fact::Known(EtcdLocal {
        healthy,
        leader: metrics.value("etcd_server_is_leader") == Some(1.0),
        learner: metrics.value("etcd_server_is_learner") == Some(1.0),
        has_leader: has_leader == 1.0,
        version: label("etcd_server_version"),
        db_bytes: number("etcd_mvcc_db_total_size_in_bytes"),
        quota_bytes: number("etcd_server_quota_backend_bytes"),
        applied_index: number("etcd_server_proposals_applied_total"),
        // Health looks at the alarms first, and names one that is raised.
        alarms: match (healthy, health.reason.strip_prefix("ALARM ")) {
            (true, _) => Fact::Known(Vec::new()),
            (false, Some(alarm)) => Fact::Known(vec![alarm.to_owned()]),
            (false, None) => Fact::unknown(format!("etcd is not healthy: {}", health.reason)),
        },
        fsync_p99_micros: metrics.quantile("etcd_disk_wal_fsync_duration_seconds", 0.99),
        member_id: label("etcd_server_id"),
    })
}

fn whole(value: f64) -> Fact<u64> {
    // Metrics are floating point; below 2^53 every whole number is exact.
    if (0.0..9_007_199_254_740_992.0).contains(&value) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was just checked")]
        Fact::Known(value as u64)
    } else {
        Fact::unknown(format!("{value} is no count"))
    }
}

/// Lines of the Prometheus text format: `name{label="value"} number`.
struct Metrics<'a>(Vec<(&'a str, Option<&'a str>, f64)>);

impl<'a> Metrics<'a> {
    fn of(answer: &'a Answer) -> Self {
        Self(
            answer
                .all("etcd-metric")
                .filter_map(|fields| {
                    let (series, value) = fields.first()?.rsplit_once(' ')?;
                    let value = value.parse().ok()?;
                    Some(match series.split_once('{') {
                        Some((name, labels)) => (name, labels.strip_suffix('}'), value),
                        None => (series, None, value),
                    })
                })
                .collect(),
        )
    }

    fn value(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, ..)| *n == name).map(|(.., value)| *value)
    }

    /// The value of the only label of a series that is 1.
    fn label(&self, name: &str) -> Option<String> {
        let (_, labels, _) = self.0.iter().find(|(n, _, value)| *n == name && *value == 1.0)?;
        Some((*labels)?.split_once('=')?.1.trim_matches('"').to_owned())
    }

    /// In microseconds, interpolated within its bucket as Prometheus does it.
    fn quantile(&self, name: &str, quantile: f64) -> Fact<u64> {
        let bucket = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = self
            .0
            .iter()
            .filter(|(n, ..)| *n == bucket)
            .filter_map(|(_, labels, count)| {
                let bound = (*labels)?.split_once("le=\"")?.1.split_once('"')?.0;
                Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, *count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total = buckets.last().map_or(0.0, |b| b.1);
        if total == 0.0 {
            return Fact::unknown(format!("etcd does not tell {name}"));
        }
        let rank = total * quantile;
        let (mut low, mut below) = (0.0, 0.0);
        for (high, count) in buckets {
            if count >= rank {
                let seconds =
                    if high.is_finite() { low + (high - low) * (rank - below) / (count - below).max(1.0) } else { low };
                return whole((seconds * 1e6).round());
            }
            (low, below) = (high, count);
        }
        Fact::unknown(format!("the buckets of {name} do not add up"))
    }
}

/// The member list, from etcd's gateway (numbers as text) or K3s's `/db/info` (numbers).
fn etcd_members(answer: &Answer) -> Fact<Vec<EtcdMember>> {
    #[derive(Deserialize)]
    struct List {
        members: Vec<Member>,
    }
    #[derive(Deserialize)]
    struct Member {
        #[serde(rename = "ID")]
        id: serde_json::Value,
        #[serde(default)]
        name: String,
        #[serde(default, rename = "peerURLs")]
        peer_urls: Vec<String>,
        #[serde(default, rename = "isLearner")]
        learner: bool,
    }
    let Some(text) = answer.text("etcd-members") else {
        return Fact::unknown(answer.text("etcd-no-members").unwrap_or("the host did not tell etcd's members"));
    };
    let Ok(list) = serde_json::from_str::<List>(text) else {
        return Fact::unknown(format!("no list of etcd's members: {}", text.chars().take(200).collect::<String>()));
    };
    let members: Option<Vec<EtcdMember>> = list
        .members
        .into_iter()
        .map(|m| {
            let id = match &m.id {
                serde_json::Value::String(text) => text.parse().ok()?,
                other => other.as_u64()?,
            };
            Some(EtcdMember { id: format!("{id:x}"), name: m.name, peer_urls: m.peer_urls, learner: m.learner })
        })
        .collect();
    match members {
        Some(mut members) if !members.is_empty() => {
            members.sort();
            Fact::Known(members)
        }
        _ => Fact::unknown("etcd's list of members is empty or has one without an id"),
    }
}

fn sqlite(answer: &Answer) -> Option<Fact<SqliteFiles>> {
    let [path, db, wal] = answer.get("sqlite")? else { return None };
    Some(match (db.parse(), wal.parse()) {
        (Ok(db_bytes), Ok(wal_bytes)) => Fact::Known(SqliteFiles { path: path.clone(), db_bytes, wal_bytes }),
        _ => Fact::unknown(format!("the sizes of {path} and its -wal could not be read")),
    })
}

fn secrets_encryption(answer: &Answer) -> Fact<SecretsEncryption> {
    #[derive(Deserialize)]
    struct Status {
        stage: String,
        enable: Option<bool>,
        hashmatch: bool,
    }
    if answer.get("no-encryption").is_some() {
        return Fact::Known(SecretsEncryption { enabled: false, stage: "start".to_owned(), hashes_match: true });
    }
    match answer.text("encryption").map(serde_json::from_str::<Status>) {
        Some(Ok(status)) => Fact::Known(SecretsEncryption {
            enabled: status.enable.unwrap_or(false),
            stage: status.stage,
            hashes_match: status.hashmatch,
        }),
        _ => Fact::unknown("`k3s secrets-encrypt status` did not answer"),
    }
}

fn tools(answer: &Answer) -> Tools {
    let has = |tool: &str| answer.all("tool").any(|f| f.first().is_some_and(|t| t == tool));
    Tools {
        systemd_run: has("systemd-run"),
        sqlite3: has("sqlite3"),
        python3: has("python3"),
        restorecon: has("restorecon"),
        selinux_enforcing: answer.text("selinux") == Some("1"),
    }
}

fn record(fields: &[String]) -> Option<ActionRecord> {
    let [id, state] = fields else { return None };
    let state = match state.as_str() {
        "running" => RecordState::Running,
        "succeeded" => RecordState::Succeeded,
        "failed" => RecordState::Failed,
        "interrupted" => RecordState::Interrupted,
        _ => return None,
    };
    Some(ActionRecord { id: id.clone(), state })
}

/// What a task's record says.
pub(crate) fn report(answer: &Answer) -> Result<TaskReport, String> {
    let files = |key: &str| {
        let file = |fields: &[String]| {
            let [path, bytes, digest] = fields else { return Err(format!("{key} without size and digest")) };
            let digest = digest.parse().map_err(|e| format!("{path}: {e}"))?;
            let bytes = bytes.parse().map_err(|_| format!("{path}: its size is {bytes}"))?;
            Ok(RemoteFile { path: path.clone(), bytes, digest })
        };
        answer.all(key).map(file).collect::<Result<Vec<_>, String>>()
    };
    Ok(TaskReport {
        already: answer.get("already").is_some(),
        files: files("file")?,
        kept: answer.text("kept").map(str::to_owned),
        cold_copy: files("cold-copy")?.pop(),
        revision: answer.text("revision").and_then(|r| r.parse().ok()),
        integrity: answer.text("integrity").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use kadence_core::inventory::Origin;

    use super::*;

    /// As a real K3s 1.35 server with embedded etcd answered.
    const SERVER: &str = include_str!("../tests/answers/server-etcd.txt");

    fn answer(text: &str) -> Answer {
        let mut answer = Answer::default();
        text.lines().for_each(|line| answer.push(line));
        answer
    }

    fn key() -> HmacKey {
        HmacKey::new([7; 32])
    }

    fn server() -> HostFacts {
        let received: Timestamp = "2026-11-25T10:31:00Z".parse().expect("a time");
        facts(&answer(SERVER), &key(), received, SignedDuration::from_millis(40))
    }

    #[test]
    fn a_server_with_etcd() {
        let facts = server();
        insta::assert_json_snapshot!(facts, {
            // Long, and proven by tests of their own.
            ".certificates" => "...",
        });
    }

    #[test]
    fn its_certificates() {
        let facts = server();
        let certificates = facts.certificates.known().expect("known");
        assert!(certificates.len() > 15, "{}", certificates.len());
        let find = |name: &str| certificates.iter().find(|c| c.path.ends_with(name)).expect(name);
        assert!(find("server/tls/server-ca.crt").ca);
        let leaf = find("server/tls/client-admin.crt");
        assert!(!leaf.ca, "the CA that follows it in the file is not what the file is about");
        assert!(leaf.not_after < find("server/tls/client-ca.crt").not_after);
    }

    #[test]
    fn the_token_does_not_survive() {
        let text = serde_json::to_string(&server()).expect("json");
        assert!(SERVER.contains(&BASE64.encode("K10645f70b7280e2a1332")[..20]), "the answer does hold a token");
        assert!(!text.contains("test-token") && !text.contains("K10"), "{text}");
        assert_eq!(server().token, Fact::Known(Some(key().hash("test-token-1"))));
    }

    #[test]
    fn arguments_come_from_three_places() {
        let facts = server();
        let arguments = facts.arguments.known().expect("known");
        for (key, origin) in
            [("disable", Origin::ConfigFile), ("resolv-conf", Origin::Environment), ("tls-san", Origin::CommandLine)]
        {
            assert!(arguments.entries.iter().any(|a| a.key == key && a.origin == origin), "{key}");
        }
        assert_eq!(glance(&answer(SERVER), &self::key()).arguments.known(), arguments.digest.as_ref());
    }

    #[test]
    fn what_was_changed_since_the_start_can_be_told() {
        let text = "unit\tMainPID\t812\nunit\tExecMainStartTimestampMonotonic\t90000000\ntime\t1000000000000\t100.50\n\
                    daemon-reload\tno\nstart-file\t/etc/rancher/k3s/config.yaml\t1200\t1300";
        let start = last_start(&answer(text));
        let start = start.known().expect("known");
        assert_eq!(
            (start.at, start.needs_daemon_reload.known()),
            (Timestamp::from_nanosecond(989_500_000_000).ok(), Some(&false))
        );
        assert_eq!(start.reads[0].written, Timestamp::from_second(1200).expect("a time"));
        for cut in ["time", "start-file"] {
            let text: String = text.lines().filter(|l| !l.starts_with(cut)).map(|l| format!("{l}\n")).collect();
            assert!(last_start(&answer(&text)).why().is_some(), "without {cut}");
        }
        let reload = text.replace("\tno\n", "\t\n");
        assert!(last_start(&answer(&reload)).known().is_some_and(|s| s.needs_daemon_reload.why().is_some()));
    }

    #[test]
    fn addresses_belong_to_interfaces() {
        let text = "default-route\teth0\ndefault-route\teth1\naddress\teth0\t10.0.0.11\naddress\teth0\tfd00::11\n\
                    address\tcni0\t10.42.0.1\naddresses-end";
        let told = addresses(&answer(text));
        let told = told.known().expect("known");
        assert_eq!(told.default_route.as_deref(), Some("eth0"), "the first counts");
        assert_eq!(told.interfaces["eth0"].len(), 2);
        assert!(addresses(&answer(&text.replace("addresses-end", ""))).why().is_some(), "cut off, or no `ip`");
        assert!(addresses(&answer("address\teth0\tx\naddresses-end")).why().is_some());
    }

    #[test]
    fn an_agent_has_no_token_no_datastore_and_its_own_copy_of_the_ca() {
        let mut text = "role\tagent\nunit\tId\tk3s-agent.service\nunit\tDropInPaths\t/etc/a.conf /etc/b.conf\n\
                        binary\t/opt/bin/k3s\ndata-dir\t/data/k3s\nother-unit\tk3s.service\ndatastore\t\ncgroup\tv2\n"
            .to_owned();
        for line in SERVER.lines().filter(|l| l.contains("/server/tls/server-ca.crt:")) {
            text.push_str(&line.replace("/var/lib/rancher/k3s/server/tls/", "/data/k3s/agent/"));
            text.push('\n');
        }
        text.push_str(&format!("digest\t{}\nsize\t12\nversion\tv1.35.7+rke2r1\nend", Digest::of(b"k3s")));
        let received: Timestamp = "2026-11-25T10:31:00Z".parse().expect("a time");
        let facts = facts(&answer(&text), &key(), received, SignedDuration::ZERO);
        assert_eq!(facts.ca_hash, server().ca_hash, "server and agent of one cluster trust the same CA");
        assert_eq!(facts.token, Fact::Known(None));
        assert_eq!((facts.etcd, facts.etcd_members, facts.sqlite, facts.secrets_encryption), (None, None, None, None));
        let install = facts.install.known().expect("known");
        assert_eq!((install.role, install.unit.name.as_str()), (Role::Agent, "k3s-agent"));
        assert_eq!(install.unit.files, ["/etc/a.conf", "/etc/b.conf"]);
        assert!(install.other_unit_enabled);
        assert!(install.version.why().is_some_and(|why| why.contains("rke2")), "not a K3s: not ordered, not guessed");
    }

    #[test]
    fn an_answer_without_anything_is_unknown_throughout() {
        let received: Timestamp = "2026-11-25T10:31:00Z".parse().expect("a time");
        let facts = facts(&answer("end"), &key(), received, SignedDuration::ZERO);
        for why in [
            facts.arch.why(),
            facts.ca_hash.why(),
            facts.install.why(),
            facts.cgroup.why(),
            facts.disks.why(),
            facts.clock_offset.why(),
            facts.ntp_synchronised.why(),
            facts.certificates.why(),
            facts.token.why(),
        ] {
            assert!(why.is_some());
        }
        assert_eq!(facts.arguments.known().and_then(|a| a.digest), None);
    }

    #[test]
    fn a_host_without_k3s_says_so() {
        let text = "hostname\tdb1\nmachine-id\tabc\nno-install\tno systemd unit starts k3s\nend";
        let glance = glance(&answer(text), &key());
        assert_eq!(glance.binary, Fact::unknown("no systemd unit starts k3s"));
        assert_eq!(glance.unit.why(), Some("no systemd unit starts k3s"));
        assert_eq!(glance.etcd, None);
    }

    #[test]
    fn etcd_that_is_silent_is_unknown_and_not_unhealthy() {
        let silent = answer("role\tserver\ndatastore\tetcd\netcd-health\t\netcd-no-members\tno answer");
        let glance = glance(&silent, &key());
        assert!(glance.etcd.is_some_and(|e| e.why().is_some()));
        assert_eq!(glance.etcd_members, Some(Fact::unknown("no answer")));
    }

    #[test]
    fn an_alarm_is_named() {
        let alarmed = answer(
            "etcd-health\t{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\netcd-metric\tetcd_server_has_leader 1",
        );
        let etcd = etcd_local(&alarmed);
        let etcd = etcd.known().expect("known");
        assert!(!etcd.healthy);
        assert_eq!(etcd.alarms, Fact::Known(vec!["NOSPACE".to_owned()]));
        assert!(etcd.db_bytes.why().is_some());
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let text = "etcd-metric\tx_bucket{le=\"0.001\"} 50\netcd-metric\tx_bucket{le=\"0.002\"} 100\netcd-metric\tx_bucket{le=\"+Inf\"} 100";
        let histogram = answer(text);
        let metrics = Metrics::of(&histogram);
        assert_eq!(metrics.quantile("x", 0.99), Fact::Known(1980));
        assert!(metrics.quantile("y", 0.99).why().is_some());
    }

    #[test]
    fn members_of_both_sources_are_the_same() {
        let gateway = answer(
            "etcd-members\t{\"members\":[{\"ID\":\"11611219672525820398\",\"name\":\"s1-7b3f6b1c\",\"peerURLs\":[\"https://10.0.0.1:2380\"]}]}",
        );
        let supervisor = answer(
            "etcd-members\t{\"members\":[{\"ID\":11611219672525820398,\"name\":\"s1-7b3f6b1c\",\"peerURLs\":[\"https://10.0.0.1:2380\"]}]}",
        );
        assert_eq!(etcd_members(&gateway), etcd_members(&supervisor));
        assert_eq!(etcd_members(&gateway).known().expect("known")[0].id, "a12356c5f5edd1ee");
    }

    #[test]
    fn the_start_of_a_process_is_told_by_the_monotonic_clock() {
        let text = "unit\tExecMainStartTimestampMonotonic\t90000000\ntime\t1000000000000\t100.50";
        assert_eq!(started(&answer(text)), Timestamp::from_nanosecond(989_500_000_000).ok());
        assert_eq!(started(&answer("unit\tExecMainStartTimestampMonotonic\t0\ntime\t1000000000000\t100.50")), None);
        let told = process(&answer(&format!("{text}\nprocess\tv1.36.4+k3s1"))).expect("a process");
        assert_eq!(told.version, "v1.36.4+k3s1".parse().into());
        assert!(process(&answer(text)).is_some_and(|p| p.version.known().is_none()));
        assert_eq!(process(&answer(&format!("{text}\nrestart-due"))), None, "it is about to end");
    }

    #[test]
    fn a_report_that_cannot_be_read_is_an_error() {
        assert!(report(&answer("file\t/x\t12\tnodigest")).is_err());
        let digest = Digest::of(b"x");
        let done = report(&answer(&format!("already\nkept\t/b\nfile\t/x\t12\t{digest}\nrevision\t77\nintegrity\tok")));
        let done = done.expect("a report");
        assert!(done.already);
        assert_eq!(
            (done.kept.as_deref(), done.revision, done.integrity.as_deref()),
            (Some("/b"), Some(77), Some("ok"))
        );
        assert_eq!(done.files, [RemoteFile { path: "/x".to_owned(), bytes: 12, digest }]);
    }
}
