//! The size of the datastore, and the alarms that come with it.

use super::{Answer, Check, Need, Question, Weight, bytes, listed};
use crate::fact::Fact;
use crate::inventory::{Datastore, EtcdLocal, Node, SqliteFiles};

pub(super) const CHECK: Check = Check {
    code: "DATASTORE-SIZE",
    number: 24,
    title: "the datastore has room to grow, and no alarm",
    why: "at its quota etcd turns read-only for the whole cluster, and a database that is not compacted makes every start \
          slow",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

/// etcd's own default, which K3s does not change.
const QUOTA: u64 = 2 << 30;
const SQLITE_DB: u64 = 1 << 30;
const SQLITE_WAL: u64 = 256 << 20;

fn judge(question: &Question<'_>) -> Vec<Answer> {
    match &question.inventory.datastore {
        Fact::Unknown(why) => vec![Answer::unknown("cluster", "the datastore", why)],
        Fact::Known(Datastore::External) => vec![Answer::pass("an external datastore has limits of its own")],
        Fact::Known(Datastore::EmbeddedEtcd { .. }) => question
            .servers()
            .filter_map(|(node, host)| Some((node, host.etcd.as_ref()?)))
            .flat_map(|(node, etcd)| match etcd {
                Fact::Known(etcd) => of_etcd(node, etcd),
                Fact::Unknown(why) => vec![Answer::unknown(&node.name, "the size of its etcd", why)],
            })
            .collect(),
        Fact::Known(Datastore::Sqlite) => question
            .servers()
            .flat_map(|(node, host)| match &host.sqlite {
                Some(Fact::Known(files)) => of_sqlite(node, files),
                Some(Fact::Unknown(why)) => vec![Answer::unknown(&node.name, "the size of its database", why)],
                None => vec![Answer::unknown(&node.name, "the size of its database", "it was not looked at")],
            })
            .collect(),
    }
}

fn of_etcd(node: &Node, etcd: &EtcdLocal) -> Vec<Answer> {
    let name = &node.name;
    let mut answers = Vec::new();
    let quota = etcd.quota_bytes.known().copied().filter(|q| *q > 0).unwrap_or(QUOTA);
    match &etcd.db_bytes {
        // More than 80 %.
        Fact::Known(size) if size.saturating_mul(5) > quota.saturating_mul(4) => answers.push(
            Answer::block(name, format!("etcd on {name} is {} of the {} that it may be", bytes(*size), bytes(quota)))
                .fact(format!("on {name}, curl http://127.0.0.1:2381/metrics: etcd_mvcc_db_total_size_in_bytes"))
                .remedy("delete what fills it (events, old Helm release Secrets), defragment, or raise `etcd-arg: quota-backend-bytes`"),
        ),
        Fact::Known(_) => {}
        Fact::Unknown(why) => answers.push(Answer::unknown(name, "the size of its etcd", why)),
    }
    match &etcd.alarms {
        Fact::Known(alarms) if alarms.is_empty() => {}
        Fact::Known(alarms) => answers.push(
            Answer::block(name, format!("etcd on {name} has raised {}", listed(alarms)))
                .fact(format!("on {name}, curl http://127.0.0.1:2381/health"))
                .remedy("NOSPACE: compact, defragment, then disarm the alarm; CORRUPT: replace the member"),
        ),
        Fact::Unknown(why) => answers.push(Answer::unknown(name, "which alarms its etcd has raised", why)),
    }
    answers
}

fn of_sqlite(node: &Node, files: &SqliteFiles) -> Vec<Answer> {
    let name = &node.name;
    let mut answers = Vec::new();
    for (size, limit, path) in
        [(files.db_bytes, SQLITE_DB, files.path.clone()), (files.wal_bytes, SQLITE_WAL, format!("{}-wal", files.path))]
    {
        if size > limit {
            answers.push(
                Answer::block(name, format!("{path} on {name} is {}, above {}", bytes(size), bytes(limit)))
                    .fact(format!("on {name}, ls -l {path}"))
                    .remedy("kine's compaction has fallen behind: restart k3s at a quiet time and watch whether it shrinks; else stop k3s and VACUUM the database"),
            );
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{ha, host_mut, sqlite};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    fn etcd(change: impl Fn(&mut EtcdLocal)) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        if let Some(Fact::Known(etcd)) = &mut host_mut(&mut inventory, "s2").etcd {
            change(etcd);
        }
        Case::of(&inventory)
    }

    #[test]
    fn four_fifths_of_the_quota_are_the_limit() {
        blocks(&etcd(|e| e.db_bytes = Fact::Known(QUOTA / 5 * 4 + 5)).run(), "DATASTORE-SIZE", "etcd on s2 is");
        passes(&etcd(|e| e.db_bytes = Fact::Known(QUOTA / 5 * 4)).run(), "DATASTORE-SIZE");
        let raised = etcd(|e| (e.db_bytes, e.quota_bytes) = (Fact::Known(QUOTA), Fact::Known(4 * QUOTA)));
        passes(&raised.run(), "DATASTORE-SIZE");
        let no_quota = etcd(|e| (e.db_bytes, e.quota_bytes) = (Fact::Known(QUOTA), Fact::unknown("not told")));
        blocks(&no_quota.run(), "DATASTORE-SIZE", "etcd on s2 is");
    }

    #[test]
    fn alarms_block_and_so_does_not_knowing_them() {
        let alarm = etcd(|e| e.alarms = Fact::Known(vec!["NOSPACE".to_owned()]));
        blocks(&alarm.run(), "DATASTORE-SIZE", "has raised NOSPACE");
        unknown(&etcd(|e| e.alarms = Fact::unknown("not healthy")).run(), "DATASTORE-SIZE", "which alarms");
        unknown(&etcd(|e| e.db_bytes = Fact::unknown("not told")).run(), "DATASTORE-SIZE", "the size");
    }

    #[test]
    fn sqlite_has_limits_for_its_database_and_its_log() {
        let with = |db_bytes, wal_bytes| {
            let mut inventory = sqlite("v1.36.3+k3s1");
            if let Some(Fact::Known(files)) = &mut host_mut(&mut inventory, "s1").sqlite {
                (files.db_bytes, files.wal_bytes) = (db_bytes, wal_bytes);
            }
            Case::of(&inventory)
        };
        passes(&with(SQLITE_DB, SQLITE_WAL).run(), "DATASTORE-SIZE");
        blocks(&with(SQLITE_DB + 1, 0).run(), "DATASTORE-SIZE", "state.db on s1");
        blocks(&with(0, SQLITE_WAL + 1).run(), "DATASTORE-SIZE", "state.db-wal on s1");
    }
}
