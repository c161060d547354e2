//! Certificates that end.

use jiff::SignedDuration;

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "CERTIFICATES",
    number: 25,
    title: "no certificate has ended, and no CA ends soon",
    why: "a component with an ended certificate is refused by all others, and a CA that ends takes every certificate with \
          it; K3s renews leaf certificates at a restart in their last 120 days, and CAs never",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

const CA_LEFT: SignedDuration = SignedDuration::from_hours(180 * 24);

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        let certificates = match &host.certificates {
            Fact::Unknown(why) => {
                answers.push(Answer::unknown(&node.name, "when its certificates end", why));
                continue;
            }
            Fact::Known(certificates) => certificates,
        };
        for certificate in certificates {
            let left = certificate.not_after.duration_since(question.now);
            let (path, days) = (&certificate.path, left.as_hours() / 24);
            let fact = format!("on {}, openssl x509 -enddate -noout -in {path}: {}", node.name, certificate.not_after);
            if left <= SignedDuration::ZERO {
                let remedy = if certificate.ca {
                    "rotate the CAs by hand (k3s certificate rotate-ca)"
                } else {
                    "restart K3s on this node: it renews its certificates as it starts"
                };
                answers.push(
                    Answer::block(&node.name, format!("{path} on {} has ended", node.name)).fact(fact).remedy(remedy),
                );
            } else if certificate.ca && left < CA_LEFT {
                answers.push(
                    Answer::block(&node.name, format!("the CA {path} on {} ends in {days} days", node.name))
                        .fact(fact)
                        .remedy("rotate the CAs first (k3s certificate rotate-ca): K3s does not renew them by itself"),
                );
            }
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Certificate;
    use crate::inventory::example::{ha, host_mut, now};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    fn with(hours: i64, ca: bool) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        let path = "/var/lib/rancher/k3s/server/tls/x.crt".to_owned();
        let not_after = now() + SignedDuration::from_hours(hours);
        host_mut(&mut inventory, "s1").certificates = Fact::Known(vec![Certificate { path, not_after, ca }]);
        Case::of(&inventory)
    }

    #[test]
    fn what_has_ended_blocks_and_a_ca_half_a_year_before() {
        blocks(&with(-1, false).run(), "CERTIFICATES", "has ended");
        passes(&with(1, false).run(), "CERTIFICATES");
        blocks(&with(179 * 24, true).run(), "CERTIFICATES", "ends in 179 days");
        passes(&with(180 * 24, true).run(), "CERTIFICATES");
    }

    #[test]
    fn certificates_that_are_not_known_block() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "a1").certificates = Fact::unknown("there is no certificate");
        unknown(&Case::of(&inventory).run(), "CERTIFICATES", "there is no certificate");
    }
}
