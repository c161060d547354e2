use serde::Deserialize;

use super::story::{Fate, Story};
use super::world::{But, Wish, World};
use super::{tell_all, words};
use crate::apply::action::{Action, FailureKind};
use crate::apply::plan::Purpose;
use crate::apply::{restore, verify, way_back};
use crate::ident::NodeName;
use crate::inventory::example;

/// An update, how far it came, and the way back from there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Tale {
    #[expect(dead_code, reason = "for people")]
    because: String,
    world: World,
    wish: Wish,
    /// The action, in words, whose outcome nobody stored; all before it went well. Absent: the update was completed.
    until: Option<String>,
    /// Actions that failed.
    #[serde(default)]
    failed: Vec<String>,
    #[serde(default)]
    now: But,
    #[serde(default)]
    off: Vec<String>,
    plan: String,
    /// What a restore does, a group a line.
    does: Option<String>,
}

#[test]
fn the_way_back_is_as_the_stories_say() {
    tell_all("scenarios/way_back.toml", include_str!("../scenarios/way_back.toml"), |tale: &Tale| {
        let before = tale.world.inventory();
        let plan = tale.wish.plan(&before).expect("a plan");
        let mut story = Story::begin(before, plan, &[]);
        story.run(|action| {
            let words = action.words();
            if tale.until.as_ref() == Some(&words) {
                None
            } else if tale.failed.contains(&words) {
                Some(Fate::Failed { kind: FailureKind::NotReadyInTime, changed: true })
            } else {
                Some(Fate::Done)
            }
        });
        tale.now.apply(&mut story.world);
        let off: Vec<NodeName> = tale.off.iter().map(|n| n.as_str().into()).collect();
        let question = way_back::Question {
            rollout: &story.rollout,
            inventory: &story.world,
            cluster: &tale.wish.cluster(),
            off: &off,
            kadence: "0.0.0",
            now: example::now(),
        };
        let plan = match way_back::plan(&question) {
            Ok(plan) => plan,
            Err(no) => {
                assert!(!no.next().is_empty(), "{no} says what to do");
                return (tale.plan.clone(), format!("no way back: {no}"));
            }
        };
        let mut came = vec![match &plan.decision.purpose {
            Purpose::Restore { backup, .. } => {
                let copy = backup.on_node.as_ref().map_or("the vault", |copy| copy.path.as_str());
                format!("restore from {copy}")
            }
            purpose => {
                assert!(matches!(purpose, Purpose::Rollback { .. }));
                "by binaries".to_owned()
            }
        }];
        came.push(words(&plan));
        came.extend(verify::faults(&plan).into_iter().map(|fault| format!("fault: {fault}")));
        let mut expected = tale.plan.clone();
        if let Some(does) = &tale.does {
            expected.push_str(does);
            came.extend(restore::sequence(&plan, &off).iter().map(|group| group_words(group)));
        }
        (expected, came.join("\n"))
    });
}

pub(super) fn group_words(group: &[Action]) -> String {
    group.iter().map(Action::words).collect::<Vec<_>>().join(", ")
}
