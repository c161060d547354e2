//! One of each kind of event, action, outcome and report: what the golden files and the suites are made of.
//!
//! A kind without a sample fails the test below, which asks serde for the list of kinds.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use kadence_core::apply::action::{
    Action, BackupReceipt, Cause, CordonWas, EtcdGlance, Failure, FailureKind, Glance, NodeGlance, Outcome, Proof,
    Report, Swap,
};
use kadence_core::apply::plan::{
    BackupMethod, BackupRef, DatastoreKind, Decision, DeclaredOutage, Drain, Expected, Hop, Manner, NodeCopy,
    NodePrecondition, Plan, Preconditions, Purpose, Seen, SqliteTool, Step, UndoClass,
};
use kadence_core::event::{Consent, Ending, Event, Gap, Hold, HoldCause, OutageMeasured, Recorded, Request};
use kadence_core::fact::Fact;
use kadence_core::ident::{ActionId, ClusterUid, Digest, NodeName, RolloutId};
use kadence_core::inventory::{
    Arch, Controller, ControllerKind, Cordon, HelmRelease, Mark, Packaged, PackagedKind, Role,
};
use kadence_core::validate::baseline::{Baseline, NodeBaseline, Regression};
use kadence_core::validate::finding::{Finding, Verdict, Waiver};
use kadence_core::version::Version;

pub fn cluster() -> ClusterUid {
    ClusterUid::new("6f1c2f0e-7a0c-4a43-9d9b-0f3b9f5a1c11")
}

pub fn rollout() -> RolloutId {
    RolloutId::new("0199f3a2-5c1e-7d44-8b1a-3f0e6f2b9c01")
}

/// 25 November 2026, 02:05 in Berlin.
fn at() -> Timestamp {
    Timestamp::from_second(1_795_568_700).unwrap_or_default()
}

fn old() -> Version {
    Version::new(1, 35, 7, 1)
}

fn new() -> Version {
    Version::new(1, 35, 9, 1)
}

fn digest(of: &str) -> Digest {
    Digest::of(of.as_bytes())
}

fn seconds(n: i64) -> SignedDuration {
    SignedDuration::from_secs(n)
}

/// An event as the log has it.
pub fn recorded(rollout: &RolloutId, number: u64, event: Event) -> Recorded {
    Recorded {
        schema: Recorded::SCHEMA,
        rollout: rollout.clone(),
        number,
        at: at(),
        actor: "eva@workstation".to_owned(),
        kadence: "0.1.0".to_owned(),
        event,
    }
}

/// A plan for three servers and an agent, on embedded etcd.
pub fn plan() -> Plan {
    let names = ["s2", "s3", "s1", "a1"];
    let role = |name: &str| if name.starts_with('s') { Role::Server } else { Role::Agent };
    let step = |(place, name): (usize, &&str)| Step {
        node: NodeName::from(*name),
        role: role(name),
        wave: u32::try_from(place).unwrap_or_default(),
        from: old(),
        to: new(),
        artifact: digest("new amd64"),
        previous: digest("old amd64"),
        drain: if *name == "a1" { Drain::Evict } else { Drain::CordonOnly },
        undo: [UndoClass::Binary, UndoClass::Binary, UndoClass::Restore, UndoClass::ForwardOnly][place],
        because: vec![format!("{name} comes at place {place}")],
    };
    let precondition = |name: &&str| {
        let precondition = NodePrecondition {
            uid: (*name != "s3").then(|| format!("uid of {name}")),
            role: role(name),
            version: old(),
            arch: Arch::Amd64,
            machine_id: format!("machine of {name}"),
            arguments: digest("arguments"),
            binary: digest("old amd64"),
        };
        (NodeName::from(*name), precondition)
    };
    Plan {
        decision: Decision {
            schema: Plan::SCHEMA,
            cluster: "shop".into(),
            purpose: Purpose::Update,
            target: new(),
            hops: vec![Hop {
                to: new(),
                artifacts: Arch::ALL.iter().map(|a| (*a, digest(&format!("new {a}")))).collect(),
                steps: names.iter().enumerate().map(step).collect(),
                backup: BackupMethod::EtcdSnapshot { server: "s1".into() },
                point_of_no_return: Some(2),
            }],
            preconditions: Preconditions {
                cluster_uid: cluster(),
                datastore: DatastoreKind::EmbeddedEtcd,
                etcd_members: ["8e9e05c52164694d", "91bc3c398fb3c146", "fd422379fda50e48"].map(str::to_owned).into(),
                nodes: names.iter().map(precondition).collect(),
                policy: digest("policy"),
            },
            manner: Manner::default(),
            outage: None,
            excluded: [NodeName::from("a2")].into(),
        },
        seen: Seen {
            made: at(),
            kadence: "0.1.0".to_owned(),
            etcd_leader: Some("s1".into()),
            addresses: (1..).zip(names).map(|(n, name)| (name.into(), format!("10.0.0.{n}"))).collect(),
            because: vec!["newest patch of the minor".to_owned()],
            expected: Expected {
                total: seconds(50),
                per_server: seconds(13),
                per_agent: seconds(9),
                reads_gap: SignedDuration::from_millis(300),
                writes_gap: seconds(1),
                basis: "typical figures".to_owned(),
            },
        },
    }
}

/// Plans that differ in their decision, so that they have different names.
pub fn plan_to(patch: u64) -> Plan {
    let mut plan = plan();
    plan.decision.target = Version::new(1, 35, patch, 1);
    plan
}

/// A plan of each purpose and backup method and declared outage.
pub fn plans() -> Vec<Plan> {
    let mut plans = vec![plan()];
    for (method, outage) in backup_methods().into_iter().zip([
        DeclaredOutage::SingleServer,
        DeclaredOutage::TwoMembers,
        DeclaredOutage::Restore,
        DeclaredOutage::SingleServer,
        DeclaredOutage::SingleServer,
    ]) {
        let mut plan = plan();
        plan.decision.outage = Some(outage);
        plan.decision.preconditions.datastore = match method {
            BackupMethod::EtcdSnapshot { .. } => DatastoreKind::EmbeddedEtcd,
            BackupMethod::SqliteOnline { .. } | BackupMethod::SqliteStopped { .. } => DatastoreKind::Sqlite,
            BackupMethod::Command { .. } => DatastoreKind::External,
        };
        plan.decision.purpose = Purpose::Restore { of: rollout(), backup: backup(method.clone()) };
        plan.decision.hops[0].backup = method;
        plans.push(plan);
    }
    let mut rollback = plan();
    rollback.decision.purpose = Purpose::Rollback { of: rollout() };
    plans.push(rollback);
    plans
}

fn backup_methods() -> Vec<BackupMethod> {
    vec![
        BackupMethod::EtcdSnapshot { server: "s1".into() },
        BackupMethod::SqliteOnline { server: "s1".into(), tool: SqliteTool::Sqlite3 },
        BackupMethod::SqliteOnline { server: "s1".into(), tool: SqliteTool::Python3 },
        BackupMethod::SqliteStopped { server: "s1".into() },
        BackupMethod::Command { command: "pg_dump".to_owned() },
    ]
}

fn backup(method: BackupMethod) -> BackupRef {
    BackupRef {
        name: "shop-20261125T010500Z".to_owned(),
        taken: at(),
        version: old(),
        digest: digest("snapshot"),
        method,
        on_node: Some(Box::new(NodeCopy {
            path: "/var/lib/rancher/k3s/server/db/snapshots/kadence-1".to_owned(),
            digest: Some(digest("snapshot")),
            reaches: Fact::Known(4_711),
        })),
    }
}

/// The receipt of a backup with these files.
pub fn receipt(name: &str, files: BTreeMap<String, Digest>) -> BackupReceipt {
    let mut backup = backup(BackupMethod::EtcdSnapshot { server: "s1".into() });
    backup.name = name.to_owned();
    BackupReceipt {
        backup,
        bytes: 41_000_000,
        revision: Some(120_345),
        at_least: Some(120_340),
        files,
        caveats: vec!["nobody restored it".to_owned()],
    }
}

fn findings() -> Vec<Finding> {
    let verdicts = [Verdict::Pass, Verdict::Warn, Verdict::Unknown, Verdict::UnknownBlocks, Verdict::Block];
    let finding = |verdict| Finding {
        code: "LOCAL-DATA".to_owned(),
        number: 27,
        verdict,
        about: "payments/ledger".to_owned(),
        what: "keeps data on a1".to_owned(),
        facts: vec!["claim ledger is bound to a1".to_owned()],
        why: "it cannot move".to_owned(),
        remedy: "let it stay".to_owned(),
        waived: (verdict == Verdict::Block).then(|| Waiver {
            owner: "eva".to_owned(),
            reason: "agreed".to_owned(),
            until: at(),
        }),
    };
    verdicts.map(finding).into()
}

fn baseline() -> Baseline {
    let node = |cordon| NodeBaseline {
        cordon,
        taints: vec!["dedicated=db:NoSchedule".to_owned()],
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        config_hash: Some("ABC".to_owned()),
    };
    let mark = Mark { rollout: rollout().to_string(), plan: "7c41e0".to_owned(), step: "1".to_owned() };
    let controller = |kind| Controller {
        kind,
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        desired: 2,
        available: 2,
        images: vec!["web:1".to_owned()],
        observed: true,
    };
    let packaged = |kind| Packaged {
        kind,
        name: "traefik".to_owned(),
        version: "1".to_owned(),
        settled: true,
        detail: "deployed".to_owned(),
    };
    Baseline {
        taken: at(),
        controllers: Fact::Known(
            [ControllerKind::Deployment, ControllerKind::StatefulSet, ControllerKind::DaemonSet].map(controller).into(),
        ),
        services: Fact::Known(BTreeMap::from([("shop/web".to_owned(), 2)])),
        troubled: Fact::Known(BTreeMap::from([("shop/old".to_owned(), vec!["CrashLoopBackOff".to_owned()])])),
        packaged: Fact::Known([PackagedKind::Addon, PackagedKind::HelmChart].map(packaged).into()),
        helm_releases: Fact::Known(vec![HelmRelease {
            namespace: "kube-system".to_owned(),
            name: "traefik".to_owned(),
            revision: 3,
            status: "deployed".to_owned(),
        }]),
        broken_api_services: Fact::Known(vec!["v1beta1.metrics.k8s.io: no endpoints".to_owned()]),
        nodes: BTreeMap::from([
            ("s1".into(), node(Cordon::None)),
            ("s2".into(), node(Cordon::Ours { mark })),
            ("a1".into(), node(Cordon::Foreign)),
        ]),
        probes: BTreeMap::from([("shop".to_owned(), true)]),
    }
}

/// The same facts, none of which could be had.
fn blind_baseline() -> Baseline {
    let why = "the API did not answer";
    Baseline {
        taken: at(),
        controllers: Fact::unknown(why),
        services: Fact::unknown(why),
        troubled: Fact::unknown(why),
        packaged: Fact::unknown(why),
        helm_releases: Fact::unknown(why),
        broken_api_services: Fact::unknown(why),
        nodes: BTreeMap::new(),
        probes: BTreeMap::new(),
    }
}

fn glance() -> Glance {
    let server = NodeGlance {
        role: Role::Server,
        uid: Some("uid of s1".to_owned()),
        version: Fact::Known(old()),
        ready: Fact::Known(true),
        cordon: Cordon::None,
        machine_id: Fact::Known("machine of s1".to_owned()),
        host_boot: Some("boot of s1".to_owned()),
        node_boot: Some("boot of s1".to_owned()),
        arguments: Fact::Known(digest("arguments")),
        binary: Fact::Known(digest("old amd64")),
        etcd: Some(Fact::Known(EtcdGlance { healthy: true, learner: false, leader: true })),
        apiserver: Some(Fact::Known(true)),
    };
    let why = "sshd did not answer";
    let agent = NodeGlance {
        role: Role::Agent,
        uid: None,
        version: Fact::unknown(why),
        ready: Fact::unknown(why),
        cordon: Cordon::Foreign,
        machine_id: Fact::unknown(why),
        host_boot: None,
        node_boot: None,
        arguments: Fact::unknown(why),
        binary: Fact::unknown(why),
        etcd: None,
        apiserver: None,
    };
    Glance {
        at: at(),
        uid: Fact::Known(cluster()),
        nodes: BTreeMap::from([("s1".into(), server), ("a1".into(), agent)]),
        etcd_members: Fact::Known(BTreeSet::from(["8e9e05c52164694d".to_owned()])),
    }
}

/// One of each action.
pub fn actions() -> Vec<Action> {
    let (server, agent) = (NodeName::from("s2"), NodeName::from("a1"));
    let swap = |back: bool| Swap {
        role: Role::Server,
        to: new(),
        artifact: digest("new amd64"),
        expect: digest("old amd64"),
        drain: Drain::CordonOnly,
        cold_copy: !back,
        back,
    };
    let mut actions = vec![
        Action::Check { hop: 0 },
        Action::Stage { node: server.clone(), version: new(), artifact: digest("new amd64") },
        Action::Look { before: vec![server.clone(), agent.clone()] },
        Action::Cordon { node: server.clone() },
        Action::Drain { node: agent.clone() },
        Action::Swap { node: server.clone(), swap: swap(false) },
        Action::Prove {
            node: server.clone(),
            role: Role::Server,
            version: new(),
            settle: seconds(30),
            within: seconds(600),
        },
        Action::Uncordon { node: server.clone() },
        Action::Compare { after: server.clone() },
        Action::Validate { hop: 0 },
        Action::Stop { node: agent.clone(), role: Role::Agent },
        Action::Place { node: server.clone(), swap: swap(true) },
        Action::Reset { node: server.clone(), backup: backup(BackupMethod::EtcdSnapshot { server: server.clone() }) },
        Action::SetAside { node: server.clone() },
        Action::Start { node: server, role: Role::Server },
        Action::Restart { node: agent, role: Role::Agent },
        Action::RestartControllers,
        Action::RestoreCommand { command: "pg_restore".to_owned() },
    ];
    actions.extend(backup_methods().into_iter().map(|method| Action::Backup { hop: 0, method }));
    actions
}

/// One of each report.
pub fn reports() -> Vec<Report> {
    let proof = |etcd: Fact<Option<String>>| Proof {
        ready_after: seconds(7),
        healthy_after: seconds(8),
        held: seconds(30),
        etcd,
    };
    let mut reports = vec![
        Report::Plain,
        Report::Checked { findings: findings(), baseline: Box::new(baseline()) },
        Report::Checked { findings: Vec::new(), baseline: Box::new(blind_baseline()) },
        Report::Staged { bytes: 62_000_000, already_there: false },
        Report::BackedUp { backup: receipt("shop-1", BTreeMap::from([("snapshot".to_owned(), digest("encrypted"))])) },
        Report::Looked { glance: Box::new(glance()) },
        Report::Drained { evicted: vec!["shop/web-1".to_owned()], left: vec!["kube-system/svclb".to_owned()] },
        Report::Swapped {
            kept: Some("/usr/local/lib/kadence/k3s-v1.35.7+k3s1".to_owned()),
            already: false,
            cold_copy: Some(NodeCopy {
                path: "/var/lib/kadence/cold/r1-1".to_owned(),
                digest: Some(digest("cold")),
                reaches: Fact::unknown("neither sqlite3 nor python3 is there"),
            }),
        },
        Report::Proven { proof: proof(Fact::Known(Some("voter".to_owned()))) },
        Report::Proven { proof: proof(Fact::Known(None)) },
        Report::Proven { proof: proof(Fact::unknown("etcd did not answer")) },
        Report::Compared { regressions: Vec::new() },
        Report::Validated {
            findings: findings(),
            regressions: vec![Regression {
                about: "deployment shop/web".to_owned(),
                before: "2 of 2 available".to_owned(),
                now: "1 of 2 available".to_owned(),
            }],
        },
        Report::Reset { already: true, from: Some("the snapshot on s1".to_owned()) },
    ];
    let was = [CordonWas::Open, CordonWas::OurMark, CordonWas::Foreign];
    reports.extend(was.map(|was| Report::Cordoned { was }));
    reports
}

/// One of each outcome, with each report and each kind of failure.
pub fn outcomes() -> Vec<Outcome> {
    let kinds = [
        FailureKind::Blocked,
        FailureKind::Digest,
        FailureKind::DiskFull,
        FailureKind::DrainBlocked,
        FailureKind::DidNotStayUp,
        FailureKind::NotReadyInTime,
        FailureKind::Regressed,
        FailureKind::BackupUnusable,
        FailureKind::Superseded,
        FailureKind::Changed,
        FailureKind::Refused,
    ];
    let failed = |kind| Outcome::Failed {
        took: seconds(20),
        failure: Failure {
            kind,
            what: "k3s did not stay up: 3 restarts in 20 s".to_owned(),
            cause: (kind == FailureKind::DidNotStayUp).then(|| Cause {
                class: "argument-unknown".to_owned(),
                line: "unrecognized feature gate: OldGate".to_owned(),
                remedy: "remove it".to_owned(),
            }),
        },
    };
    let done = |report| Outcome::Done { took: SignedDuration::from_millis(7_213), report };
    let mut outcomes: Vec<_> = reports().into_iter().map(done).collect();
    outcomes.extend(kinds.map(failed));
    outcomes.push(Outcome::Unknown { why: "sshd did not answer".to_owned() });
    outcomes
}

fn endings() -> Vec<Ending> {
    let words = || ("what".to_owned(), "because".to_owned(), "next".to_owned());
    let mixed = || BTreeMap::from([(new().to_string(), vec!["s2".to_owned()])]);
    let (what, because, next) = words();
    let back = Ending::FailedAndBack { what, because, next };
    let (what, because, next) = words();
    vec![
        Ending::Completed,
        back,
        Ending::Failed { what, because, next, mixed: mixed() },
        Ending::Refused { findings: findings() },
        Ending::Aborted { mixed: mixed() },
    ]
}

/// One of each event, with one of everything inside.
pub fn events() -> Vec<Event> {
    let plan = plan();
    let id = || ActionId::of(&rollout(), 7);
    let consent = Consent { outage: true, data_loss: false, powered_off: vec!["s3".into()] };
    let mut events = vec![Event::Started { cluster: cluster(), plan_hash: plan.hash(), plan: Box::new(plan), consent }];
    events.push(Event::TurnTaken { turn: 4, holder: "0199b1f0a5c37c3e8f4b5a6d7e8f9a0b".to_owned() });
    let gap = Gap { longest: SignedDuration::from_millis(310), failed: 3 };
    let outage = OutageMeasured { reads: gap, writes: gap, probes: 1_200 };
    events.extend(actions().into_iter().map(|action| Event::Intent { id: id(), action }));
    events.extend(outcomes().into_iter().map(|o| Event::Outcome { id: id(), outcome: Box::new(o), outage: None }));
    events.extend([Request::Pause, Request::Abort].map(|request| Event::Asked { request }));
    let causes = [
        HoldCause::Paused,
        HoldCause::Changed,
        HoldCause::ClusterNotHealthy,
        HoldCause::Unknown,
        HoldCause::BudgetBlocks,
        HoldCause::NeedsConsent,
    ];
    events.extend(causes.map(|cause| Event::Held {
        hold: Hold { cause, what: "somebody paused it".to_owned(), next: "kadence resume shop".to_owned() },
        outage: None,
    }));
    let hold = Hold { cause: HoldCause::Paused, what: "paused".to_owned(), next: "kadence resume shop".to_owned() };
    events.push(Event::Held { hold, outage: Some(outage) });
    events.push(Event::Resumed);
    events.push(Event::DeclaredOff { nodes: vec!["a2".into()] });
    events.push(Event::DeclaredOff { nodes: vec!["s3".into()] });
    let done = Outcome::Done { took: seconds(3), report: Report::Plain };
    events.push(Event::Outcome { id: id(), outcome: Box::new(done), outage: Some(outage) });
    events.extend(endings().into_iter().map(|ending| Event::Ended { ending, outage: Some(outage) }));
    events
}

/// All samples as one log.
pub fn log() -> Vec<Recorded> {
    (1..).zip(events()).map(|(number, event)| recorded(&rollout(), number, event)).collect()
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    /// The kinds of an enum, as serde lists them when it is given one that does not exist.
    fn kinds<T: DeserializeOwned>(tag: Option<&str>) -> BTreeSet<String> {
        let nonsense = tag.map_or_else(|| json!("no-such-kind"), |tag| json!({ tag: "no-such-kind" }));
        let error = serde_json::from_value::<T>(nonsense).err().expect("no such kind").to_string();
        let (_, list) = error.split_once("expected ").expect("a list of kinds");
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// Every value that stands under this key, anywhere in the samples.
    fn seen(key: &str) -> BTreeSet<String> {
        fn walk(value: &Value, key: &str, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get(key).and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|v| walk(v, key, found));
                }
                Value::Array(items) => items.iter().for_each(|v| walk(v, key, found)),
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        walk(&serde_json::to_value((log(), plans())).expect("json"), key, &mut found);
        found
    }

    #[track_caller]
    fn covers<T: DeserializeOwned>(tag: Option<&str>, key: &str) {
        let kinds = kinds::<T>(tag);
        assert!(kinds.len() >= 2, "serde does not list the kinds any more: {kinds:?}");
        let seen = seen(key);
        let missing: Vec<_> = kinds.difference(&seen).collect();
        assert!(missing.is_empty(), "no sample of {}: {missing:?}", std::any::type_name::<T>());
    }

    #[test]
    fn every_kind_has_a_sample() {
        covers::<Event>(Some("event"), "event");
        covers::<Action>(Some("do"), "do");
        covers::<Outcome>(Some("outcome"), "outcome");
        covers::<Report>(Some("report"), "report");
        covers::<Ending>(Some("kind"), "kind");
        covers::<Purpose>(Some("kind"), "kind");
        covers::<BackupMethod>(Some("kind"), "kind");
        covers::<FailureKind>(None, "kind");
        covers::<ControllerKind>(None, "kind");
        covers::<PackagedKind>(None, "kind");
        covers::<HoldCause>(None, "cause");
        covers::<Request>(None, "request");
        covers::<CordonWas>(None, "was");
        covers::<Cordon>(Some("state"), "state");
        covers::<Verdict>(None, "verdict");
        covers::<UndoClass>(None, "undo");
        covers::<Drain>(None, "drain");
        covers::<DeclaredOutage>(None, "outage");
        covers::<DatastoreKind>(None, "datastore");
        covers::<SqliteTool>(None, "tool");
        covers::<Role>(None, "role");
    }

    #[test]
    fn samples_read_as_they_were_written() {
        for event in log() {
            let text = serde_json::to_string(&event).expect("json");
            assert_eq!(serde_json::from_str::<Recorded>(&text).expect("an event"), event, "{text}");
        }
    }
}
