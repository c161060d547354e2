//! What every store does.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use kadence_core::event::{Event, Request};
use kadence_core::ident::{ClusterUid, RolloutId};

use crate::contract::sample;
use crate::ports::{Store, StoreError};

/// Two handles on one state that is new, as two processes have them.
pub struct Handles {
    pub one: Arc<dyn Store>,
    pub two: Arc<dyn Store>,
    /// What the state lives in.
    pub keep: Box<dyn Any + Send>,
}

/// Runs the suite; `fresh` makes a new state each time.
///
/// # Panics
/// If the store does not do what it should.
pub async fn suite(fresh: impl AsyncFn() -> Handles) {
    let mut logs = fresh().await;
    a_log_is_read_as_it_was_written(&logs).await;
    logs = fresh().await;
    only_the_next_number_is_taken(&logs).await;
    logs = fresh().await;
    rollouts_are_listed_by_cluster_oldest_first(&logs).await;
    logs = fresh().await;
    one_holds_the_turn_and_numbers_rise(&logs).await;
    logs = fresh().await;
    plans_are_found_by_their_first_digits(&logs).await;
    logs = fresh().await;
    requests_stay_until_they_are_answered(&logs).await;
    logs = fresh().await;
    names_are_remembered(&logs).await;
}

/// Each of `turns` lets a handle (`true` is the first) append the event that it believes to be next, believing what it
/// knew when it last looked; one that was refused looks again.
///
/// # Panics
/// If an append was wrongly taken or refused, or the log has a gap or a duplicate.
pub async fn interleave(handles: &Handles, turns: &[bool]) {
    let (cluster, rollout) = (sample::cluster(), sample::rollout());
    let mut believed = [1_u64, 1];
    let mut stored = 0;
    for first in turns {
        let (store, place) = if *first { (&handles.one, 0) } else { (&handles.two, 1) };
        let number = believed[place];
        let event = sample::recorded(&rollout, number, Event::TurnTaken { turn: number, holder: String::new() });
        match store.append(&cluster, &event).await {
            Ok(()) => {
                stored += 1;
                assert_eq!(number, stored, "taken out of order");
                believed[place] = number + 1;
            }
            Err(StoreError::NotNext { .. }) => {
                assert_ne!(number, stored + 1, "the next one was refused");
                believed[place] = store.events(&rollout).await.expect("events").len() as u64 + 1;
            }
            Err(error) => panic_with(&error),
        }
    }
    numbered_without_gap(handles, &rollout, stored).await;
}

/// Both handles append at the same time, `each` events, taking turns as the scheduler likes.
///
/// # Panics
/// If an event was lost, doubled or a gap arose.
pub async fn race(handles: &Handles, each: u64) {
    let (cluster, rollout) = (sample::cluster(), sample::rollout());
    let append = async |store: &Arc<dyn Store>| {
        let mut done = 0;
        let mut number = 1;
        while done < each {
            let event = sample::recorded(&rollout, number, Event::TurnTaken { turn: number, holder: String::new() });
            match store.append(&cluster, &event).await {
                Ok(()) => done += 1,
                Err(StoreError::NotNext { .. }) => {}
                Err(error) => panic_with(&error),
            }
            number += 1;
            if done < each && number > store.events(&rollout).await.expect("events").len() as u64 + 1 {
                number = 1;
            }
        }
    };
    tokio::join!(append(&handles.one), append(&handles.two));
    numbered_without_gap(handles, &rollout, 2 * each).await;
}

async fn numbered_without_gap(handles: &Handles, rollout: &RolloutId, count: u64) {
    for store in [&handles.one, &handles.two] {
        let numbers: Vec<_> = store.events(rollout).await.expect("events").iter().map(|e| e.number).collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
    }
}

async fn a_log_is_read_as_it_was_written(Handles { one, two, .. }: &Handles) {
    let log = sample::log();
    assert_eq!(one.events(&sample::rollout()).await, Ok(Vec::new()), "nothing is there before");
    for event in &log {
        one.append(&sample::cluster(), event).await.expect("appended");
    }
    for store in [one, two] {
        let read = store.events(&sample::rollout()).await.expect("events");
        assert_eq!(read.len(), log.len());
        for (read, written) in read.iter().zip(&log) {
            assert_eq!(read, written);
        }
    }
    assert_eq!(one.events(&"another".into()).await, Ok(Vec::new()));
}

async fn only_the_next_number_is_taken(Handles { one, two, .. }: &Handles) {
    let (cluster, rollout) = (sample::cluster(), sample::rollout());
    let event = |number| sample::recorded(&rollout, number, Event::Resumed);
    let refused = |number| Err(StoreError::NotNext { rollout: rollout.clone(), number });
    for number in [0, 2, u64::MAX] {
        assert_eq!(one.append(&cluster, &event(number)).await, refused(number), "the first is 1");
    }
    assert_eq!(one.append(&cluster, &event(1)).await, Ok(()));
    assert_eq!(two.append(&cluster, &event(1)).await, refused(1), "the other has it already");
    assert_eq!(two.append(&cluster, &event(3)).await, refused(3), "that would be a gap");
    assert_eq!(two.append(&cluster, &event(2)).await, Ok(()));
    let other = ClusterUid::new("another cluster");
    assert!(one.append(&other, &event(3)).await.is_err(), "a rollout is one cluster's");
    assert_eq!(one.events(&rollout).await.expect("events").len(), 2);
}

async fn rollouts_are_listed_by_cluster_oldest_first(Handles { one, two, .. }: &Handles) {
    let cluster = sample::cluster();
    let other = ClusterUid::new("another cluster");
    // Not in the order of their names: the order is that of their first events.
    for (cluster, rollout) in [(&cluster, "b"), (&other, "x"), (&cluster, "a"), (&cluster, "c")] {
        one.append(cluster, &sample::recorded(&rollout.into(), 1, Event::Resumed)).await.expect("appended");
    }
    two.append(&cluster, &sample::recorded(&"b".into(), 2, Event::Resumed)).await.expect("appended");
    assert_eq!(two.rollouts(&cluster).await, Ok(["b", "a", "c"].map(RolloutId::new).to_vec()));
    assert_eq!(two.rollouts(&other).await, Ok(vec![RolloutId::new("x")]));
    assert_eq!(two.rollouts(&"nobody".into()).await, Ok(Vec::new()));
}

async fn one_holds_the_turn_and_numbers_rise(Handles { one, two, .. }: &Handles) {
    let cluster = sample::cluster();
    let first = one.take_turn(&cluster, "eva@here", 0).await.expect("a turn");
    assert_eq!(first.number, 1);
    for store in [one, two] {
        match store.take_turn(&cluster, "tom@there", 0).await {
            Err(StoreError::Busy { holder, since }) => {
                assert_eq!(holder, "eva@here");
                assert!(!since.is_empty());
            }
            other => unexpected(other.map(|t| t.number)),
        }
    }
    let elsewhere = two.take_turn(&"another/../cluster".into(), "tom@there", 0).await.expect("another cluster is free");
    drop(elsewhere);

    drop(first);
    let second = two.take_turn(&cluster, "tom@there", 0).await.expect("free again");
    assert_eq!(second.number, 2, "refused ones cost no number");
    match one.take_turn(&cluster, "eva@here", 0).await {
        Err(StoreError::Busy { holder, .. }) => assert_eq!(holder, "tom@there"),
        other => unexpected(other.map(|t| t.number)),
    }
    drop(second);
    let third = one.take_turn(&cluster, "eva@here", 41).await.expect("a turn");
    assert_eq!(third.number, 42, "above what the nodes have seen");
    drop(third);
    assert_eq!(two.take_turn(&cluster, "tom@there", 7).await.expect("a turn").number, 43);
    assert!(two.take_turn(&cluster, "tom@there", u64::MAX).await.is_err(), "there is none above");
    assert_eq!(one.take_turn(&cluster, "eva@here", 0).await.expect("a turn").number, 44, "it was let go");
}

async fn plans_are_found_by_their_first_digits(Handles { one, two, .. }: &Handles) {
    let mut plans: Vec<_> = (1..=20).map(sample::plan_to).collect();
    for plan in &plans {
        assert_eq!(one.save_plan(plan).await, Ok(plan.hash()));
    }
    plans.sort_by_key(|p| p.hash());
    assert_eq!(two.plans("").await, Ok(plans.clone()), "all of them");

    let plan = &plans[7];
    let name = plan.hash().to_string();
    for prefix in [name.as_str(), &name[..12], &name[..12].to_uppercase()] {
        assert_eq!(two.plans(prefix).await, Ok(vec![plan.clone()]), "{prefix}");
    }
    let digit = &name[..1];
    let alike: Vec<_> = plans.iter().filter(|p| p.hash().to_string().starts_with(digit)).cloned().collect();
    assert_eq!(two.plans(digit).await, Ok(alike));
    let long = format!("{name}0");
    for nothing in ["%", "_", "*", "7c41e0'; DROP TABLE plan", "xyz", " ", "\u{e9}", long.as_str()] {
        assert_eq!(two.plans(nothing).await, Ok(Vec::new()), "{nothing}");
    }

    let mut seen_later = plan.clone();
    seen_later.seen.because = vec!["looked again".to_owned()];
    assert_eq!(two.save_plan(&seen_later).await, Ok(plan.hash()), "the decision is its name");
    assert_eq!(one.plans(&name).await, Ok(vec![seen_later]), "one row, with the newer look");
}

async fn requests_stay_until_they_are_answered(Handles { one, two, .. }: &Handles) {
    let cluster = sample::cluster();
    let other = ClusterUid::new("another cluster");
    assert_eq!(one.requests(&cluster).await, Ok(Vec::new()));
    let asked = [Request::Pause, Request::Abort, Request::Pause];
    for request in asked {
        two.request(&cluster, request).await.expect("left");
    }
    two.request(&other, Request::Abort).await.expect("left");
    let left = one.requests(&cluster).await.expect("requests");
    assert_eq!(left.iter().map(|(_, request)| *request).collect::<Vec<_>>(), asked, "in the order in which they came");
    assert!(left.is_sorted_by(|a, b| a.0 < b.0), "each has a place of its own");
    assert_eq!(two.requests(&cluster).await, Ok(left.clone()), "reading takes nothing");

    // One that comes while others are answered is not forgotten with them.
    two.request(&cluster, Request::Abort).await.expect("left");
    one.answered(&cluster, left[2].0).await.expect("answered");
    let later = two.requests(&cluster).await.expect("requests");
    assert_eq!(later.iter().map(|(_, request)| *request).collect::<Vec<_>>(), [Request::Abort]);
    one.answered(&cluster, u64::MAX).await.expect("answered");
    assert_eq!(two.requests(&cluster).await, Ok(Vec::new()));
    assert_eq!(one.requests(&other).await.map(|left| left.len()), Ok(1), "of another cluster");
}

async fn names_are_remembered(Handles { one, two, .. }: &Handles) {
    assert_eq!(one.known_uid("shop").await, Ok(None));
    one.remember_uid("shop", &"first".into()).await.expect("remembered");
    one.remember_uid("shop'; --", &"odd".into()).await.expect("remembered");
    assert_eq!(two.known_uid("shop").await, Ok(Some("first".into())));
    two.remember_uid("shop", &"second".into()).await.expect("remembered");
    let known: BTreeSet<_> = [one.known_uid("shop").await, two.known_uid("shop").await].map(Result::ok).into();
    assert_eq!(known, BTreeSet::from([Some(Some("second".into()))]));
}

#[track_caller]
fn panic_with(error: &StoreError) -> ! {
    #[expect(clippy::panic, reason = "the suite fails")]
    {
        panic!("{error}")
    }
}

#[track_caller]
fn unexpected(result: Result<u64, StoreError>) {
    assert_eq!(result.map(|_| ()), Err(StoreError::Busy { holder: String::new(), since: String::new() }));
}
