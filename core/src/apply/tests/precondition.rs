use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Deserialize;

use super::tell_all;
use super::world::{But, Wish, World, glance, names};
use crate::apply::plan::{Plan, Purpose};
use crate::apply::planner;
use crate::apply::precondition::{No, Verdict, changed_since, judge, may_put_back};
use crate::ident::RolloutId;
use crate::inventory::{Inventory, example};

/// A step of a plan, and the world as it is when its turn comes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Story {
    #[expect(dead_code, reason = "for people")]
    because: String,
    /// When the plan was made.
    world: World,
    wish: Wish,
    /// The plan is the way back of an update that had these nodes updated.
    #[serde(default)]
    back: Vec<String>,
    step: String,
    /// What is different now.
    #[serde(default)]
    now: But,
    /// Nodes that this rollout has in hand.
    #[serde(default)]
    in_hand: Vec<String>,
    /// The answer before the step; for a way back of a failed node, the answer to that.
    judged: Option<String>,
    put_back: Option<String>,
}

impl Story {
    fn plan(&self, planned: &Inventory) -> Plan {
        let mut plan = self.wish.plan(planned).expect("a plan");
        if !self.back.is_empty() {
            take_back(&mut plan, &self.back);
        }
        plan
    }
}

/// Turns an update into its way back: agents first, then the servers in the order that is told.
fn take_back(plan: &mut Plan, nodes: &[String]) {
    plan.decision.purpose = Purpose::Rollback { of: "r7".into() };
    let before = plan.decision.preconditions.nodes.clone();
    let hop = &mut plan.decision.hops[0];
    hop.steps.retain(|s| nodes.iter().any(|n| n == s.node.as_str()));
    hop.steps.sort_by_key(|s| nodes.iter().position(|n| n == s.node.as_str()));
    for (step, wave) in hop.steps.iter_mut().zip(0..) {
        (step.wave, step.from, step.to) = (wave, step.to.clone(), step.from.clone());
        (step.previous, step.artifact) = (step.artifact, step.previous);
        let node = plan.decision.preconditions.nodes.get_mut(&step.node).expect("a node");
        (node.version, node.binary) = (step.from.clone(), step.previous);
    }
    hop.to = before.values().map(|n| n.version.clone()).min().expect("a version");
}

fn words(answer: Result<Verdict, No>) -> String {
    match answer {
        Ok(Verdict::Done) => "done".to_owned(),
        Ok(Verdict::AsPlanned) => "as planned".to_owned(),
        Ok(Verdict::No(no)) | Err(no) => {
            assert!(!no.next.is_empty(), "{no:?} says what to do");
            format!("{:?}: {}", no.cause, no.what)
        }
    }
}

#[test]
fn steps_are_judged_as_the_stories_say() {
    tell_all("scenarios/precondition.toml", include_str!("../scenarios/precondition.toml"), |story: &Story| {
        let planned = story.world.inventory();
        let plan = story.plan(&planned);
        let mut now = planned;
        story.now.apply(&mut now);
        let glance = glance(&now);
        let step = plan.decision.hops.iter().flat_map(|h| &h.steps).find(|s| s.node.as_str() == story.step);
        let step = step.unwrap_or_else(|| unreachable!("{} has a step", story.step));
        let answer = match (&story.judged, &story.put_back) {
            (Some(judged), None) => {
                let ours = names(&story.in_hand);
                (judged, words(Ok(judge(&plan.decision, step, &glance, &ours, &RolloutId::new("r7")))))
            }
            (None, Some(put_back)) => {
                let may = may_put_back(&plan.decision, step, &glance);
                (put_back, words(may.map(|()| Verdict::AsPlanned)))
            }
            _ => unreachable!("a story asks one question"),
        };
        (answer.0.clone(), answer.1)
    });
}

/// What changed between a plan and now, in the same words as a world that is different.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    #[expect(dead_code, reason = "for people")]
    because: String,
    now: But,
    says: String,
}

#[test]
fn a_stale_plan_is_told_by_what_changed() {
    tell_all("scenarios/stale.toml", include_str!("../scenarios/stale.toml"), |story: &Change| {
        let cluster = example::cluster();
        let planned = example::etcd(3, 1, "v1.36.3+k3s1");
        let mut now = planned.clone();
        story.now.apply(&mut now);
        let of = |inventory| planner::preconditions(inventory, &cluster, &BTreeSet::new()).expect("known facts");
        let came = changed_since(&of(&planned), &of(&now)).unwrap_or_else(|| "nothing".to_owned());
        (story.says.clone(), came)
    });
}

#[test]
fn what_was_only_seen_makes_no_plan_stale() {
    let cluster = example::cluster();
    let planned = example::etcd(3, 1, "v1.36.3+k3s1");
    let mut now = planned.clone();
    now.taken = Timestamp::MAX;
    for node in &mut now.nodes {
        node.ready = crate::fact::Fact::Known(false);
    }
    let of = |inventory| planner::preconditions(inventory, &cluster, &BTreeSet::new()).expect("known facts");
    assert_eq!(changed_since(&of(&planned), &of(&now)), None);
}
