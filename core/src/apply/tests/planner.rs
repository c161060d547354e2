use serde::Deserialize;

use super::world::{Wish, World};
use super::{tell_all, words};
use crate::apply::verify;

/// From a world and a wish to a plan, or to the reason why there is none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Story {
    #[expect(dead_code, reason = "for people")]
    because: String,
    world: World,
    wish: Wish,
    plan: String,
}

#[test]
fn plans_are_made_as_the_stories_say() {
    tell_all("scenarios/planner.toml", include_str!("../scenarios/planner.toml"), |story: &Story| {
        let came = match story.wish.plan(&story.world.inventory()) {
            Ok(plan) => {
                let faults = verify::faults(&plan);
                if faults.is_empty() { words(&plan) } else { format!("{}\nfaults: {faults:?}", words(&plan)) }
            }
            Err(no) => format!("no plan: {no}"),
        };
        (story.plan.clone(), came)
    });
}
