use proptest::prelude::*;

use super::*;
use crate::ident::Digest;

fn v(text: &str) -> Version {
    text.parse().expect("a version")
}

fn at(day: &str) -> Timestamp {
    format!("{day}T12:00:00Z").parse().expect("a day")
}

/// Names that begin with `s` are servers.
fn cluster(nodes: &[(&str, &str)]) -> BTreeMap<NodeName, (Role, Version)> {
    nodes
        .iter()
        .map(|(name, version)| {
            let role = if name.starts_with('s') { Role::Server } else { Role::Agent };
            (NodeName::from(*name), (role, v(version)))
        })
        .collect()
}

/// Releases with amd64 binaries, by the day they were published (empty: not known).
fn releases(of: &[(&str, &str)]) -> Catalog {
    let release = |(version, day): &(&str, &str)| Release {
        version: v(version),
        published: (!day.is_empty()).then(|| at(day)),
        prerelease: false,
        binaries: [(Arch::Amd64, Digest::of(version.as_bytes()))].into(),
    };
    Catalog {
        source: "the mirror".to_owned(),
        fetched: at("2026-11-24"),
        releases: of.iter().map(|it| (v(it.0), release(it))).collect(),
        unreadable: Vec::new(),
    }
}

/// Real release days.
fn upstream() -> Catalog {
    releases(&[
        ("v1.32.11+k3s1", "2026-02-03"),
        ("v1.32.11+k3s3", "2026-02-12"),
        ("v1.33.7+k3s3", "2026-02-10"),
        ("v1.33.13+k3s1", "2026-06-24"),
        ("v1.34.3+k3s1", "2025-12-19"),
        ("v1.34.4+k3s1", "2026-02-12"),
        ("v1.34.10+k3s1", "2026-08-05"),
        ("v1.35.1+k3s1", "2026-02-12"),
        ("v1.35.3+k3s1", "2026-03-28"),
        ("v1.35.7+k3s1", "2026-08-06"),
        ("v1.36.3+k3s1", "2026-08-04"),
        ("v1.36.4+k3s1", "2026-08-27"),
        ("v1.37.0-rc1+k3s1", "2026-08-28"),
    ])
}

const AMD64: [Arch; 1] = [Arch::Amd64];

fn resolve(nodes: &[(&str, &str)], wish: &Wish, catalog: &Catalog) -> Result<Ladder, Refusal> {
    ladder(&cluster(nodes), &AMD64.into(), wish, catalog, at("2026-09-08"))
}

fn climb(nodes: &[(&str, &str)], to: &str, catalog: &Catalog) -> Vec<String> {
    let ladder = resolve(nodes, &Wish::To(v(to)), catalog).unwrap_or_else(|refusal| unreachable!("{to}: {refusal}"));
    ladder.iter().map(ToString::to_string).collect()
}

fn refusal(nodes: &[(&str, &str)], to: &str, catalog: &Catalog) -> String {
    resolve(nodes, &Wish::To(v(to)), catalog).expect_err("a refusal").to_string()
}

fn newest_patch(nodes: &[(&str, &str)], catalog: &Catalog) -> (Vec<String>, Vec<String>) {
    let ladder = resolve(nodes, &Wish::NewestPatch, catalog).expect("a ladder");
    (ladder.iter().map(ToString::to_string).collect(), ladder.because.clone())
}

#[test]
fn no_minor_is_skipped_and_each_in_between_is_passed_on_its_newest_release() {
    for (from, to, expected) in [
        ("v1.36.3+k3s1", "v1.36.4+k3s1", vec!["v1.36.4+k3s1"]),
        ("v1.35.7+k3s1", "v1.36.4+k3s1", vec!["v1.36.4+k3s1"]),
        ("v1.34.4+k3s1", "v1.36.4+k3s1", vec!["v1.35.7+k3s1", "v1.36.4+k3s1"]),
        ("v1.33.7+k3s3", "v1.36.4+k3s1", vec!["v1.34.10+k3s1", "v1.35.7+k3s1", "v1.36.4+k3s1"]),
        ("v1.32.11+k3s1", "v1.32.11+k3s3", vec!["v1.32.11+k3s3"]),
    ] {
        assert_eq!(climb(&[("s1", from)], to, &upstream()), expected, "{from} to {to}");
    }
}

#[test]
fn the_newest_patch_of_the_minor_is_taken_unless_something_else_is_asked_for() {
    let (ladder, because) = newest_patch(&[("s1", "v1.36.3+k3s1"), ("a1", "v1.36.3+k3s1")], &upstream());
    assert_eq!(ladder, ["v1.36.4+k3s1"]);
    assert_eq!(because, ["v1.36.4+k3s1 is the newest release of v1.36, 12 days old"]);
}

#[test]
fn a_higher_build_of_the_same_patch_is_newer_even_past_nine() {
    let catalog = releases(&[("v1.36.4+k3s2", ""), ("v1.36.4+k3s10", "")]);
    assert_eq!(newest_patch(&[("s1", "v1.36.4+k3s1")], &catalog).0, ["v1.36.4+k3s10"]);
}

#[test]
fn where_everything_runs_it_already_nothing_is_left_to_do() {
    let nodes = [("s1", "v1.36.4+k3s1"), ("a1", "v1.36.4+k3s1")];
    let (ladder, because) = newest_patch(&nodes, &upstream());
    assert_eq!(ladder, ["v1.36.4+k3s1"]);
    assert_eq!(because, ["every node runs v1.36.4+k3s1, the newest release of v1.36"]);
    assert_eq!(climb(&nodes, "v1.36.4+k3s1", &releases(&[])), ["v1.36.4+k3s1"], "no source is needed for that");
}

#[test]
fn a_cluster_ahead_of_the_source_has_nothing_to_do_and_is_told_why() {
    let (ladder, because) = newest_patch(&[("s1", "v1.36.9+k3s1")], &upstream());
    assert_eq!(ladder, ["v1.36.9+k3s1"]);
    assert_eq!(because, ["the mirror has no release of v1.36 that is newer than v1.36.9+k3s1"]);
}

#[test]
fn a_half_done_update_goes_on_to_where_it_was_going() {
    let half = [("s1", "v1.35.7+k3s1"), ("s2", "v1.36.4+k3s1"), ("a1", "v1.35.7+k3s1")];
    assert_eq!(climb(&half, "v1.36.4+k3s1", &upstream()), ["v1.36.4+k3s1"]);
    assert_eq!(newest_patch(&half, &upstream()).0, ["v1.36.4+k3s1"], "the highest minor that runs is the one");
    let because = refusal(&half, "v1.35.7+k3s1", &upstream());
    assert_eq!(
        because,
        "v1.35.7+k3s1 is older than what runs: s2 has v1.36.4+k3s1. Updates only go up; the way back is kadence rollback"
    );
}

#[test]
fn a_half_done_update_to_a_release_that_is_gone_cannot_be_finished() {
    let half = [("s1", "v1.36.3+k3s1"), ("s2", "v1.36.9+k3s1")];
    let expected = "s2 runs v1.36.9+k3s1 already, and s1, which does not, cannot follow: the mirror does not have it. Add it \
                    to the release source, or name a newer release";
    assert_eq!(refusal(&half, "v1.36.9+k3s1", &upstream()), expected);
    let error = resolve(&half, &Wish::NewestPatch, &upstream()).expect_err("a refusal");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn agents_that_stayed_behind_climb_each_minor_that_the_servers_climbed_before() {
    let nodes = [("s1", "v1.36.3+k3s1"), ("a1", "v1.34.4+k3s1")];
    assert_eq!(climb(&nodes, "v1.36.4+k3s1", &upstream()), ["v1.35.7+k3s1", "v1.36.4+k3s1"]);
}

#[test]
fn what_is_older_than_anything_that_runs_is_refused() {
    for (runs, to) in [
        ("v1.36.4+k3s1", "v1.36.3+k3s1"),
        ("v1.36.4+k3s1", "v1.35.7+k3s1"),
        ("v1.32.11+k3s3", "v1.32.11+k3s1"),
        ("v1.37.0+k3s1", "v1.37.0-rc1+k3s1"),
    ] {
        let nodes = [("s1", "v1.32.11+k3s1"), ("s2", runs)];
        let error = resolve(&nodes, &Wish::To(v(to)), &upstream()).expect_err("a refusal");
        assert!(matches!(&error, Refusal::Older { node, .. } if node.as_str() == "s2"), "{runs} to {to}: {error}");
    }
}

#[test]
fn a_higher_number_that_was_built_before_what_runs_is_refused() {
    assert_eq!(
        refusal(&[("s1", "v1.34.10+k3s1")], "v1.35.3+k3s1", &upstream()),
        "v1.35.3+k3s1 was published on 2026-03-28, before v1.34.10+k3s1, which runs (on 2026-08-05): fixes that run today \
         would be missing in it, and K3s does not support it; v1.35.7+k3s1 would do"
    );
}

#[test]
fn within_one_monthly_train_no_release_is_older_than_another() {
    // v1.36.3 came out two days before v1.35.7.
    assert_eq!(climb(&[("s1", "v1.35.7+k3s1")], "v1.36.3+k3s1", &upstream()), ["v1.36.3+k3s1"]);
}

#[test]
fn on_the_way_to_an_older_train_newer_ones_are_not_stepped_on() {
    let ladder = resolve(&[("s1", "v1.33.7+k3s3")], &Wish::To(v("v1.35.3+k3s1")), &upstream()).expect("a ladder");
    assert_eq!(ladder.iter().map(ToString::to_string).collect::<Vec<_>>(), ["v1.34.4+k3s1", "v1.35.3+k3s1"]);
    assert_eq!(
        ladder.because,
        [
            "by way of v1.34.4+k3s1, because no minor may be skipped",
            "not v1.34.10+k3s1: it is younger-built than v1.35.3+k3s1",
        ]
    );
}

#[test]
fn dates_that_are_not_known_are_said_and_do_not_refuse() {
    let folder = releases(&[("v1.35.7+k3s1", ""), ("v1.36.4+k3s1", "")]);
    let (ladder, because) = {
        let ladder = resolve(&[("s1", "v1.35.7+k3s1")], &Wish::To(v("v1.36.4+k3s1")), &folder).expect("a ladder");
        (ladder.to_vec(), ladder.because)
    };
    assert_eq!(ladder, [v("v1.36.4+k3s1")]);
    assert_eq!(because, ["build dates were not compared: the mirror has none for v1.35.7+k3s1, v1.36.4+k3s1"]);
}

#[test]
fn what_does_not_exist_is_refused_with_what_does() {
    let nodes = [("s1", "v1.36.3+k3s1")];
    assert_eq!(
        refusal(&nodes, "v1.36.5+k3s1", &upstream()),
        "v1.36.5+k3s1 does not exist in the mirror; there is v1.36.4+k3s1"
    );
    assert_eq!(
        refusal(&[("s1", "v1.33.7+k3s3")], "v1.34.9+k3s1", &upstream()),
        "v1.34.9+k3s1 does not exist in the mirror; there is v1.34.4+k3s1, v1.34.10+k3s1"
    );
    assert_eq!(refusal(&nodes, "v1.36.5+k3s1", &releases(&[])), "v1.36.5+k3s1 does not exist in the mirror");
}

#[test]
fn what_the_source_could_not_read_is_told_with_its_reason() {
    let mut catalog = upstream();
    catalog.unreadable = vec!["v1.36.5+k3s10: the folder has no binary".into(), "v1.36.5+k3s1: not a folder".into()];
    assert_eq!(
        refusal(&[("s1", "v1.36.3+k3s1")], "v1.36.5+k3s1", &catalog),
        "v1.36.5+k3s1 does not exist in the mirror (v1.36.5+k3s1: not a folder); there is v1.36.4+k3s1"
    );
}

#[test]
fn a_pre_release_is_taken_only_by_somebody_who_says_so() {
    let nodes = [("s1", "v1.36.4+k3s1")];
    assert_eq!(refusal(&nodes, "v1.37.0-rc1+k3s1", &upstream()), "v1.37.0-rc1+k3s1 is a pre-release");

    let mut catalog = upstream();
    catalog.releases.get_mut(&v("v1.36.4+k3s1")).expect("it").prerelease = true;
    assert_eq!(
        refusal(&[("s1", "v1.35.7+k3s1")], "v1.36.4+k3s1", &catalog),
        "v1.36.4+k3s1 is a pre-release; v1.36.3+k3s1 would do",
        "by the source's word, whatever its name says"
    );
    let (ladder, because) = newest_patch(&[("s1", "v1.36.3+k3s1")], &catalog);
    assert_eq!(ladder, ["v1.36.3+k3s1"]);
    assert_eq!(because[1..], ["not v1.36.4+k3s1: it is a pre-release"]);
}

#[test]
fn every_architecture_in_use_needs_a_binary() {
    let mut catalog = upstream();
    for release in catalog.releases.values_mut().filter(|release| release.version != v("v1.36.4+k3s1")) {
        release.binaries.insert(Arch::Arm64, Digest::of(b"arm"));
    }
    let nodes = cluster(&[("s1", "v1.35.7+k3s1"), ("a1", "v1.35.7+k3s1")]);
    let archs = [Arch::Amd64, Arch::Arm64].into();
    let error =
        ladder(&nodes, &archs, &Wish::To(v("v1.36.4+k3s1")), &catalog, at("2026-09-08")).expect_err("a refusal");
    assert_eq!(
        error.to_string(),
        "v1.36.4+k3s1 has no binary with a published digest for arm64 in the mirror, and a node needs it; v1.36.3+k3s1 \
         would do"
    );
}

#[test]
fn a_minor_that_the_source_lacks_ends_the_climb() {
    let mut catalog = upstream();
    catalog.releases.retain(|version, _| version.minor() != v("v1.35.0+k3s1").minor());
    assert_eq!(
        refusal(&[("s1", "v1.34.10+k3s1")], "v1.36.4+k3s1", &catalog),
        "v1.36.4+k3s1 is more than one minor above v1.34.10+k3s1, and the mirror has no release of v1.35 to go by: add one \
         there, or name a release of a lower minor"
    );
    let mut catalog = upstream();
    catalog.releases.get_mut(&v("v1.35.7+k3s1")).expect("it").binaries.clear();
    let error = refusal(&[("s1", "v1.34.10+k3s1")], "v1.36.4+k3s1", &catalog);
    assert!(
        error.contains(
            "no release of v1.35 to go by (v1.35.7+k3s1: it has no binary with a published digest for amd64; \
             v1.35.3+k3s1: it was built before v1.34.10+k3s1 (2026-03-28 and 2026-08-05)"
        ),
        "{error}"
    );
}

#[test]
fn a_source_without_the_minor_that_runs_does_not_make_it_up_to_date() {
    let error = resolve(&[("s1", "v1.31.2+k3s1")], &Wish::NewestPatch, &upstream()).expect_err("a refusal");
    assert_eq!(
        error.to_string(),
        "the mirror has no release of v1.31, which runs (v1.31.2+k3s1), so its newest patch is not known; the newest \
         release there is v1.36.4+k3s1: name a version, or add v1.31 there"
    );
}

#[test]
fn another_major_is_refused() {
    let catalog = releases(&[("v2.0.0+k3s1", "")]);
    let error = resolve(&[("s1", "v1.99.0+k3s1")], &Wish::To(v("v2.0.0+k3s1")), &catalog).expect_err("a refusal");
    assert!(matches!(error, Refusal::OtherMajor { .. }), "{error}");
}

#[test]
fn nothing_is_decided_about_a_cluster_of_which_nothing_is_known() {
    assert_eq!(resolve(&[], &Wish::NewestPatch, &upstream()), Err(Refusal::NothingRuns));
}

#[test]
fn the_first_lines_of_check_name_the_newest_patch_and_the_next_minor() {
    let of =
        |nodes: &[(&str, &str)]| newest(&cluster(nodes), &AMD64.into(), &upstream(), at("2026-09-08")).expect("facts");
    let facts = of(&[("s1", "v1.35.3+k3s1"), ("a1", "v1.34.4+k3s1")]);
    assert_eq!(facts.runs, v("v1.35.3+k3s1"));
    assert_eq!(facts.patch.expect("a patch").to_string(), "v1.35.7+k3s1 (33 days old)");
    assert_eq!(facts.next_minor.expect("a minor").to_string(), "v1.36.4+k3s1 (12 days old)");
    let facts = of(&[("s1", "v1.36.9+k3s1")]);
    assert_eq!((facts.patch, facts.next_minor), (None, None), "a pre-release of the next minor is none");
}

fn any_version() -> impl Strategy<Value = Version> {
    (30_u64..34, 0_u64..4, prop_oneof![9 => Just(""), 1 => Just("-rc1")], 1_u32..3)
        .prop_map(|(minor, patch, pre, build)| v(&format!("v1.{minor}.{patch}{pre}+k3s{build}")))
}

prop_compose! {
    fn any_release()(
        version in any_version(),
        day in proptest::option::weighted(0.8, 0_i64..120),
        prerelease in prop::bool::weighted(0.1),
        archs in prop::collection::btree_set(prop::sample::select(Arch::ALL.to_vec()), 1..4),
    ) -> Release {
        let published = day.map(|day| at("2026-01-01") + SignedDuration::from_hours(24 * day));
        let binaries = archs.into_iter().map(|arch| (arch, Digest::of(b"k3s"))).collect();
        Release { version, published, prerelease, binaries }
    }
}

prop_compose! {
    fn any_catalog()(all in prop::collection::vec(any_release(), 0..40)) -> Catalog {
        let mut catalog = releases(&[]);
        catalog.releases = all.into_iter().map(|release| (release.version.clone(), release)).collect();
        catalog
    }
}

prop_compose! {
    fn any_cluster()(versions in prop::collection::vec(any_version(), 1..5)) -> BTreeMap<NodeName, (Role, Version)> {
        versions.into_iter().enumerate().map(|(i, v)| (NodeName::new(format!("s{i}")), (Role::Server, v))).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_ladder_only_goes_up_one_minor_at_a_time_over_releases_that_can_be_had(
        nodes in any_cluster(),
        catalog in any_catalog(),
        archs in prop::collection::btree_set(prop::sample::select(Arch::ALL.to_vec()), 1..3),
        wish in prop_oneof![
            Just(Wish::NewestPatch),
            any_version().prop_map(Wish::To),
        ],
    ) {
        let Ok(ladder) = ladder(&nodes, &archs, &wish, &catalog, at("2026-11-24")) else { return Ok(()) };
        let (target, below) = ladder.split_last().expect("never empty");
        let versions: BTreeSet<_> = nodes.values().map(|(_, version)| version).collect();
        prop_assert!(versions.iter().all(|version| *version <= target), "nothing goes below what runs");
        if let Wish::To(asked) = &wish {
            prop_assert_eq!(asked, target);
        }
        let lowest = (*versions.first().expect("a node")).clone();
        if lowest == *target {
            prop_assert!(below.is_empty(), "nothing is left to do");
            return Ok(());
        }
        let mut previous = &lowest;
        for rung in ladder.iter() {
            prop_assert!(previous < rung, "each rung is higher");
            prop_assert!(rung.minor().above(previous.minor()).expect("one major") <= 1, "no minor is skipped");
            let release = &catalog.releases[rung];
            prop_assert!(archs.iter().all(|arch| release.binaries.contains_key(arch)));
            prop_assert!(!release.is_prerelease() || versions.contains(rung));
            // Build dates never fall by more than a train, for any node that takes the step.
            let before = versions.iter().copied().filter(|version| *version < rung).chain([previous]);
            for before in before.filter_map(|version| catalog.releases.get(version)?.published) {
                if let Some(published) = release.published {
                    prop_assert!(before.duration_since(published) <= TRAIN);
                }
            }
            previous = rung;
        }
    }

    #[test]
    fn once_climbed_nothing_is_left_to_do(nodes in any_cluster(), catalog in any_catalog()) {
        let archs = AMD64.into();
        let Ok(first) = ladder(&nodes, &archs, &Wish::NewestPatch, &catalog, at("2026-11-24")) else { return Ok(()) };
        let target = first.last().expect("never empty");
        let done = nodes.into_iter().map(|(name, (role, _))| (name, (role, target.clone()))).collect();
        let again = ladder(&done, &archs, &Wish::To(target.clone()), &catalog, at("2026-11-24"));
        prop_assert_eq!(again.map(|ladder| ladder.to_vec()), Ok(vec![target.clone()]));
        // A newer one may have been held back by the build date of a node that has moved on since.
        let newest = ladder(&done, &archs, &Wish::NewestPatch, &catalog, at("2026-11-24")).expect("a ladder");
        prop_assert!(newest.last() >= Some(target));
    }

    #[test]
    fn the_newest_patch_that_is_offered_is_the_one_that_is_planned(nodes in any_cluster(), catalog in any_catalog()) {
        let archs = AMD64.into();
        let facts = newest(&nodes, &archs, &catalog, at("2026-11-24")).expect("facts");
        let planned = ladder(&nodes, &archs, &Wish::NewestPatch, &catalog, at("2026-11-24"));
        if let (Some(offer), Ok(ladder)) = (facts.patch, planned) {
            prop_assert_eq!(ladder.last(), Some(&offer.version));
        }
    }
}
