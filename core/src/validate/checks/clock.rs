//! The hosts' clocks against ours.

use jiff::SignedDuration;

use super::{Answer, Check, Need, Question, Weight};
use crate::fact::Fact;

pub(super) const CHECK: Check = Check {
    code: "CLOCK",
    number: 25,
    title: "every clock is close to ours",
    why: "certificates, leases and tokens are judged by each host's own clock: one that is wrong refuses what is valid",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

const WARN: SignedDuration = SignedDuration::from_secs(1);
const BLOCK: SignedDuration = SignedDuration::from_secs(5);

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        let offset = match &host.clock_offset {
            Fact::Unknown(why) => {
                answers.push(Answer::unknown(&node.name, "its clock's offset", why));
                continue;
            }
            Fact::Known(offset) => *offset,
        };
        let (size, side) = (offset.abs(), if offset.is_negative() { "behind" } else { "ahead of" });
        let what = format!("the clock of {} is {} {side} ours", node.name, seconds(size));
        let answer = if size > BLOCK {
            Answer::block(&node.name, what)
        } else if size >= WARN {
            Answer::warn(&node.name, what)
        } else {
            continue;
        };
        answers.push(
            answer
                .fact(format!("on {}, date --utc: {} against here", node.name, seconds(offset)))
                .remedy("synchronise both: on the host with chrony or systemd-timesyncd, and here"),
        );
    }
    answers
}

fn seconds(duration: SignedDuration) -> String {
    let millis = duration.as_millis();
    format!("{}{}.{} s", if millis < 0 { "-" } else { "" }, millis.abs() / 1_000, millis.abs() % 1_000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{ha, host_mut};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn with(offset: Fact<SignedDuration>) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s2").clock_offset = offset;
        Case::of(&inventory)
    }

    #[test]
    fn a_second_warns_and_more_than_five_block_either_way() {
        let millis = |ms| with(Fact::Known(SignedDuration::from_millis(ms))).run();
        passes(&millis(999), "CLOCK");
        warns(&millis(1_000), "CLOCK", "1.0 s ahead of ours");
        warns(&millis(-5_000), "CLOCK", "5.0 s behind ours");
        blocks(&millis(5_001), "CLOCK", "ahead of ours");
        blocks(&millis(-600_000), "CLOCK", "600.0 s behind");
        unknown(&with(Fact::unknown("no fractions of a second")).run(), "CLOCK", "no fractions");
    }
}
