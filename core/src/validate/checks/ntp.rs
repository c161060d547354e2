//! Whether somebody keeps the clocks right.

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "NTP",
    number: 25,
    title: "every host synchronises its clock",
    why: "a clock that nobody keeps right is right today only",
    weight: Weight::Advice,
    needs: &[Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let (mut silent, mut off) = (Vec::new(), Vec::new());
    let mut reason = "";
    for (node, host) in question.hosts() {
        match &host.ntp_synchronised {
            Fact::Known(true) => {}
            Fact::Known(false) => off.push(&node.name),
            Fact::Unknown(why) => {
                reason = why;
                silent.push(&node.name);
            }
        }
    }
    let mut answers = Vec::new();
    if !off.is_empty() {
        answers.push(
            Answer::warn(listed(&off), format!("the clock of {} is not synchronised", listed(&off)))
                .fact("timedatectl show -p NTPSynchronized: no")
                .remedy("switch it on: timedatectl set-ntp true, or chrony"),
        );
    }
    if !silent.is_empty() {
        answers.push(
            Answer::unsure(
                listed(&silent),
                format!("whether the clock of {} is synchronised is not known: {reason}", listed(&silent)),
            )
            .fact("timedatectl show -p NTPSynchronized")
            .remedy("nothing for this update: the offset itself is judged by CLOCK"),
        );
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{ha, host_mut};
    use crate::validate::checks::tests::{Case, passes, unsure, warns};

    #[test]
    fn it_only_warns() {
        let mut inventory = ha("v1.36.3+k3s1");
        passes(&Case::of(&inventory).run(), "NTP");
        host_mut(&mut inventory, "s3").ntp_synchronised = Fact::unknown("no timedatectl");
        host_mut(&mut inventory, "s2").ntp_synchronised = Fact::unknown("no timedatectl");
        unsure(&Case::of(&inventory).run(), "NTP", "the clock of s2 and s3");
        host_mut(&mut inventory, "a1").ntp_synchronised = Fact::Known(false);
        warns(&Case::of(&inventory).run(), "NTP", "the clock of a1 is not synchronised");
    }
}
