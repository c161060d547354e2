//! The servers' token.

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "SERVER-TOKEN",
    number: 21,
    title: "every server has the same token",
    why: "the token encrypts the cluster's certificates in the datastore: a server with another one does not start, and a \
          backup restored under another one cannot be read",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let (mut answers, mut known) = (Vec::new(), Vec::new());
    let several = question.inventory.servers().count() > 1;
    for (node, host) in question.servers().filter(|_| several) {
        match &host.token {
            Fact::Known(Some(hash)) => known.push((&node.name, hash)),
            Fact::Known(None) => answers.push(Answer::unknown(&node.name, "its server token", "it has none")),
            Fact::Unknown(why) => answers.push(Answer::unknown(&node.name, "its server token", why)),
        }
    }
    if let Some((first, hash)) = known.first() {
        let others: Vec<_> = known.iter().filter(|(_, h)| h != hash).map(|(name, _)| name).collect();
        if !others.is_empty() {
            answers.push(
                Answer::block("cluster", format!("the server token of {} is another one than that of {first}", listed(others)))
                    .fact("/var/lib/rancher/k3s/server/token on each server, compared by a keyed hash")
                    .remedy("find out which one the cluster was made with, and give it to every server (k3s token rotate changes it for all)"),
            );
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use crate::fact::Fact;
    use crate::ident::Digest;
    use crate::inventory::example::{ha, host_mut, sqlite};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    #[test]
    fn another_token_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s3").token = Fact::Known(Some(Digest::of(b"another")));
        blocks(&Case::of(&inventory).run(), "SERVER-TOKEN", "the server token of s3");
        host_mut(&mut inventory, "s3").token = Fact::unknown("permission denied");
        unknown(&Case::of(&inventory).run(), "SERVER-TOKEN", "permission denied");
        let mut alone = sqlite("v1.36.3+k3s1");
        host_mut(&mut alone, "s1").token = Fact::Known(Some(Digest::of(b"another")));
        passes(&Case::of(&alone).run(), "SERVER-TOKEN");
    }
}
