//! Is a restarted node proven healthy? A fold of the signs that come in, judged against what must be so.
//!
//! Signs are levels. *Proven* needs all of them good at once and for the settle time without a break; a single bad sign
//! begins the time anew, and only an observed state ends in failure: an exit, a third restart, a deadline passed. A
//! line of the journal names the cause of such a state and never makes one.

use jiff::{SignedDuration, Timestamp};

use crate::apply::action::{Cause, Failure, FailureKind, Proof};
use crate::apply::signature;
use crate::fact::Fact;
use crate::ident::NodeName;
use crate::inventory::{EtcdLocal, Role, Unit};
use crate::version::Version;

/// K3s's unit restarts after 5 s; a third restart means that it does not stay up. One or two happen on a slow disk,
/// when an embedded component loses its election while others start.
const RESTARTS_TOLERATED: u32 = 2;

/// What must be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    pub node: NodeName,
    pub role: Role,
    pub version: Version,
    pub settle: SignedDuration,
    pub within: SignedDuration,
    /// Whether the node is a member of embedded etcd.
    pub etcd: bool,
    /// Whether it runs an API server.
    pub apiserver: bool,
    /// Whether it has a Node object to become Ready.
    pub has_node: bool,
}

/// What was seen last, each fact by itself.
#[derive(Clone, Debug)]
pub struct Signs {
    /// When the watch began: after the restart was asked for.
    began: Timestamp,
    unit: Option<Unit>,
    restarts_at_start: Option<u32>,
    /// The unit's present main process. None until it was told for the present one.
    process: Option<Process>,
    ready: Option<(Version, bool)>,
    /// When the kubelet said so, by the node's own clock.
    reported: Fact<Timestamp>,
    ready_since: Option<Timestamp>,
    etcd: Option<Fact<EtcdLocal>>,
    apiserver: Option<bool>,
    cause: Option<Cause>,
    good_since: Option<Timestamp>,
    lost_after_good: Option<String>,
    no_way: Option<String>,
}

/// A run of K3s: its version, and when it was started by the node's own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub version: Fact<Version>,
    pub started: Timestamp,
}

/// What the signs amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Proven(Proof),
    /// What is still missing, in words; and when to look again if nothing new comes in.
    NotYet {
        waits_for: String,
        look_again: Timestamp,
    },
    Failed(Failure),
    /// The time is over, and it could not be seen how the node is.
    Unknown(String),
}

impl Signs {
    pub fn new(began: Timestamp) -> Self {
        Self {
            began,
            unit: None,
            restarts_at_start: None,
            process: None,
            ready: None,
            reported: Fact::unknown("its Node was not seen"),
            ready_since: None,
            etcd: None,
            apiserver: None,
            cause: None,
            good_since: None,
            lost_after_good: None,
            no_way: None,
        }
    }

    pub fn unit(&mut self, unit: Unit) {
        // A restart by hand resets systemd's count: the lowest count seen is where it began.
        let at_start = self.restarts_at_start.unwrap_or(unit.restarts).min(unit.restarts);
        self.restarts_at_start = Some(at_start);
        // What was told of an earlier run says nothing of this one.
        if self.unit.as_ref().is_none_or(|before| before.main_pid != unit.main_pid) {
            self.process = None;
        }
        self.unit = Some(unit);
        self.no_way = None;
    }

    /// The run that was asked for. One that a restart has yet to end is none.
    pub fn process(&mut self, process: Process) {
        self.process = Some(process);
    }

    /// What the Node object says, and when its kubelet said so: by the node's clock, as the start of its run is.
    pub fn node(&mut self, version: Version, ready: bool, reported: Fact<Timestamp>) {
        self.ready = Some((version, ready));
        self.reported = reported;
    }

    pub fn etcd(&mut self, etcd: Fact<EtcdLocal>) {
        self.etcd = Some(etcd);
    }

    pub fn apiserver(&mut self, ready: bool) {
        self.apiserver = Some(ready);
    }

    /// A line of the journal that matches a signature. The first one stands, since what follows is mostly its
    /// consequence; only one that healthy starts show too gives way to one that they do not.
    pub fn journal(&mut self, class: &str, line: &str) {
        let gives_way =
            self.cause.as_ref().is_none_or(|c| signature::is_common(&c.class) && !signature::is_common(class));
        if gives_way {
            let remedy = signature::remedy(class).unwrap_or("look at the journal around this line").to_owned();
            self.cause = Some(Cause { class: class.to_owned(), line: line.to_owned(), remedy });
        }
    }

    /// The way to the node broke: its unit and etcd are not seen any more.
    pub fn no_way(&mut self, why: &str) {
        self.no_way = Some(why.to_owned());
        self.unit = None;
        self.process = None;
        self.etcd = None;
    }

    /// When this node's watch began.
    pub fn began(&self) -> Timestamp {
        self.began
    }

    /// Judges what was seen so far.
    pub fn judge(&mut self, goal: &Goal, now: Timestamp) -> Judgement {
        let elapsed = now.duration_since(self.began);
        if let Some(failure) = self.did_not_stay_up(goal, elapsed) {
            return Judgement::Failed(failure);
        }
        self.ready_since = if self.not_ready(goal).is_none() { self.ready_since.or(Some(now)) } else { None };
        let missing = self.missing(goal);
        let Some(waits_for) = missing else {
            let since = *self.good_since.get_or_insert(now);
            let held = now.duration_since(since);
            if held >= goal.settle {
                return Judgement::Proven(Proof {
                    ready_after: self.ready_since.unwrap_or(since).duration_since(self.began),
                    healthy_after: since.duration_since(self.began),
                    held,
                    etcd: Fact::Known(goal.etcd.then(|| "voter, healthy".to_owned())),
                });
            }
            return Judgement::NotYet {
                waits_for: format!("staying healthy for {:#}", goal.settle),
                look_again: since + goal.settle,
            };
        };
        if self.good_since.take().is_some() {
            self.lost_after_good = Some(waits_for.clone());
        }
        if elapsed >= goal.within {
            return self.time_over(goal, &waits_for);
        }
        Judgement::NotYet { waits_for, look_again: self.began + goal.within }
    }

    fn time_over(&self, goal: &Goal, waits_for: &str) -> Judgement {
        if let Some(why) = &self.no_way {
            return Judgement::Unknown(format!("{} could not be seen for {:#}: {why}", goal.node, goal.within));
        }
        let (kind, what) = match &self.lost_after_good {
            Some(lost) => (
                FailureKind::Regressed,
                format!("{} was healthy and did not stay so within {:#}: {lost}", goal.node, goal.within),
            ),
            None => (
                FailureKind::NotReadyInTime,
                format!("{} was not proven healthy within {:#}: {waits_for}", goal.node, goal.within),
            ),
        };
        Judgement::Failed(Failure { kind, what, cause: self.cause.clone() })
    }

    fn did_not_stay_up(&self, goal: &Goal, elapsed: SignedDuration) -> Option<Failure> {
        let unit = self.unit.as_ref()?;
        let restarts = unit.restarts.saturating_sub(self.restarts_at_start?);
        let what = if unit.active == "failed" {
            format!("{} did not stay up: systemd gave up on {}", goal.node, unit.name)
        } else if restarts > RESTARTS_TOLERATED {
            format!("{} did not stay up: {restarts} restarts in {} s", goal.node, elapsed.as_secs())
        } else {
            return None;
        };
        Some(Failure { kind: FailureKind::DidNotStayUp, what, cause: self.cause.clone() })
    }

    /// The first thing that is not as it must be.
    fn missing(&self, goal: &Goal) -> Option<String> {
        if let Some(why) = &self.no_way {
            return Some(format!("the way to {}: {why}", goal.node));
        }
        match &self.unit {
            None => return Some("the state of its unit".to_owned()),
            Some(unit) if unit.active != "active" => {
                return Some(format!("{} to be active (it is {}, {})", unit.name, unit.active, unit.sub));
            }
            Some(_) => {}
        }
        if let Some(missing) = self.not_ready(goal) {
            return Some(missing);
        }
        if goal.etcd {
            match &self.etcd {
                None => return Some("its etcd member".to_owned()),
                Some(Fact::Unknown(why)) => return Some(format!("its etcd member: {why}")),
                Some(Fact::Known(e)) if e.learner => return Some("its etcd member to become a voter".to_owned()),
                Some(Fact::Known(e)) if !(e.healthy && e.has_leader) => {
                    return Some("its etcd member to be healthy".to_owned());
                }
                Some(Fact::Known(_)) => {}
            }
        }
        if goal.apiserver && self.apiserver != Some(true) {
            return Some("its API server to answer /readyz".to_owned());
        }
        None
    }

    /// What is missing until the node is Ready on the version, as its own kubelet says.
    fn not_ready(&self, goal: &Goal) -> Option<String> {
        let Some(process) = &self.process else { return Some("the start that was asked for".to_owned()) };
        if !goal.has_node {
            return match &process.version {
                Fact::Known(version) if *version == goal.version => None,
                Fact::Known(version) => Some(format!("{} to run (it runs {version})", goal.version)),
                Fact::Unknown(why) => Some(format!("the version that runs: {why}")),
            };
        }
        match &self.ready {
            None => return Some("its Node".to_owned()),
            Some((version, _)) if *version != goal.version => {
                return Some(format!("its kubelet to report {} (it reports {version})", goal.version));
            }
            Some((_, false)) => return Some("its Node to be Ready".to_owned()),
            Some((_, true)) => {}
        }
        // The Node object outlives its kubelet: what stands there may be of the run before, for 40 s and more, and
        // restored data brings back what was so at the time of the backup.
        match &self.reported {
            Fact::Known(reported) if *reported > process.started => None,
            Fact::Known(_) => Some("its kubelet to report after the start".to_owned()),
            Fact::Unknown(why) => Some(format!("its kubelet's report: {why}")),
        }
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "another judgement than the expected one fails the test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn goal() -> Goal {
        Goal {
            node: "s2".into(),
            role: Role::Server,
            version: Version::new(1, 36, 4, 1),
            settle: SignedDuration::from_secs(5),
            within: SignedDuration::from_secs(60),
            etcd: true,
            apiserver: true,
            has_node: true,
        }
    }

    fn unit(active: &str, restarts: u32) -> Unit {
        Unit {
            name: "k3s".to_owned(),
            enabled: true,
            active: active.to_owned(),
            sub: "running".to_owned(),
            restarts,
            main_pid: 7,
            files: Vec::new(),
        }
    }

    fn etcd(learner: bool) -> Fact<EtcdLocal> {
        let unknown = || Fact::unknown("not asked");
        Fact::Known(EtcdLocal {
            healthy: true,
            leader: false,
            learner,
            has_leader: true,
            version: unknown(),
            db_bytes: Fact::unknown("not asked"),
            quota_bytes: Fact::unknown("not asked"),
            applied_index: Fact::unknown("not asked"),
            alarms: Fact::unknown("not asked"),
            fsync_p99_micros: Fact::unknown("not asked"),
            member_id: unknown(),
        })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_764_000_000 + seconds).expect("a time")
    }

    fn started(at_second: i64) -> Process {
        Process { version: Fact::Known(Version::new(1, 36, 4, 1)), started: at(at_second) }
    }

    fn healthy() -> Signs {
        let mut signs = Signs::new(at(0));
        signs.unit(unit("active", 0));
        signs.process(started(1));
        signs.node(Version::new(1, 36, 4, 1), true, Fact::Known(at(2)));
        signs.etcd(etcd(false));
        signs.apiserver(true);
        signs
    }

    #[test]
    fn healthy_for_the_settle_time_is_proven() {
        let mut signs = healthy();
        assert!(matches!(signs.judge(&goal(), at(8)), Judgement::NotYet { look_again, .. } if look_again == at(13)));
        let Judgement::Proven(proof) = signs.judge(&goal(), at(13)) else { panic!("proven") };
        assert_eq!(proof.healthy_after, SignedDuration::from_secs(8));
        assert_eq!(proof.ready_after, SignedDuration::from_secs(8));
        assert_eq!(proof.held, SignedDuration::from_secs(5));
    }

    #[test]
    fn a_bad_sign_begins_the_settle_time_anew() {
        let mut signs = healthy();
        signs.judge(&goal(), at(8));
        signs.apiserver(false);
        assert!(matches!(signs.judge(&goal(), at(10)), Judgement::NotYet { .. }));
        signs.apiserver(true);
        assert!(matches!(signs.judge(&goal(), at(12)), Judgement::NotYet { look_again, .. } if look_again == at(17)));
        assert!(matches!(signs.judge(&goal(), at(17)), Judgement::Proven(_)));
    }

    #[test]
    fn ready_on_the_old_version_is_not_proven() {
        let mut signs = healthy();
        signs.node(Version::new(1, 36, 3, 1), true, Fact::Known(at(2)));
        let Judgement::NotYet { waits_for, .. } = signs.judge(&goal(), at(1)) else { panic!("not yet") };
        assert_eq!(waits_for, "its kubelet to report v1.36.4+k3s1 (it reports v1.36.3+k3s1)");
    }

    /// A Node stays Ready for 40 s after its kubelet went, and restored data brings back Nodes that were Ready.
    #[test]
    fn ready_counts_only_if_the_kubelet_said_so_after_the_start() {
        let mut signs = healthy();
        signs.node(Version::new(1, 36, 4, 1), true, Fact::Known(at(0)));
        assert!(
            matches!(signs.judge(&goal(), at(1)), Judgement::NotYet { waits_for, .. } if waits_for == "its kubelet to report after the start")
        );
        assert!(matches!(signs.judge(&goal(), at(30)), Judgement::NotYet { .. }));
        // Told in whole seconds: in that of the start it may be of the run before.
        signs.node(Version::new(1, 36, 4, 1), true, Fact::Known(at(1)));
        assert!(matches!(signs.judge(&goal(), at(30)), Judgement::NotYet { .. }));
        signs.node(Version::new(1, 36, 4, 1), true, Fact::unknown("no heartbeat"));
        assert!(
            matches!(signs.judge(&goal(), at(30)), Judgement::NotYet { waits_for, .. } if waits_for == "its kubelet's report: no heartbeat")
        );
        signs.node(Version::new(1, 36, 4, 1), true, Fact::Known(at(31)));
        signs.judge(&goal(), at(31));
        assert!(matches!(signs.judge(&goal(), at(36)), Judgement::Proven(_)));
    }

    /// An agent's unit is active at once: what its kubelet said in the run before says nothing of this one.
    #[test]
    fn a_new_run_has_to_report_anew() {
        let mut signs = healthy();
        signs.judge(&goal(), at(8));
        signs.unit(Unit { main_pid: 8, ..unit("active", 1) });
        assert!(
            matches!(signs.judge(&goal(), at(13)), Judgement::NotYet { waits_for, .. } if waits_for == "the start that was asked for")
        );
        signs.process(started(13));
        assert!(
            matches!(signs.judge(&goal(), at(14)), Judgement::NotYet { waits_for, .. } if waits_for == "its kubelet to report after the start")
        );
        signs.node(Version::new(1, 36, 4, 1), true, Fact::Known(at(16)));
        signs.judge(&goal(), at(16));
        assert!(matches!(signs.judge(&goal(), at(21)), Judgement::Proven(_)));
    }

    #[test]
    fn a_server_without_a_node_is_judged_by_its_process() {
        let goal = Goal { has_node: false, ..goal() };
        let mut signs = Signs::new(at(0));
        signs.unit(unit("active", 0));
        signs.etcd(etcd(false));
        signs.apiserver(true);
        assert!(matches!(signs.judge(&goal, at(2)), Judgement::NotYet { .. }));
        signs.process(Process { version: Fact::Known(Version::new(1, 36, 3, 1)), started: at(1) });
        assert!(
            matches!(signs.judge(&goal, at(2)), Judgement::NotYet { waits_for, .. } if waits_for == "v1.36.4+k3s1 to run (it runs v1.36.3+k3s1)")
        );
        signs.process(Process { version: Fact::unknown("/proc"), started: at(1) });
        assert!(matches!(signs.judge(&goal, at(2)), Judgement::NotYet { .. }));
        signs.process(started(1));
        signs.judge(&goal, at(2));
        assert!(matches!(signs.judge(&goal, at(7)), Judgement::Proven(_)));
    }

    #[test]
    fn a_learner_is_not_a_voter() {
        let mut signs = healthy();
        signs.etcd(etcd(true));
        assert!(matches!(signs.judge(&goal(), at(59)), Judgement::NotYet { .. }));
        let Judgement::Failed(failure) = signs.judge(&goal(), at(60)) else { panic!("failed") };
        assert_eq!(failure.kind, FailureKind::NotReadyInTime);
    }

    #[test]
    fn a_third_restart_fails_at_once_and_the_journal_names_the_cause() {
        let mut signs = Signs::new(at(0));
        signs.unit(unit("activating", 4));
        signs.journal("configuration", "unrecognized feature gate: OldGate");
        signs.unit(unit("activating", 6));
        assert!(matches!(signs.judge(&goal(), at(12)), Judgement::NotYet { .. }), "two restarts happen on slow disks");
        signs.unit(unit("activating", 7));
        let Judgement::Failed(failure) = signs.judge(&goal(), at(18)) else { panic!("failed") };
        assert_eq!(failure.what, "s2 did not stay up: 3 restarts in 18 s");
        assert_eq!(failure.cause.map(|c| c.line), Some("unrecognized feature gate: OldGate".to_owned()));
    }

    #[test]
    fn a_line_that_healthy_starts_show_gives_way_to_a_telling_one() {
        let mut signs = Signs::new(at(0));
        signs.unit(unit("activating", 0));
        signs.journal("latency", "apply request took too long");
        signs.journal("configuration", "unrecognized feature gate: OldGate");
        signs.journal("etcd-membership", "has not yet been promoted from learner");
        signs.unit(unit("failed", 3));
        let Judgement::Failed(failure) = signs.judge(&goal(), at(18)) else { panic!("failed") };
        assert_eq!(failure.cause.map(|c| c.class), Some("configuration".to_owned()));
    }

    #[test]
    fn a_line_of_the_journal_alone_never_fails() {
        let mut signs = healthy();
        signs.journal("kine", "database is locked");
        signs.judge(&goal(), at(8));
        assert!(matches!(signs.judge(&goal(), at(13)), Judgement::Proven(_)));
    }

    #[test]
    fn not_seeing_the_node_is_not_a_failure_of_the_node() {
        let mut signs = healthy();
        signs.no_way("connection timed out");
        assert!(matches!(signs.judge(&goal(), at(60)), Judgement::Unknown(_)));
    }

    proptest! {
        /// Whatever comes in, in whatever order: proven only if the last signs are all good, and never before the
        /// settle time has passed since the last bad one.
        #[test]
        fn proven_needs_all_good_for_the_whole_settle_time(
            steps in proptest::collection::vec((0_i64..4, 0_u8..6, any::<bool>()), 1..40)
        ) {
            let goal = goal();
            let mut signs = healthy();
            let mut now = 0;
            let mut good_since = None;
            let (mut up, mut ready, mut voter, mut serves) = (true, true, true, true);
            for (wait, what, good) in steps {
                now += wait;
                match what {
                    0 => { up = good; signs.unit(unit(if good { "active" } else { "activating" }, 0)); }
                    1 => { ready = good; signs.node(Version::new(1, 36, 4, 1), good, Fact::Known(at(2))); }
                    2 => { voter = good; signs.etcd(etcd(!good)); }
                    3 => { serves = good; signs.apiserver(good); }
                    _ => {}
                }
                let all = up && ready && voter && serves;
                let judgement = signs.judge(&goal, at(now));
                good_since = if all { good_since.or(Some(now)) } else { None };
                if let Judgement::Proven(_) = judgement {
                    prop_assert!(good_since.is_some_and(|since| now - since >= 5));
                }
                if all && good_since.is_some_and(|since| now - since >= 5) {
                    prop_assert!(matches!(judgement, Judgement::Proven(_)));
                }
            }
        }
    }
}
