//! What brings the previous version back after a node was updated.
//!
//! A binary that starts is not enough: it has to read what the newer one left behind. What decides is the difference
//! of the component tables, not that of the version numbers: v1.33.10 to v1.33.11 is a patch of Kubernetes and a minor
//! of etcd. And it depends on how far the roll is: etcd's data stays that of the old minor until its last member is
//! new, and API servers one minor apart read each other's objects, so until then a server can go back by its binary.
//! Where a fact is missing the answer is *restore*.

use crate::apply::plan::{DatastoreKind, UndoClass};
use crate::inventory::Role;
use crate::knowledge::Knowledge;
use crate::knowledge::components::{Component, ComponentVersion, Components};
use crate::version::Version;

/// How far the roll is at a step: what still runs the old version once this step is done, this node left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub servers_after_me_still_on_from: usize,
    /// Servers without etcd do not hold etcd's version down; 0 with another datastore.
    pub etcd_members_after_me_still_on_from: usize,
}

impl Position {
    /// Where every server is an etcd member, or none is.
    pub fn before(servers: usize) -> Self {
        Self { servers_after_me_still_on_from: servers, etcd_members_after_me_still_on_from: servers }
    }
}

/// The undo class of updating a node from one version to another, and why, in words for people.
pub fn class(
    from: &Version,
    to: &Version,
    role: Role,
    datastore: DatastoreKind,
    position: Position,
    knowledge: &Knowledge,
) -> (UndoClass, Vec<String>) {
    if from == to {
        return (UndoClass::Binary, vec![format!("it stays on {from}")]);
    }
    let pair = Pair::new(from, to, knowledge);
    let mut reasons = Reasons::default();
    match role {
        Role::Agent => agent(&pair, &mut reasons),
        Role::Server => server(&pair, datastore, position, knowledge, &mut reasons),
    }
    reasons.class()
}

/// An agent keeps no cluster state; only containerd's own state on its disk can stand in the way.
fn agent(pair: &Pair<'_>, reasons: &mut Reasons) {
    containerd(pair, reasons);
    reasons.fine("an agent holds no datastore, and may be older than its servers");
}

fn server(pair: &Pair<'_>, datastore: DatastoreKind, position: Position, knowledge: &Knowledge, reasons: &mut Reasons) {
    kubernetes(pair, position, reasons);
    match datastore {
        DatastoreKind::EmbeddedEtcd => etcd(pair, position, reasons),
        DatastoreKind::Sqlite | DatastoreKind::External => kine(pair, datastore, knowledge, reasons),
    }
    containerd(pair, reasons);
}

/// Kubernetes lets API servers be one minor apart, and stores objects so that the older one reads them. Once the last
/// is new, objects may be stored in versions that the old one does not know.
fn kubernetes(pair: &Pair<'_>, position: Position, reasons: &mut Reasons) {
    let (from, to) = (pair.from.minor(), pair.to.minor());
    let left = position.servers_after_me_still_on_from;
    if from == to {
        reasons.fine(format!("Kubernetes stays on {from}"));
    } else if to.above(from) != Some(1) {
        reasons.restore(format!("Kubernetes goes from {from} to {to}, which is not one minor up"));
    } else if left > 0 {
        reasons.fine(format!("Kubernetes goes from {from} to {to} while {} the old minor", still_run(left, "server")));
    } else {
        reasons.restore(format!(
            "Kubernetes goes from {from} to {to} and no other server runs the old minor any more: what is written \
             from here on may be unreadable for it"
        ));
    }
}

/// etcd raises the cluster's version when its last member is new; from then on an older etcd refuses to start
/// ("invalid downgrade; server version is lower than determined cluster version").
fn etcd(pair: &Pair<'_>, position: Position, reasons: &mut Reasons) {
    let Some((from, to)) = pair.both(Component::Etcd, reasons) else { return };
    let left = position.etcd_members_after_me_still_on_from;
    if (from.major, from.minor) == (to.major, to.minor) {
        reasons.fine(format!("etcd stays on {}.{} ({from} to {to})", to.major, to.minor));
    } else if (to.major, to.minor) != (from.major, from.minor + 1) {
        reasons.restore(format!("etcd goes from {from} to {to}, which is not one minor up"));
    } else if left > 0 {
        reasons.fine(format!(
            "etcd goes from {from} to {to}, and its data stays that of the old minor while {} it",
            still_run(left, "member")
        ));
    } else {
        reasons.restore(format!(
            "etcd goes from {from} to {to} and its last member becomes new: from then on the old etcd refuses the data"
        ));
    }
}

/// kine changes its database at the first start of the new version, whatever the other servers run.
fn kine(pair: &Pair<'_>, datastore: DatastoreKind, knowledge: &Knowledge, reasons: &mut Reasons) {
    let Some((from, to)) = pair.both(Component::Kine, reasons) else { return };
    match knowledge.kine().between(from, to, datastore == DatastoreKind::Sqlite) {
        Err(why) => reasons.restore(why),
        Ok(changes) if changes.is_empty() => {
            reasons.fine(format!("kine keeps its database format ({from} to {to})"));
        }
        Ok(changes) => {
            for change in changes {
                reasons.restore(format!(
                    "kine goes from {from} to {to} and changes its database at the first start: since {} {}",
                    change.since, change.what
                ));
            }
        }
    }
}

fn containerd(pair: &Pair<'_>, reasons: &mut Reasons) {
    let Some((from, to)) = pair.both(Component::Containerd, reasons) else { return };
    if from.major == to.major {
        reasons.fine(format!("containerd stays on {} ({from} to {to})", to.major));
    } else {
        reasons.restore(format!(
            "containerd goes from {from} to {to}: the way back stops every pod of the node and may pull images anew, \
             which a person has to want"
        ));
    }
}

/// Two releases and what the data says of them.
struct Pair<'a> {
    from: &'a Version,
    to: &'a Version,
    rows: [(&'a Version, Option<&'a Components>); 2],
}

impl<'a> Pair<'a> {
    fn new(from: &'a Version, to: &'a Version, knowledge: &'a Knowledge) -> Self {
        Self { from, to, rows: [from, to].map(|version| (version, knowledge.components(version))) }
    }

    /// The component on both sides. What is missing becomes a reason.
    fn both(
        &self,
        component: Component,
        reasons: &mut Reasons,
    ) -> Option<(&'a ComponentVersion, &'a ComponentVersion)> {
        let [from, to] = self.rows.map(|(version, row)| {
            let found = row.and_then(|row| row.get(component));
            if found.is_none() {
                reasons.restore(match row {
                    Some(_) => format!("the {component} of {version} is not known"),
                    None => format!("{version} is not in the component table, so its {component} is not known"),
                });
            }
            found
        });
        from.zip(to)
    }
}

/// Reasons, those for a restore first: they are what a person has to read.
#[derive(Default)]
struct Reasons {
    restore: Vec<String>,
    fine: Vec<String>,
}

impl Reasons {
    fn restore(&mut self, why: impl Into<String>) {
        self.restore.push(why.into());
    }

    fn fine(&mut self, why: impl Into<String>) {
        self.fine.push(why.into());
    }

    /// With a reason for a restore, the others do not matter to anybody.
    fn class(self) -> (UndoClass, Vec<String>) {
        if self.restore.is_empty() { (UndoClass::Binary, self.fine) } else { (UndoClass::Restore, self.restore) }
    }
}

fn still_run(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 other {what} still runs"),
        _ => format!("{count} other {what}s still run"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::apply::plan::DatastoreKind::{EmbeddedEtcd, External, Sqlite};
    use crate::inventory::Role::{Agent, Server};

    fn v(text: &str) -> Version {
        text.parse().expect("a version")
    }

    struct Case {
        from: &'static str,
        to: &'static str,
        role: Role,
        datastore: DatastoreKind,
        left: usize,
        class: UndoClass,
        /// Words that one of the reasons has.
        because: &'static str,
    }

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        // A patch that keeps every component's format comes back by its binary, wherever the roll is.
        Case { from: "v1.36.3+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Binary, because: "etcd stays on 3.6" },
        Case { from: "v1.36.3+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "Kubernetes stays on v1.36" },
        Case { from: "v1.36.3+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: Sqlite, left: 0, class: UndoClass::Binary, because: "kine keeps its database format (0.16.3 to 0.16.4)" },
        Case { from: "v1.36.3+k3s1", to: "v1.36.4+k3s1", role: Agent, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "an agent holds no datastore" },
        // A build of the same Kubernetes patch is judged by its components as well.
        Case { from: "v1.33.7+k3s1", to: "v1.33.7+k3s3", role: Server, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "etcd stays on 3.5 (3.5.25-k3s1 to 3.5.26-k3s1)" },

        // A patch of Kubernetes, a minor of etcd: while a member is old, the binary; from the last one on, a restore.
        Case { from: "v1.33.10+k3s1", to: "v1.33.11+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Binary, because: "while 2 other members still run it" },
        Case { from: "v1.33.10+k3s1", to: "v1.33.11+k3s1", role: Server, datastore: EmbeddedEtcd, left: 1, class: UndoClass::Binary, because: "while 1 other member still runs it" },
        Case { from: "v1.33.10+k3s1", to: "v1.33.11+k3s1", role: Server, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Restore, because: "from then on the old etcd refuses the data" },
        // The same hop without embedded etcd: kine keeps its format, and etcd does not matter.
        Case { from: "v1.33.10+k3s1", to: "v1.33.11+k3s1", role: Server, datastore: Sqlite, left: 0, class: UndoClass::Binary, because: "kine keeps" },
        Case { from: "v1.33.10+k3s1", to: "v1.33.11+k3s1", role: Agent, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "containerd stays on 2" },
        // The way down is no update.
        Case { from: "v1.33.11+k3s1", to: "v1.33.10+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Restore, because: "not one minor up" },

        // A minor of Kubernetes.
        Case { from: "v1.35.7+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Binary, because: "while 2 other servers still run the old minor" },
        Case { from: "v1.35.7+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Restore, because: "no other server runs the old minor any more" },
        Case { from: "v1.35.7+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: Sqlite, left: 0, class: UndoClass::Restore, because: "no other server runs the old minor any more" },
        Case { from: "v1.35.7+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: External, left: 1, class: UndoClass::Binary, because: "kine keeps" },
        Case { from: "v1.35.7+k3s1", to: "v1.36.4+k3s1", role: Agent, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "may be older than its servers" },
        Case { from: "v1.34.9+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Restore, because: "not one minor up" },
        Case { from: "v1.36.5+k3s1", to: "v1.37.1+k3s1", role: Server, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Restore, because: "the old etcd refuses" },

        // kine changes the database at the first server's start, others or not.
        Case { from: "v1.35.2+k3s1", to: "v1.35.3+k3s1", role: Server, datastore: Sqlite, left: 0, class: UndoClass::Restore, because: "since 0.14.13 SQLite gets a partial index" },
        Case { from: "v1.34.1+k3s1", to: "v1.34.2+k3s1", role: Server, datastore: External, left: 2, class: UndoClass::Restore, because: "compaction record keeps its value" },
        // The same hops where the change is not in the datastore that is used.
        Case { from: "v1.35.2+k3s1", to: "v1.35.3+k3s1", role: Server, datastore: External, left: 0, class: UndoClass::Binary, because: "kine keeps" },
        Case { from: "v1.35.2+k3s1", to: "v1.35.3+k3s1", role: Server, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "etcd stays on 3.6" },

        // containerd's major.
        Case { from: "v1.32.1+k3s1", to: "v1.32.2+k3s1", role: Agent, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Restore, because: "containerd goes from 1.7.23-k3s2 to 2.0.2-k3s2" },
        Case { from: "v1.32.1+k3s1", to: "v1.32.2+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Restore, because: "containerd goes from" },
        // A minor of containerd, and a patch that nobody wrote down, are no major.
        Case { from: "v1.36.1+k3s1", to: "v1.36.2+k3s1", role: Agent, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "containerd stays on 2 (2.2.3-k3s1 to 2.3.2-k3s2)" },
        Case { from: "v1.33.12+k3s1", to: "v1.33.13+k3s1", role: Agent, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "(2.2.3-k3s1.33 to 2.2)" },

        // What is not known is a restore, on either side, for either role, also where only `+k3sN` or the patch differs.
        Case { from: "v1.35.7+k3s1", to: "v1.35.9+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Restore, because: "v1.35.9+k3s1 is not in the component table, so its etcd is not known" },
        Case { from: "v1.35.9+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Restore, because: "so its etcd is not known" },
        Case { from: "v1.36.4+k3s1", to: "v1.36.4+k3s2", role: Server, datastore: EmbeddedEtcd, left: 2, class: UndoClass::Restore, because: "v1.36.4+k3s2 is not in the component table" },
        Case { from: "v1.36.4-rc1+k3s1", to: "v1.36.4+k3s1", role: Server, datastore: Sqlite, left: 0, class: UndoClass::Restore, because: "v1.36.4-rc1+k3s1 is not in the component table, so its kine is not known" },
        Case { from: "v1.35.7+k3s1", to: "v1.35.9+k3s1", role: Agent, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Restore, because: "so its containerd is not known" },
        // A row with a gap: it matters to those who use what is missing, and to nobody else.
        Case { from: "v1.35.7+k3s1", to: "v1.35.8+k3s1", role: Server, datastore: Sqlite, left: 0, class: UndoClass::Restore, because: "the kine of v1.35.8+k3s1 is not known" },
        Case { from: "v1.35.7+k3s1", to: "v1.35.8+k3s1", role: Server, datastore: EmbeddedEtcd, left: 0, class: UndoClass::Binary, because: "etcd stays on 3.6" },
    ];

    #[test]
    fn the_class_and_its_reason() {
        for Case { from, to, role, datastore, left, class: expected, because } in CASES {
            let (is, reasons) =
                class(&v(from), &v(to), *role, *datastore, Position::before(*left), Knowledge::embedded());
            let case = format!("{role} {from} to {to}, {datastore:?}, {left} left: {is}, {reasons:?}");
            assert_eq!(is, *expected, "{case}");
            assert!(reasons.iter().any(|r| r.contains(because)), "{case}");
        }
    }

    #[test]
    fn servers_without_etcd_do_not_keep_its_version_down() {
        let last_member = Position { servers_after_me_still_on_from: 2, etcd_members_after_me_still_on_from: 0 };
        let hop = (v("v1.33.10+k3s1"), v("v1.33.11+k3s1"));
        let (is, _) = class(&hop.0, &hop.1, Server, EmbeddedEtcd, last_member, Knowledge::embedded());
        assert_eq!(is, UndoClass::Restore);
    }

    #[test]
    fn staying_needs_no_undo() {
        let unknown = v("v1.99.0+k3s1");
        let (is, _) = class(&unknown, &unknown, Server, Sqlite, Position::before(0), Knowledge::embedded());
        assert_eq!(is, UndoClass::Binary);
    }

    fn any_version() -> impl Strategy<Value = Version> {
        (31_u64..39, 0_u64..13, 1_u32..4).prop_map(|(minor, patch, build)| Version::new(1, minor, patch, build))
    }

    proptest! {
        /// Going on can only take ways back away: what is a restore early is a restore later.
        #[test]
        fn no_way_back_opens_again(from in any_version(), to in any_version(), left in 0_usize..4, sqlite: bool) {
            let datastore = if sqlite { Sqlite } else { EmbeddedEtcd };
            let at = |left| class(&from, &to, Server, datastore, Position::before(left), Knowledge::embedded());
            prop_assert!(at(left + 1).0 <= at(left).0);
        }

        /// A version without a row is never undone without a person.
        #[test]
        fn unknown_is_restore(from in any_version(), to in any_version(), server: bool, left in 0_usize..4) {
            let role = if server { Server } else { Agent };
            let (is, reasons) = class(&from, &to, role, EmbeddedEtcd, Position::before(left), Knowledge::embedded());
            let known = |version| Knowledge::embedded().components(version).is_some();
            prop_assert!(!reasons.is_empty());
            prop_assert!(is == UndoClass::Restore || from == to || (known(&from) && known(&to)));
        }
    }
}
