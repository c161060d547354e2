//! Encryption of Secrets that is in the middle of a change.

use std::collections::BTreeMap;

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "SECRETS-ENCRYPTION",
    number: 40,
    title: "the encryption of Secrets is the same on all servers, and not being changed",
    why: "a key rotation is done in stages, each of which every server must have seen; an update in the middle can leave a \
          server that cannot read Secrets",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

/// Stages in which nothing is left to be done.
const SETTLED: [&str; 2] = ["start", "reencrypt_finished"];

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, host) in question.servers() {
        let name = &node.name;
        let status = match &host.secrets_encryption {
            Some(Fact::Known(status)) => status,
            Some(Fact::Unknown(why)) => {
                answers.push(Answer::unknown(name, "the state of its secrets encryption", why));
                continue;
            }
            None => {
                answers.push(Answer::unknown(name, "the state of its secrets encryption", "it was not asked"));
                continue;
            }
        };
        let fact = format!("on {name}, k3s secrets-encrypt status: stage {}", status.stage);
        if !SETTLED.contains(&status.stage.as_str()) {
            answers.push(
                Answer::block(
                    name,
                    format!("the encryption of Secrets is being changed on {name}: stage {}", status.stage),
                )
                .fact(fact)
                .remedy("finish it first: prepare, rotate and reencrypt, with a restart of each server between"),
            );
        } else if status.enabled && !status.hashes_match {
            answers.push(
                Answer::block(name, format!("the servers have different encryption configurations, says {name}"))
                    .fact(fact)
                    .remedy("restart the servers one at a time; if it stays so, see the K3s documentation on secrets-encrypt"),
            );
        }
    }
    let mut hashes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in question.inventory.servers() {
        if let Some(hash) = node.object.as_ref().and_then(|o| o.encryption_hash.as_deref()) {
            hashes.entry(hash).or_default().push(node.name.as_str());
        }
    }
    if hashes.len() > 1 && answers.is_empty() {
        let shown: Vec<String> = hashes.iter().map(|(hash, names)| format!("{}: {hash}", names.join(", "))).collect();
        answers.push(
            Answer::block("cluster", "the servers have different encryption configurations")
                .fact(format!("the annotation k3s.io/encryption-config-hash of the Nodes: {}", shown.join("; ")))
                .remedy(
                    "restart the servers one at a time; if it stays so, see the K3s documentation on secrets-encrypt",
                ),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::SecretsEncryption;
    use crate::inventory::example::{ha, host_mut, node_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    fn with(status: Fact<SecretsEncryption>) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s2").secrets_encryption = Some(status);
        Case::of(&inventory)
    }

    fn status(stage: &str, hashes_match: bool) -> Fact<SecretsEncryption> {
        Fact::Known(SecretsEncryption { enabled: true, stage: stage.to_owned(), hashes_match })
    }

    #[test]
    fn a_rotation_that_is_not_finished_blocks() {
        for stage in ["prepare", "rotate", "reencrypt_request", "reencrypt_active"] {
            blocks(&with(status(stage, true)).run(), "SECRETS-ENCRYPTION", "is being changed on s2");
        }
        passes(&with(status("reencrypt_finished", true)).run(), "SECRETS-ENCRYPTION");
        passes(&with(status("start", true)).run(), "SECRETS-ENCRYPTION");
    }

    #[test]
    fn servers_that_differ_block() {
        blocks(&with(status("start", false)).run(), "SECRETS-ENCRYPTION", "different encryption");
        let mut inventory = ha("v1.36.3+k3s1");
        if let Some(object) = &mut node_mut(&mut inventory, "s3").object {
            object.encryption_hash = Some("start-9f".to_owned());
        }
        blocks(&Case::of(&inventory).run(), "SECRETS-ENCRYPTION", "different encryption");
        unknown(&with(Fact::unknown("it did not answer")).run(), "SECRETS-ENCRYPTION", "did not answer");
    }
}
