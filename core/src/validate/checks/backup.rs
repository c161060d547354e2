//! A way to back up the datastore. How old the backup is and whether it can be read back is judged in `apply`, which
//! makes it.

use super::{Answer, Check, Question, Weight};
use crate::fact::Fact;
use crate::inventory::Datastore;

pub(super) const CHECK: Check = Check {
    code: "BACKUP",
    number: 2,
    title: "the datastore can be backed up before it is touched",
    why: "where the previous binary cannot read what the new one wrote, only a backup brings the cluster back",
    weight: Weight::Invariant,
    needs: &[],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    match &question.inventory.datastore {
        Fact::Unknown(why) => answers.push(Answer::unknown("cluster", "the datastore", why)),
        Fact::Known(Datastore::Sqlite) => {
            if question.servers().all(|(_, host)| host.sqlite.as_ref().and_then(Fact::known).is_none()) {
                let why = "the database's files could not be seen on the server";
                answers.push(Answer::unknown("cluster", "where the SQLite database lies", why));
            }
        }
        Fact::Known(Datastore::EmbeddedEtcd { .. }) => {
            let can = |node: &&crate::inventory::Node| node.etcd_local().is_some_and(|e| e.healthy);
            if question.inventory.servers().find(can).is_none() {
                let why = "no server says of itself that its etcd is healthy (curl http://127.0.0.1:2381/health)";
                answers.push(Answer::unknown("cluster", "on which server a snapshot can be taken", why));
            }
        }
        Fact::Known(Datastore::External) => {
            let commands = question.cluster.datastore.as_ref();
            if commands.is_none_or(|c| c.backup.is_empty()) {
                answers.push(
                    Answer::block("cluster", "the datastore is external, and there is no command that backs it up")
                        .fact("kadence.yaml: `datastore.backup` is missing")
                        .remedy("name a command under `datastore.backup` that writes a dump to its standard output"),
                );
            } else if commands.is_some_and(|c| c.restore.as_ref().is_none_or(Vec::is_empty)) {
                answers.push(
                    Answer::warn("cluster", "the datastore is external, and there is no command that restores it")
                        .fact("kadence.yaml: `datastore.restore` is missing")
                        .remedy("name one under `datastore.restore`; without it a restore is refused"),
                );
            }
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::config::DatastoreCommands;
    use crate::fact::Fact;
    use crate::inventory::Datastore;
    use crate::inventory::example::{ha, host_mut, sqlite};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    #[test]
    fn an_external_datastore_needs_the_users_command() {
        let mut inventory = sqlite("v1.36.3+k3s1");
        inventory.datastore = Fact::Known(Datastore::External);
        let mut case = Case::of(&inventory);
        blocks(&case.run(), "BACKUP", "no command that backs it up");
        let backup = vec!["pg_dump".to_owned(), "k3s".to_owned()];
        case.cluster.datastore = Some(DatastoreCommands { backup: backup.clone(), restore: None });
        warns(&case.run(), "BACKUP", "no command that restores it");
        case.cluster.datastore = Some(DatastoreCommands { backup, restore: Some(vec!["psql".to_owned()]) });
        passes(&case.run(), "BACKUP");
    }

    #[test]
    fn what_cannot_be_seen_cannot_be_backed_up() {
        let mut inventory = sqlite("v1.36.3+k3s1");
        host_mut(&mut inventory, "s1").sqlite = Some(Fact::unknown("permission denied"));
        unknown(&Case::of(&inventory).run(), "BACKUP", "where the SQLite database lies");
        let mut inventory = ha("v1.36.3+k3s1");
        for name in ["s1", "s2"] {
            host_mut(&mut inventory, name).etcd = Some(Fact::unknown("no answer"));
        }
        passes(&Case::of(&inventory).run(), "BACKUP");
        host_mut(&mut inventory, "s3").etcd = Some(Fact::unknown("no answer"));
        unknown(&Case::of(&inventory).run(), "BACKUP", "on which server");
    }
}
