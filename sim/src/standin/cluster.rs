//! The servers of a cluster as one store: a leader is elected, a write counts once a majority of the voters has it on
//! the disk, a read once the leader has confirmed that it still leads.
//!
//! It is Raft with a log of whole writes: an entry is known by its term and the revision it leads to, and a member whose
//! last entry is not the leader's gets the whole store. A server with SQLite is a cluster of one.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::client::{Client, NoAnswer};
use super::disk::{Disk, Kept, Log};
use super::{fatal, log};
use crate::apiserver::store::{Op, Store};
use crate::apiserver::{About, Answer, Body, Request, answer};

/// One write, or several that belong together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    pub(crate) ops: Vec<Op>,
    /// The revision that it leads to.
    pub(crate) after: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) id: u64,
    /// `<node>-<hash>`.
    pub(crate) name: String,
    /// `host:2380`.
    pub(crate) peer: String,
    pub(crate) learner: bool,
}

/// Where the members are listed in the store, so that a change of them is a write like others.
const MEMBERS: &str = "/standin/members";
/// What a new leader writes: it decides what came before.
const LEADER: &str = "/standin/leader";

/// The cluster that a server with SQLite is: it has no list of members.
const ALONE: u64 = 0;

const HEARTBEAT: Duration = Duration::from_millis(100);
/// How long a follower waits for its leader; who comes first by name gives up first.
const PATIENCE: Duration = Duration::from_millis(1000);
const PATIENCE_STEP: Duration = Duration::from_millis(250);
/// A leader that a majority has not answered for so long is none.
const LEASE: Duration = Duration::from_millis(700);
const CALL: Duration = Duration::from_secs(1);
const COMMIT: Duration = Duration::from_secs(3);
/// Entries kept for members that are a little behind.
const TAIL: usize = 500;

pub(crate) struct Cluster {
    inner: Mutex<Inner>,
    /// Held while memory and disk change together. Taken before `inner`.
    disk: tokio::sync::Mutex<Disk>,
    /// Writes come one after the other. Taken before `disk`.
    turn: tokio::sync::Mutex<()>,
    revision: watch::Sender<u64>,
    /// For members that wait for something to send.
    moved: watch::Sender<u64>,
    version: String,
    tls: Option<TlsConnector>,
    alone: bool,
    clients: Mutex<BTreeMap<String, Arc<Client>>>,
}

struct Inner {
    kept: Kept,
    role: Role,
    leader: Option<u64>,
    heard: Instant,
    commit: u64,
    tail: VecDeque<Entry>,
    /// What the other members have and when they last answered, as the leader knows it.
    others: BTreeMap<u64, Other>,
    changes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Follower,
    Leader,
}

#[derive(Clone, Copy, Default)]
struct Other {
    has: Option<(u64, u64)>,
    answered: Option<Instant>,
    since: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct Append {
    cluster: u64,
    term: u64,
    leader: u64,
    before: (u64, u64),
    entries: Vec<Entry>,
    commit: u64,
    /// The whole store, for a member that is not at `before`.
    whole: Option<(u64, Store)>,
}

#[derive(Serialize, Deserialize)]
struct Appended {
    term: u64,
    ok: bool,
    has: (u64, u64),
}

#[derive(Serialize, Deserialize)]
struct Ask {
    cluster: u64,
    term: u64,
    candidate: u64,
    has: (u64, u64),
    /// The leader asked for it: it goes away.
    handed_over: bool,
}

#[derive(Serialize, Deserialize)]
struct Vote {
    term: u64,
    granted: bool,
}

/// What etcd tells of itself on its port for metrics.
pub(crate) struct Health {
    pub(crate) id: u64,
    pub(crate) has_leader: bool,
    pub(crate) leads: bool,
    pub(crate) learner: bool,
    pub(crate) revision: u64,
    pub(crate) bytes: usize,
    pub(crate) fsync: Vec<f64>,
}

fn members_of(store: &Store) -> Vec<Member> {
    let list = store.get(MEMBERS).map(|m| m["members"].clone()).unwrap_or_default();
    serde_json::from_value(list).unwrap_or_default()
}

fn write_members(store: &mut Store, members: &[Member]) {
    store.put(MEMBERS, json!({ "metadata": {}, "members": members }), Timestamp::now());
}

impl Inner {
    fn has(&self) -> (u64, u64) {
        (self.kept.last_term, self.kept.store.revision)
    }

    fn voters(&self) -> Vec<u64> {
        if self.kept.cluster == ALONE {
            return vec![self.kept.member];
        }
        members_of(&self.kept.store).iter().filter(|m| !m.learner).map(|m| m.id).collect()
    }

    /// Follows a term that another member has shown.
    fn newer_term(&mut self, term: u64) -> bool {
        let newer = term > self.kept.term;
        if newer {
            (self.kept.term, self.kept.voted, self.role, self.leader) = (term, None, Role::Follower, None);
        }
        newer
    }

    /// What a majority of the voters has is decided, if it is of this leader's own term.
    fn advance(&mut self) {
        if self.role != Role::Leader || self.kept.last_term != self.kept.term {
            return;
        }
        let mine = self.kept.member;
        let reach = |id: &u64| match *id == mine {
            true => self.kept.store.revision,
            false => self.others.get(id).and_then(|o| o.has).filter(|h| h.0 == self.kept.term).map_or(0, |h| h.1),
        };
        let mut reached: Vec<u64> = self.voters().iter().map(reach).collect();
        reached.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(decided) = reached.get(reached.len() / 2) {
            self.commit = self.commit.max(*decided);
        }
    }

    /// Whether a majority of the voters has answered this leader lately.
    fn confirmed(&self, within: Duration) -> bool {
        let voters = self.voters();
        let fresh = |id: &&u64| {
            **id == self.kept.member
                || self.others.get(id).and_then(|o| o.answered).is_some_and(|at| at.elapsed() < within)
        };
        self.role == Role::Leader && voters.iter().filter(fresh).count() > voters.len() / 2
    }
}

impl Cluster {
    /// The cluster of one that a server with SQLite is.
    pub(crate) fn alone(disk: Disk, store: Store, version: &str) -> Arc<Self> {
        let kept = Kept { cluster: ALONE, member: 1, term: 1, voted: None, last_term: 1, store };
        let cluster = Self::new(disk, kept, version, None);
        {
            let mut inner = cluster.inner();
            (inner.role, inner.leader) = (Role::Leader, Some(1));
            inner.commit = inner.kept.store.revision;
        }
        cluster
    }

    /// A member that was here before.
    pub(crate) fn member(folder: &Path, version: &str, tls: TlsConnector) -> Result<Arc<Self>, String> {
        let (log, kept) = Log::open(folder)?;
        Ok(Self::new(Disk::Log(log), kept, version, Some(tls)))
    }

    /// Makes a new cluster with one member, or one from an older store: a reset.
    pub(crate) fn found(folder: &Path, mut store: Store, member: &Member, cluster: u64) -> Result<(), String> {
        write_members(&mut store, std::slice::from_ref(member));
        store.take_written();
        let kept = Kept { cluster, member: member.id, term: 1, voted: None, last_term: 1, store };
        Log::create(folder, &kept).map(drop)
    }

    /// Makes a member that knows nothing yet: the leader sends it everything.
    pub(crate) fn join(folder: &Path, cluster: u64, member: u64) -> Result<(), String> {
        let kept = Kept { cluster, member, term: 0, voted: None, last_term: 0, store: Store::at(0) };
        Log::create(folder, &kept).map(drop)
    }

    fn new(disk: Disk, kept: Kept, version: &str, tls: Option<TlsConnector>) -> Arc<Self> {
        let inner = Inner {
            role: Role::Follower,
            leader: None,
            heard: Instant::now(),
            commit: 0,
            tail: VecDeque::new(),
            others: BTreeMap::new(),
            changes: 0,
            kept,
        };
        Arc::new(Self {
            alone: tls.is_none(),
            revision: watch::channel(inner.kept.store.revision).0,
            inner: Mutex::new(inner),
            disk: tokio::sync::Mutex::new(disk),
            turn: tokio::sync::Mutex::new(()),
            moved: watch::channel(0).0,
            version: version.to_owned(),
            tls,
            clients: Mutex::default(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all who wait that something moved.
    fn announce(&self) {
        let (revision, changes) = {
            let mut inner = self.inner();
            inner.changes += 1;
            (inner.kept.store.revision, inner.changes)
        };
        self.revision.send_replace(revision);
        self.moved.send_replace(changes);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub(crate) fn look<R>(&self, see: impl FnOnce(&Store) -> R) -> R {
        see(&self.inner().kept.store)
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.look(members_of)
    }

    pub(crate) fn id(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.kept.cluster, inner.kept.member)
    }

    pub(crate) fn leads(&self) -> bool {
        self.inner().role == Role::Leader
    }

    /// The members that the leader has heard of lately, itself among them.
    pub(crate) fn alive(&self) -> Vec<u64> {
        let inner = self.inner();
        let fresh =
            |(id, o): (&u64, &Other)| o.answered.filter(|at| at.elapsed() < Duration::from_secs(3)).map(|_| *id);
        inner.others.iter().filter_map(fresh).chain([inner.kept.member]).collect()
    }

    /// Whether this server could answer now: it has a leader, and is no learner.
    pub(crate) fn serves(&self) -> bool {
        let inner = self.inner();
        self.alone || {
            let following = inner.leader.is_some() && inner.heard.elapsed() < PATIENCE;
            let votes = inner.voters().contains(&inner.kept.member);
            votes && (inner.confirmed(LEASE) || (inner.role == Role::Follower && following))
        }
    }

    pub(crate) async fn health(&self) -> Health {
        let fsync = match &*self.disk.lock().await {
            Disk::Log(log) => log.took.clone(),
            Disk::Sqlite(_) => Vec::new(),
        };
        let inner = self.inner();
        let me = inner.kept.member;
        let bytes = inner.kept.store.with_prefix("/").map(|(key, object)| key.len() + object.to_string().len()).sum();
        Health {
            id: me,
            has_leader: inner.confirmed(LEASE)
                || (inner.leader.is_some() && inner.role == Role::Follower && inner.heard.elapsed() < PATIENCE),
            leads: inner.role == Role::Leader,
            learner: !inner.voters().contains(&me),
            revision: inner.kept.store.revision,
            bytes,
            fsync,
        }
    }

    // --------------------------------------------------------------------------------------------- reads and writes

    /// Returns once this server knows everything that was decided before.
    pub(crate) async fn barrier(&self) -> Result<(), Answer> {
        if self.alone {
            return Ok(());
        }
        let deadline = Instant::now() + CALL;
        loop {
            if let Some(revision) = self.decided().await {
                let mut known = self.revision.subscribe();
                let reached = timeout_at(deadline, known.wait_for(|r| *r >= revision)).await;
                return reached.map(drop).map_err(|_| no_leader());
            }
            if Instant::now() > deadline {
                return Err(no_leader());
            }
            sleep(HEARTBEAT / 2).await;
        }
    }

    async fn decided(&self) -> Option<u64> {
        let leader = {
            let inner = self.inner();
            if inner.role == Role::Leader {
                // What is written and not decided yet may be seen here, too.
                return inner.confirmed(LEASE).then_some(inner.commit);
            }
            inner.leader?
        };
        let answer = self.call::<Value>(leader, "decided", &json!({}), CALL).await.ok()?;
        answer["decided"].as_u64()
    }

    /// Performs a request that changes something: here if this server leads, else at the leader.
    pub(crate) async fn request(&self, request: &Request) -> Answer {
        let deadline = Instant::now() + COMMIT;
        loop {
            let leader = self.inner().leader;
            match leader {
                Some(id) if id == self.inner().kept.member => {
                    let version = self.version.clone();
                    return self
                        .write(|store| answer(store, request, &About { version: &version, now: Timestamp::now() }))
                        .await;
                }
                Some(id) => match self.call::<Answer>(id, "request", request, COMMIT).await {
                    Ok(answer) => return answer,
                    // That leader is gone: the next one gets it.
                    Err(no) if !no.sent && Instant::now() < deadline => sleep(HEARTBEAT / 2).await,
                    // It may have been done: only who asked can tell what to do.
                    Err(no) => {
                        return Answer::refusal(504, "Timeout", format!("etcdserver: request timed out ({})", no.why));
                    }
                },
                None if Instant::now() > deadline => return no_leader(),
                None => sleep(HEARTBEAT / 2).await,
            }
        }
    }

    /// Changes the store, if this server leads and a majority follows.
    pub(crate) async fn write(&self, change: impl FnOnce(&mut Store) -> Answer) -> Answer {
        let _turn = self.turn.lock().await;
        let (answer, term, after) = {
            let mut disk = self.disk.lock().await;
            let (answer, entry) = {
                let mut inner = self.inner();
                if !self.alone && !inner.confirmed(LEASE) {
                    return no_leader();
                }
                let answer = change(&mut inner.kept.store);
                let ops = inner.kept.store.take_written();
                if ops.is_empty() {
                    return answer;
                }
                let term = inner.kept.term;
                inner.kept.last_term = term;
                let entry = Entry { term, ops, after: inner.kept.store.revision };
                inner.tail.push_back(entry.clone());
                if inner.tail.len() > TAIL {
                    inner.tail.pop_front();
                }
                (answer, entry)
            };
            if let Err(why) = disk.append(&entry, || self.inner().kept.clone()).await {
                fatal(&why);
            }
            self.inner().advance();
            (answer, entry.term, entry.after)
        };
        self.announce();
        let decided = async {
            let mut moved = self.moved.subscribe();
            loop {
                moved.mark_unchanged();
                {
                    let inner = self.inner();
                    if inner.kept.term != term {
                        return false;
                    }
                    if inner.commit >= after {
                        return true;
                    }
                }
                if moved.changed().await.is_err() {
                    return false;
                }
            }
        };
        match timeout(COMMIT, decided).await {
            Ok(true) => answer,
            _ => Answer::refusal(504, "Timeout", "etcdserver: request timed out"),
        }
    }

    // -------------------------------------------------------------------------------------------------- membership

    /// Takes a new server in, as a learner. Only at the leader.
    pub(crate) async fn add(&self, name: &str, node: &str, peer: &str) -> Answer {
        let members = self.members();
        if members.iter().any(|m| m.name.rsplit_once('-').is_some_and(|(n, _)| n == node)) {
            return Answer::refusal(
                409,
                "Conflict",
                format!("duplicate node name found, please use a unique name for this node ({node})"),
            );
        }
        if members.iter().any(|m| m.learner) {
            return Answer::refusal(503, "ServiceUnavailable", "etcdserver: too many learner members in cluster");
        }
        let new = Member { id: super::random_number(), name: name.to_owned(), peer: peer.to_owned(), learner: true };
        let cluster = self.id().0;
        self.write(|store| {
            let mut members = members_of(store);
            members.push(new.clone());
            write_members(store, &members);
            Answer::json(200, json!({ "cluster": cluster, "member": new.id }))
        })
        .await
    }

    /// Makes voters of learners that have caught up for a while.
    pub(crate) async fn promote(&self) {
        let ready = {
            let inner = self.inner();
            let settled = |m: &Member| {
                inner.others.get(&m.id).is_some_and(|o| {
                    o.answered.is_some_and(|at| at.elapsed() < CALL)
                        && o.has.is_some_and(|h| h.0 == inner.kept.term)
                        && o.since.is_some_and(|at| at.elapsed() > CALL)
                })
            };
            members_of(&inner.kept.store).into_iter().find(|m| m.learner && settled(m))
        };
        let Some(ready) = ready.filter(|_| self.leads()) else { return };
        log("info", &format!("Promoted learner member {}", ready.name));
        self.write(|store| {
            let mut members = members_of(store);
            members.iter_mut().filter(|m| m.id == ready.id).for_each(|m| m.learner = false);
            write_members(store, &members);
            Answer::json(200, json!({}))
        })
        .await;
    }

    // --------------------------------------------------------------------------------------------------- elections

    /// Keeps the member going: elections, heartbeats, writes to the others. Never returns.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut sending: BTreeMap<u64, tokio::task::JoinHandle<()>> = BTreeMap::new();
        let mut checked = Instant::now();
        loop {
            let me = self.id().1;
            for member in self.members().into_iter().filter(|m| m.id != me) {
                let task = sending.get(&member.id).filter(|t| !t.is_finished());
                if task.is_none() {
                    sending.insert(member.id, tokio::spawn(self.clone().send_to(member.id)));
                }
            }
            // After a pause of the whole process nobody else is to blame for the silence.
            let paused = checked.elapsed() > PATIENCE / 2;
            checked = Instant::now();
            let patience = {
                let mut inner = self.inner();
                if paused {
                    inner.heard = Instant::now();
                }
                if inner.role == Role::Leader && !inner.confirmed(PATIENCE) {
                    log("warning", "etcd: lost leader: a majority of the members does not answer");
                    (inner.role, inner.leader) = (Role::Follower, None);
                }
                let mut voters = members_of(&inner.kept.store);
                voters.retain(|m| !m.learner);
                voters.sort_by(|a, b| a.name.cmp(&b.name));
                let rank = voters.iter().position(|m| m.id == me).and_then(|r| u32::try_from(r).ok());
                let quick = voters.len() == 1;
                rank.filter(|_| inner.role == Role::Follower)
                    .map(|rank| if quick { Duration::ZERO } else { PATIENCE + PATIENCE_STEP * rank })
                    .filter(|patience| inner.heard.elapsed() >= *patience)
            };
            if patience.is_some() {
                self.campaign(false).await;
            }
            sleep(HEARTBEAT / 2).await;
        }
    }

    async fn campaign(&self, handed_over: bool) {
        let (ask, voters) = {
            let mut disk = self.disk.lock().await;
            let (term, me) = {
                let mut inner = self.inner();
                inner.kept.term += 1;
                inner.kept.voted = Some(inner.kept.member);
                (inner.leader, inner.heard) = (None, Instant::now());
                (inner.kept.term, inner.kept.member)
            };
            if let Err(why) = disk.term(term, Some(me)) {
                fatal(&why);
            }
            let inner = self.inner();
            let ask = Ask { cluster: inner.kept.cluster, term, candidate: me, has: inner.has(), handed_over };
            (ask, inner.voters())
        };
        let calls = voters
            .iter()
            .filter(|id| **id != ask.candidate)
            .map(|id| self.call::<Vote>(*id, "vote", &ask, PATIENCE / 2));
        let votes: Vec<Vote> = futures_util::future::join_all(calls).await.into_iter().flatten().collect();
        let granted = votes.iter().filter(|v| v.granted && v.term == ask.term).count() + 1;
        {
            let mut inner = self.inner();
            let newest = votes.iter().map(|v| v.term).max().unwrap_or(0);
            inner.newer_term(newest);
            if inner.kept.term != ask.term || granted <= voters.len() / 2 {
                return;
            }
            (inner.role, inner.leader) = (Role::Leader, Some(ask.candidate));
            inner.tail.clear();
            // Who voted has just answered.
            let now = Instant::now();
            inner.others = voters.iter().map(|id| (*id, Other { answered: Some(now), ..Other::default() })).collect();
        }
        log("info", &format!("etcd: elected leader at term {}", ask.term));
        self.announce();
        let decides = self.write(|store| {
            store.put(LEADER, json!({ "metadata": {}, "member": ask.candidate, "term": ask.term }), Timestamp::now());
            Answer::text(200, "ok")
        });
        decides.await;
    }

    /// Gives the lead to a member that has everything, before this one goes away.
    pub(crate) async fn hand_over(&self) {
        let successor = {
            let inner = self.inner();
            let has = inner.has();
            let fits = |id: &u64| inner.others.get(id).is_some_and(|o| o.has == Some(has));
            inner.voters().into_iter().find(fits).filter(|_| inner.role == Role::Leader)
        };
        if let Some(successor) = successor {
            let _ = self.call::<Value>(successor, "campaign", &json!({}), CALL).await;
        }
    }

    /// Brings one other member what this one has, for as long as both are members and this one leads.
    async fn send_to(self: Arc<Self>, id: u64) {
        let mut moved = self.moved.subscribe();
        while self.members().iter().any(|m| m.id == id) {
            moved.mark_unchanged();
            let append = {
                let inner = self.inner();
                (inner.role == Role::Leader).then(|| {
                    let has = inner.others.get(&id).and_then(|o| o.has);
                    let entries: Option<Vec<Entry>> = has.and_then(|has| {
                        let at = match has == inner.has() {
                            true => inner.tail.len(),
                            false => inner.tail.iter().position(|e| (e.term, e.after) == has)? + 1,
                        };
                        Some(inner.tail.range(at..).cloned().collect())
                    });
                    let whole = entries.is_none().then(|| (inner.kept.last_term, inner.kept.store.clone()));
                    Append {
                        cluster: inner.kept.cluster,
                        term: inner.kept.term,
                        leader: inner.kept.member,
                        before: has.unwrap_or_default(),
                        entries: entries.unwrap_or_default(),
                        commit: inner.commit,
                        // Not before it is known that the member has something else.
                        whole: whole.filter(|_| has.is_some()),
                    }
                })
            };
            if let Some(append) = append {
                let sent = Instant::now();
                if let Ok(answer) = self.call::<Appended>(id, "append", &append, CALL).await {
                    self.heard_from(id, &append, &answer, sent).await;
                    if !answer.ok {
                        continue;
                    }
                }
            }
            let _ = timeout(HEARTBEAT, moved.changed()).await;
        }
    }

    async fn heard_from(&self, id: u64, append: &Append, answer: &Appended, sent: Instant) {
        let newer = {
            let mut inner = self.inner();
            if inner.newer_term(answer.term) {
                true
            } else {
                if inner.kept.term == append.term && inner.role == Role::Leader {
                    let other = inner.others.entry(id).or_default();
                    other.answered = Some(sent);
                    other.has = Some(answer.has);
                    if answer.ok {
                        other.since.get_or_insert(sent);
                    } else {
                        other.since = None;
                    }
                    inner.advance();
                }
                false
            }
        };
        if newer {
            let mut disk = self.disk.lock().await;
            let (term, voted) = {
                let inner = self.inner();
                (inner.kept.term, inner.kept.voted)
            };
            if let Err(why) = disk.term(term, voted) {
                fatal(&why);
            }
        } else if answer.ok && append.entries.is_empty() && append.whole.is_none() {
            return;
        }
        self.announce();
    }

    // ------------------------------------------------------------------------------------------- what others ask

    async fn call<T: DeserializeOwned>(
        &self,
        id: u64,
        what: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<T, NoAnswer> {
        let member = self.members().into_iter().find(|m| m.id == id);
        let peer = member.ok_or_else(|| NoAnswer::not_sent("it is no member any more"))?.peer;
        let tls = self.tls.clone().ok_or_else(|| NoAnswer::not_sent("there are no other members"))?;
        let lane = match what {
            // A write that waits must not hold up heartbeats.
            "append" | "vote" => "raft",
            other => other,
        };
        let client = {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.entry(format!("{peer} {lane}")).or_insert_with(|| Arc::new(Client::new(peer, tls))).clone()
        };
        let body = serde_json::to_value(body).map_err(NoAnswer::not_sent)?;
        let answer = client.send(&Request::new("POST", &format!("/raft/{what}"), Some(&body)), within).await?;
        match answer.body {
            Body::Json(value) if answer.code == 200 => serde_json::from_value(value).map_err(NoAnswer::sent),
            other => Err(NoAnswer::sent(format!("{other:?}"))),
        }
    }

    /// Answers another member.
    pub(crate) async fn peer(&self, request: &Request) -> Answer {
        let parsed = serde_json::from_str::<Value>(&request.body).unwrap_or_default();
        let result = match request.path.as_str() {
            "/raft/append" => self.with(parsed, async |a| self.append(a).await).await,
            "/raft/vote" => self.with(parsed, async |a| self.vote(a).await).await,
            "/raft/decided" => {
                let inner = self.inner();
                Ok(json!({ "decided": inner.confirmed(LEASE).then_some(inner.commit) }))
            }
            "/raft/request" => self.with(parsed, async |request: Request| Ok(self.at_leader(&request).await)).await,
            "/raft/campaign" => {
                self.campaign(true).await;
                Ok(json!({}))
            }
            _ => Err("no such call".to_owned()),
        };
        match result {
            Ok(value) => Answer::json(200, value),
            Err(why) => Answer::text(400, why),
        }
    }

    /// A request that another server passed on; not passed on again.
    async fn at_leader(&self, request: &Request) -> Answer {
        if request.path == super::server::JOIN {
            let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
            let word = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            return self.add(&word("name"), &word("node"), &word("peer")).await;
        }
        let version = self.version.clone();
        self.write(|store| answer(store, request, &About { version: &version, now: Timestamp::now() })).await
    }

    /// Takes a server in, here or at the leader.
    pub(crate) async fn take_in(&self, request: &Request) -> Answer {
        let leader = self.inner().leader;
        match leader {
            Some(id) if id == self.id().1 => self.at_leader(request).await,
            Some(id) => self.call(id, "request", request, COMMIT).await.unwrap_or_else(|_| no_leader()),
            None => no_leader(),
        }
    }

    async fn with<A: DeserializeOwned, R: Serialize>(
        &self,
        body: Value,
        work: impl AsyncFnOnce(A) -> Result<R, String>,
    ) -> Result<Value, String> {
        let argument = serde_json::from_value(body).map_err(|e| e.to_string())?;
        serde_json::to_value(work(argument).await?).map_err(|e| e.to_string())
    }

    async fn append(&self, append: Append) -> Result<Appended, String> {
        let mut disk = self.disk.lock().await;
        let (ok, newer, entries, whole, kept) = {
            let mut inner = self.inner();
            if append.cluster != inner.kept.cluster {
                return Err("this member is of another cluster".to_owned());
            }
            if append.term < inner.kept.term {
                return Ok(Appended { term: inner.kept.term, ok: false, has: inner.has() });
            }
            let newer = inner.newer_term(append.term);
            (inner.role, inner.leader, inner.heard) = (Role::Follower, Some(append.leader), Instant::now());
            let mut whole = false;
            let mut entries = Vec::new();
            let ok = if let Some((last_term, store)) = append.whole {
                (inner.kept.last_term, inner.kept.store) = (last_term, store.loaded());
                whole = true;
                true
            } else if append.before == inner.has() {
                for entry in append.entries {
                    inner.kept.last_term = entry.term;
                    entry.ops.iter().for_each(|op| inner.kept.store.apply(op.clone()));
                    entries.push(entry);
                }
                inner.kept.store.take_written();
                true
            } else {
                false
            };
            if ok {
                inner.commit = inner.commit.max(append.commit.min(inner.kept.store.revision));
            }
            (ok, newer.then_some(inner.kept.term), entries, whole, whole.then(|| inner.kept.clone()))
        };
        let kept_on_disk = async {
            if let Some(term) = newer {
                disk.term(term, None)?;
            }
            if let Some(kept) = &kept {
                disk.replace(kept)?;
            }
            for entry in &entries {
                disk.append(entry, || self.inner().kept.clone()).await?;
            }
            Ok::<_, String>(())
        };
        if let Err(why) = kept_on_disk.await {
            fatal(&why);
        }
        drop(disk);
        if whole || !entries.is_empty() {
            self.announce();
        }
        let inner = self.inner();
        Ok(Appended { term: inner.kept.term, ok, has: inner.has() })
    }

    async fn vote(&self, ask: Ask) -> Result<Vote, String> {
        let mut disk = self.disk.lock().await;
        let (granted, term, voted, write) = {
            let mut inner = self.inner();
            if ask.cluster != inner.kept.cluster {
                return Err("this member is of another cluster".to_owned());
            }
            // Whoever hears a leader lets nobody disturb it.
            let content = inner.role == Role::Leader && inner.confirmed(LEASE)
                || inner.role == Role::Follower && inner.leader.is_some() && inner.heard.elapsed() < LEASE;
            if content && !ask.handed_over {
                return Ok(Vote { term: inner.kept.term, granted: false });
            }
            let newer = inner.newer_term(ask.term);
            let free = inner.kept.voted.is_none_or(|v| v == ask.candidate);
            let granted = ask.term == inner.kept.term && free && ask.has >= inner.has();
            if granted {
                inner.kept.voted = Some(ask.candidate);
                inner.heard = Instant::now();
            }
            (granted, inner.kept.term, inner.kept.voted, newer || granted)
        };
        if write && let Err(why) = disk.term(term, voted) {
            fatal(&why);
        }
        Ok(Vote { term, granted })
    }
}

fn no_leader() -> Answer {
    Answer::refusal(503, "ServiceUnavailable", "etcdserver: no leader")
}
