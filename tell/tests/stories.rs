//! What people see of whole stories, compared with what is kept under `golden/`.
//!
//! The stories are event logs: `update`, `rollback` and `crash` of a real K3s, the others of the simulator. To accept a
//! change, run with `KADENCE_GOLDEN=write` and read the difference.

#![expect(clippy::panic, reason = "a story that cannot be read fails the test, with its name")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use kadence_core::apply::action::Action;
use kadence_core::apply::plan::Plan;
use kadence_core::apply::rollout::Rollout;
use kadence_core::event::{Event, Recorded};
use kadence_core::fact::Fact;
use kadence_core::inventory::{Cordon, Inventory, Mark, UnknownFact};
use kadence_core::track::resolve::{Newest, Offer};
use kadence_core::validate::baseline::Baseline;
use kadence_core::validate::finding::{Finding, Verdict, Waiver};
use kadence_core::version::Version;
use kadence_tell::line::Lines;
use kadence_tell::live::Live;
use kadence_tell::status::{self, Why};
use kadence_tell::{Style, check, inspect, plan, report, runbook};
use proptest::prelude::*;
use serde_json::Value;

const STORIES: [&str; 6] = ["update", "rollback", "crash", "lost", "stuck", "restore"];
const PLANS: [&str; 3] = ["minors", "sqlite", "external"];
const VERBOSE: Style = Style { verbose: 2, ..Style::PLAIN };
const COLOUR: Style = Style { colour: true, ..VERBOSE };

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder("stories").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn parse<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Of an inventory only what tell does not look into is left to its own defaults.
fn bare() -> Inventory {
    Inventory::of_hosts("shop".into(), "uid".into(), Vec::new(), Timestamp::UNIX_EPOCH)
}

fn events_of(text: &str) -> Vec<Recorded> {
    let baseline = serde_json::to_value(Baseline::of(&bare(), BTreeMap::new())).expect("json");
    let event = |line: &str| {
        let mut event: Value = serde_json::from_str(line).expect("json");
        // Stories go without: no page shows it.
        if let Some(empty) = event.pointer_mut("/event/outcome/report/baseline") {
            empty.clone_from(&baseline);
        }
        serde_json::from_value(event).unwrap_or_else(|e| panic!("{e}: {line}"))
    };
    text.lines().map(event).collect()
}

fn events(story: &str) -> Vec<Recorded> {
    events_of(&read(&format!("{story}.jsonl")))
}

fn rollout(story: &str) -> Rollout {
    Rollout::read(&events(story)).expect("a log")
}

fn plan_of(name: &str) -> Plan {
    parse(&format!("{name}.plan.json"))
}

fn later(rollout: &Rollout) -> Timestamp {
    rollout.at + SignedDuration::from_mins(12)
}

fn lines(events: &[Recorded], style: Style) -> String {
    let mut lines = Lines::new(style);
    events.iter().filter_map(|e| lines.event(e)).map(|line| line + "\n").collect()
}

/// A cluster in which a lot is not as it should be.
fn troubled() -> Inventory {
    let mut inventory: Inventory = parse("etcd.inventory.json");
    let mark = Mark { rollout: "r7".to_owned(), plan: "64527a".to_owned(), step: "s2 v1.36.4+k3s1".to_owned() };
    for node in &mut inventory.nodes {
        let object = node.object.as_mut().expect("an object");
        match node.name.as_str() {
            "s2" => object.cordon = Cordon::Ours { mark: mark.clone() },
            "s3" => {
                node.ready = Fact::Known(false);
                node.version = "v1.36.4+k3s1".parse().map(Fact::Known).expect("a version");
            }
            "a1" => {
                object.cordon = Cordon::Foreign;
                node.host = Fact::unknown("no way over SSH: connection timed out");
            }
            _ => {}
        }
    }
    let unknown = |of: &str, fact: &str, why: &str| UnknownFact { of: of.into(), fact: fact.into(), why: why.into() };
    inventory.unknown = vec![
        unknown("a1", "install", "no way over SSH: connection timed out"),
        unknown("a1", "disks", "no way over SSH: connection timed out"),
        unknown("s3", "ntp_synchronised", "timedatectl is not here"),
    ];
    inventory.contradictions = vec!["etcd lists a member s4 that no Node and no host stands for".to_owned()];
    inventory
}

fn not_ready() -> Vec<Finding> {
    let finding = |code: &str, verdict, about: &str, what: &str, remedy: &str| Finding {
        code: code.to_owned(),
        number: 4,
        verdict,
        about: about.to_owned(),
        what: what.to_owned(),
        facts: vec![format!("kubectl describe {about}")],
        why: "an update would not end well".to_owned(),
        remedy: remedy.to_owned(),
        waived: None,
    };
    let waiver = Waiver {
        owner: "mia".to_owned(),
        reason: "the budget is wrong, and will be mended in May".to_owned(),
        until: "2026-12-24T00:00:00Z".parse().expect("a time"),
    };
    let mut findings = vec![
        finding("QUORUM", Verdict::Block, "cluster", "2 of 3 members are healthy", "repair s3 first"),
        finding("HOST", Verdict::UnknownBlocks, "s3", "the host could not be asked", "make SSH work: ssh root@s3"),
        finding("HOST", Verdict::UnknownBlocks, "a1", "the host could not be asked", "make SSH work: ssh root@s3"),
        Finding {
            waived: Some(waiver),
            ..finding("PDB-BLOCKS", Verdict::Block, "shop/web", "its budget lets no pod go", "widen it")
        },
    ];
    findings.extend(parse::<Vec<Finding>>("minors.findings.json"));
    findings
}

/// Every view of every story: its name, and its text in a style.
fn views(style: Style) -> BTreeMap<String, String> {
    let mut views = BTreeMap::new();
    let mut view = |name: String, text: String| {
        views.insert(name, text);
    };
    for story in STORIES {
        let (events, rollout) = (events(story), rollout(story));
        view(format!("{story}.lines"), lines(&events, style));
        view(format!("{story}.live"), live(&events, style));
        view(format!("{story}.status"), status::text(&rollout, later(&rollout), style));
        view(format!("{story}.plan"), plan::text(&rollout.plan, style));
        view(format!("{story}.report"), report::text(&events, style));
    }
    for name in PLANS {
        view(format!("{name}.plan"), plan::text(&plan_of(name), style));
    }
    let inventory: Inventory = parse("etcd.inventory.json");
    let minors = plan_of("minors");
    let fine: Vec<Finding> = parse("minors.findings.json");
    view("etcd.inspect".to_owned(), inspect::text(&inventory, style));
    view("sqlite.inspect".to_owned(), inspect::text(&parse("sqlite.inventory.json"), style));
    view("troubled.inspect".to_owned(), inspect::text(&troubled(), style));
    view("ready.check".to_owned(), check::text(&inventory, Some(&minors), &fine, style));
    view("not-ready.check".to_owned(), check::text(&troubled(), Some(&minors), &not_ready(), style));
    let offer = |patch, days: i64| Offer {
        version: Version::new(1, 36, patch, 1),
        age: Some(SignedDuration::from_hours(24 * days)),
    };
    let runs = Version::new(1, 36, 3, 1);
    for (name, patch) in [("older", Some(offer(4, 12))), ("newest", Some(offer(3, 40))), ("none", None)] {
        let newest = Newest { runs: runs.clone(), patch, next_minor: None };
        view(format!("{name}.releases"), check::newest("shop", &newest, style));
    }
    let history: Vec<Rollout> = STORIES.iter().map(|s| rollout(s)).collect();
    view("all.history".to_owned(), status::history("shop", &history, style));
    let no_plan = "s3 could not be asked".to_owned();
    let lost = rollout("lost");
    for (name, why) in [
        ("free", Why { inventory: &inventory, unfinished: None, plan: Ok(&minors), findings: &fine }),
        ("blocked", Why { inventory: &troubled(), unfinished: None, plan: Ok(&minors), findings: &not_ready() }),
        ("held", Why { inventory: &troubled(), unfinished: Some(&lost), plan: Err(&no_plan), findings: &[] }),
        ("no-plan", Why { inventory: &inventory, unfinished: None, plan: Err(&no_plan), findings: &[] }),
    ] {
        view(format!("{name}.why"), status::why(&why, later(&lost), style));
    }
    views
}

/// What is drawn while a story goes on: five seconds into each action that restarts something, and into the first of
/// each phase.
fn live(events: &[Recorded], style: Style) -> String {
    let mut live = Live::of(&Rollout::start(&events[0]).expect("a first event"), events[0].at);
    let mut text = String::new();
    let mut phase = None;
    for event in &events[1..] {
        live.event(event, true);
        let read = Rollout::read(&events[..usize::try_from(event.number).expect("a number")]).expect("a log");
        let Event::Intent { id, action } = &event.event else { continue };
        let telling = matches!(action, Action::Swap { .. } | Action::Prove { .. } | Action::Reset { .. });
        if telling || phase.replace(read.phase) != Some(read.phase) {
            live.waits(id, "what it waits for");
            let at = event.at + SignedDuration::from_secs(5);
            text += &live.block(at, 2, style);
            text += "\n\n";
        }
    }
    text
}

/// Without a terminal a wait that takes long is told once when it has become long, and once when it is over.
#[test]
fn a_long_wait_has_a_line_at_its_beginning_and_at_its_end() {
    let events = events("crash");
    let mut live = Live::of(&Rollout::start(&events[0]).expect("a first event"), events[0].at);
    let (mut began, mut ended) = (Vec::new(), Vec::new());
    for event in &events[1..] {
        ended.extend(live.event(event, false));
        if let Event::Intent { id, action: Action::Prove { .. } } = &event.event {
            live.waits(id, "etcd to be a voter");
            assert_eq!(live.long_waits(event.at + SignedDuration::from_secs(9)), Vec::<String>::new());
            began.extend(live.long_waits(event.at + SignedDuration::from_secs(11)));
            assert_eq!(live.long_waits(event.at + SignedDuration::from_secs(60)), Vec::<String>::new(), "once");
        }
    }
    assert!(began[0].contains("11 s so far, waits for etcd to be a voter; usually about "), "{began:?}");
    assert!(ended[0].contains(": over after "), "{ended:?}");
    assert_eq!(began.len(), ended.len(), "{began:?} {ended:?}");
}

fn golden(name: &str, text: &str, wrong: &mut Vec<String>) {
    let file = folder("golden").join(name);
    if std::env::var_os("KADENCE_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&file, text).expect("written");
        return;
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    if kept != text {
        let differs = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
        let at = differs.unwrap_or_else(|| kept.lines().count().min(text.lines().count()));
        let line = |text: &str| text.lines().nth(at).unwrap_or("(nothing)").to_owned();
        wrong.push(format!("{name}:{}\n  kept: {}\n  now:  {}", at + 1, line(&kept), line(text)));
    }
}

#[test]
fn stories_are_told_as_kept() {
    let mut wrong = Vec::new();
    for (name, text) in views(Style::PLAIN) {
        golden(&format!("{name}.txt"), &text, &mut wrong);
    }
    for name in PLANS {
        golden(&format!("{name}.runbook.md"), &runbook::markdown(&plan_of(name)), &mut wrong);
    }
    for story in ["rollback", "restore"] {
        golden(&format!("{story}.runbook.md"), &runbook::markdown(&rollout(story).plan), &mut wrong);
    }
    golden("crash.report.html", &report::html(&events("crash")), &mut wrong);
    let note = "KADENCE_GOLDEN=write cargo test -p kadence-tell accepts this";
    assert!(wrong.is_empty(), "{}\n{note}", wrong.join("\n"));
}

#[test]
fn plain_text_has_no_codes_and_colour_adds_nothing_else() {
    let plain = views(VERBOSE);
    for (name, coloured) in views(COLOUR) {
        assert!(!plain[&name].contains('\u{1b}'), "{name}");
        let mut stripped = coloured.clone();
        for code in ["0", "1", "2", "31", "32", "33"] {
            stripped = stripped.replace(&format!("\u{1b}[{code}m"), "");
        }
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(trimmed(&stripped), trimmed(&plain[&name]), "{name}");
    }
}

#[test]
fn lines_end_where_the_page_does() {
    for style in [Style::PLAIN, VERBOSE, Style { width: 72, ..VERBOSE }] {
        for (name, text) in views(style) {
            // Tables and the lines of a running rollout are as wide as what stands in them.
            if name.ends_with(".lines") || name.ends_with(".history") || name.ends_with(".report") {
                continue;
            }
            for line in text.lines().filter(|l| !l.contains("  ")) {
                let width = line.chars().count();
                assert!(width <= usize::from(style.width), "{name}: {width} columns: {line}");
            }
        }
    }
}

#[test]
fn a_cordon_is_told_when_it_is_done() {
    for story in ["update", "crash", "lost"] {
        let text = lines(&events(story), Style::PLAIN);
        assert!(text.lines().any(|l| l == "✔ cordon s2"), "{text}");
    }
}

/// Who resumes reads the same lines as who began: nodes by their names.
#[test]
fn what_was_begun_before_is_told_as_if_it_had_been_begun_here() {
    for story in STORIES {
        let events = events(story);
        let whole = lines(&events, Style::PLAIN);
        for begin in 2..events.len() {
            let before = Rollout::read(&events[..begin]).expect("a log");
            let mut lines = Lines::new(Style::PLAIN);
            lines.take_up(&before);
            for line in events[begin..].iter().filter_map(|e| lines.event(e)) {
                assert!(!line.contains("what was begun before"), "{story} from {begin}: {line}");
                // How many copies were made before is not told again.
                let told = line.lines().all(|l| whole.lines().any(|w| w == l) || l.contains("staged on"));
                assert!(told, "{story} from {begin}: {line}");
            }
        }
    }
}

/// A Kadence that takes a rollout up sees the events from there on.
#[test]
fn lines_may_begin_anywhere() {
    for story in STORIES {
        let events = events(story);
        for begin in 0..events.len() {
            let text = lines(&events[begin..], Style::PLAIN);
            let outcomes = events[begin..].iter().any(|e| matches!(e.event, Event::Outcome { .. }));
            assert!(outcomes || text.is_empty(), "{story} from {begin}: {text}");
        }
    }
}

#[test]
fn the_document_has_what_is_documented() {
    for story in STORIES {
        let document = report::json(&events(story));
        let fields: Vec<&str> = document.as_object().expect("an object").keys().map(String::as_str).collect();
        let documented = [
            "backups", "by", "checks", "cluster", "consent", "ended", "events", "kadence", "moments", "nodes",
            "outage", "plan", "purpose", "rollout", "schema", "started", "target", "timeline", "took", "verdict",
        ];
        assert_eq!(fields, documented, "{story}");
        assert_eq!(document["schema"], 1);
        assert_eq!(document["events"].as_array().map(Vec::len), Some(events(story).len()));
    }
    let lost = report::json(&events("lost"));
    let s3 = lost["nodes"].as_array().expect("nodes").iter().find(|n| n["name"] == "s3").expect("s3");
    assert_eq!(s3["our_cordon"], true);
    assert!(s3["after"]["unknown"].is_string(), "what is not known is not the version before: {s3}");
    let broken = report::json(&events("update")[3..]);
    assert!(broken["error"].is_string() && broken["events"].is_array());
}

// ------------------------------------------------------------------------------------------------------- documents

/// Of each list of objects the first entry; what stands elsewhere on the page is only pointed to.
fn shortened(value: Value, depth: usize) -> Value {
    match value {
        Value::Array(all) if all.iter().any(Value::is_object) => {
            all.into_iter().take(1).map(|v| shortened(v, depth + 1)).collect()
        }
        Value::Array(all) if all.len() > 4 => {
            let mut few: Vec<Value> = all.into_iter().take(3).collect();
            few.push("...".into());
            few.into()
        }
        Value::Object(map) if depth > 0 && map.contains_key("decision") => Value::from("as in plan"),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, shortened(value, depth + 1))).collect(),
        other => other,
    }
}

fn documents() -> BTreeMap<&'static str, Value> {
    let inventory: Inventory = parse("etcd.inventory.json");
    let minors = plan_of("minors");
    let findings = not_ready();
    let lost = rollout("lost");
    let file = Path::new("state/plans").join(format!("shop-{}.json", minors.hash().short()));
    let probes = BTreeMap::from([
        ("shop answers".to_owned(), Fact::Known(true)),
        ("orders".to_owned(), Fact::unknown("GET https://orders.example/health: 503")),
    ]);
    let why = Why { inventory: &inventory, unfinished: None, plan: Ok(&minors), findings: &findings };
    let mut plan = plan::json(&minors, &file);
    // The plan itself is shown here.
    plan["plan"]["decision"] = shortened(plan["plan"]["decision"].take(), 0);
    let short = |value: Value| shortened(value, 0);
    BTreeMap::from([
        ("inspect", short(serde_json::to_value(&inventory).expect("json"))),
        ("check", short(check::json("shop", Some(&minors.decision.target), &findings))),
        ("validate", short(check::validate_json("shop", &probes, &findings))),
        ("plan", plan),
        ("status", short(status::rollouts_json(&[lost]))),
        ("why", short(status::why_json(&why))),
        ("report", short(report::json(&events("crash")))),
    ])
}

#[test]
fn every_document_is_on_its_page() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let kept = std::fs::read_to_string(&file).expect("docs/json.md");
    let mut page = kept.clone();
    for (name, document) in documents() {
        let mark = format!("<!-- example: {name} -->\n");
        let (before, after) = page.split_once(&mark).unwrap_or_else(|| panic!("docs/json.md has no {mark}"));
        let section = before.rsplit("\n## ").next().unwrap_or_default();
        let fields = match document["rollouts"].get(0) {
            Some(rollout) => rollout.as_object(),
            None => document.as_object(),
        };
        for field in fields.expect("an object").keys() {
            let named = section.contains(&format!("`{field}`"))
                || section.contains(&format!("`{field}["))
                || section.contains(&format!("`{field}."));
            assert!(named, "docs/json.md does not name {field} of {name}");
        }
        let rest = match after.strip_prefix("\n```json\n") {
            Some(example) => example.split_once("\n```\n").map_or("", |(_, rest)| rest),
            None => after,
        };
        page = format!("{before}{mark}\n```json\n{document:#}\n```\n{rest}");
    }
    if std::env::var_os("KADENCE_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&file, page).expect("written");
    } else {
        assert!(kept == page, "docs/json.md is not what is printed: KADENCE_GOLDEN=write accepts the difference");
    }
}

// -------------------------------------------------------------------------------------------------------- runbooks

fn runbooks() -> BTreeMap<String, String> {
    let plans = PLANS.iter().map(|name| ((*name).to_owned(), plan_of(name)));
    let stories = STORIES.iter().map(|name| ((*name).to_owned(), rollout(name).plan));
    plans.chain(stories).map(|(name, plan)| (name, runbook::markdown(&plan))).collect()
}

/// The commands in a runbook, a text for each block.
fn blocks(book: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut inside = false;
    for line in book.lines() {
        match line.trim_start() {
            "```sh" => {
                inside = true;
                blocks.push(String::new());
            }
            "```" => inside = false,
            command if inside => {
                let block = blocks.last_mut().expect("a block");
                block.push_str(command);
                block.push('\n');
            }
            _ => {}
        }
    }
    blocks
}

#[test]
fn commands_in_runbooks_are_commands() {
    for (name, book) in runbooks() {
        for block in blocks(&book) {
            let output = Command::new("sh").args(["-n", "-c", &block]).output().expect("sh");
            assert!(output.status.success(), "{name}: {}\n{block}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn runbooks_say_the_way_back_of_each_step_and_mark_the_point_of_no_return() {
    for (name, book) in runbooks() {
        let restore = name == "restore";
        let steps = book.lines().filter(|l| l.starts_with("### ") && l.contains(" → ")).count();
        let ways = book.matches("**Way back").count();
        assert_eq!(steps, ways, "{name}");
        assert!(restore || steps > 0, "{name}");
        let no_return = ["minors", "sqlite", "stuck", "restore"].contains(&name.as_str());
        assert_eq!(book.contains("> **⚠ Point of no return.** Once"), no_return && !restore, "{name}");
    }
}

/// What a runbook tells to do with a snapshot finds out a broken one.
#[test]
fn a_snapshot_is_verified_by_hand() {
    let book = runbook::markdown(&plan_of("minors"));
    let command = blocks(&book).into_iter().find(|b| b.contains("head -c -32")).expect("the command");
    let file = command.split_whitespace().find(|w| w.ends_with(".snapshot")).expect("a file").to_owned();
    let dir = tempfile::tempdir().expect("a folder");
    let data = b"pages of a database".repeat(100);
    let digest = kadence_core::ident::Digest::of(&data).to_string();
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
    };
    let said = |data: &[u8]| {
        std::fs::write(dir.path().join(&file), [data, &bytes(&digest)].concat()).expect("written");
        let output = Command::new("sh").args(["-c", &command]).current_dir(dir.path()).output().expect("sh");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(said(&data), "whole");
    assert_eq!(said(&[&data[..data.len() - 1], b"?"].concat()), "", "a changed byte");
    assert_eq!(said(&data[1..]), "", "a cut file");
}

// ------------------------------------------------------------------------------------------------------- the page

/// Elements that are opened and closed in order; those without content need no end.
fn well_formed(html: &str) -> Result<(), String> {
    let mut open: Vec<String> = Vec::new();
    let mut rest = html;
    while let Some(begin) = rest.find('<') {
        rest = &rest[begin + 1..];
        let end = rest.find('>').ok_or("a tag without end")?;
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        let name: String = tag.trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        if tag.matches('"').count() % 2 == 1 {
            return Err(format!("an attribute without end: <{tag}>"));
        }
        if tag.starts_with('!') || tag.ends_with('/') || matches!(name.as_str(), "meta" | "br") {
            continue;
        }
        if tag.starts_with('/') {
            let last = open.pop();
            if last.as_deref() != Some(&name) {
                return Err(format!("</{name}> closes {last:?}"));
            }
        } else if name.is_empty() {
            return Err(format!("<{tag}>"));
        } else {
            open.push(name);
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("not closed: {open:?}")) }
}

fn assert_self_contained(html: &str) {
    assert_eq!(well_formed(html), Ok(()));
    let lower = html.to_lowercase();
    for outside in ["<script", "<link", "<img", "<iframe", "src=", "href=", "@import", "url(http", "onload", "onclick"]
    {
        assert!(!lower.contains(outside), "{outside}");
    }
}

#[test]
fn the_page_needs_nothing_else() {
    for story in STORIES {
        let html = report::html(&events(story));
        assert_self_contained(&html);
        assert!(html.contains("default-src 'none'"));
    }
    assert_self_contained(&report::html(&events("update")[3..]));
}

/// Puts `text` in the place of a node's name, and of everything that a cluster or a person can say.
fn said_by_the_cluster(story: &str, text: &str) -> Vec<Recorded> {
    fn infect(value: &mut Value, text: &str) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let free = ["what", "why", "because", "next", "remedy", "line", "class", "about", "actor", "basis"];
                    let lists = ["facts", "because", "caveats"];
                    match value {
                        Value::String(said) if free.contains(&key.as_str()) => text.clone_into(said),
                        Value::Array(all) if lists.contains(&key.as_str()) => {
                            all.iter_mut().for_each(|said| *said = text.into());
                        }
                        other => infect(other, text),
                    }
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|value| infect(value, text)),
            _ => {}
        }
    }
    let name = serde_json::to_string(text).expect("json");
    let log = read(&format!("{story}.jsonl")).replace("\"s2\"", &name).replace("\"shop\"", &name);
    let infected = log.lines().map(|line| {
        let mut event: Value = serde_json::from_str(line).expect("json");
        infect(&mut event, text);
        event.to_string() + "\n"
    });
    events_of(&infected.collect::<String>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is said, nothing of it becomes a tag, an attribute or a code for the terminal.
    #[test]
    fn nothing_that_was_said_is_obeyed(
        text in "([a-z<>&\"'`/=!\\-]|<script>|<!--|]]>|\u{1b}\\[2J|\u{0}|\u{202e}|\n|```){1,12}",
        story in prop::sample::select(vec!["crash", "lost"]),
    ) {
        let marked = format!("MARK{text}KRAM");
        let events = said_by_the_cluster(story, &marked);
        let html = report::html(&events);
        assert_self_contained(&html);
        let said: Vec<&str> = html
            .split("MARK")
            .skip(1)
            // A long name is shortened in the picture.
            .filter_map(|rest| rest.split("KRAM").next()?.split('…').next())
            .collect();
        prop_assert!(said.len() > 10, "only {} places", said.len());
        for said in said {
            prop_assert!(!said.contains(['<', '>', '"', '\'', '\u{1b}', '\u{0}', '\u{202e}']), "{said:?}");
        }
        let rollout = Rollout::read(&events).expect("a log");
        let text = [
            lines(&events, Style::PLAIN),
            report::text(&events, VERBOSE),
            status::text(&rollout, later(&rollout), VERBOSE),
            plan::text(&rollout.plan, VERBOSE),
        ];
        let text = text.concat();
        prop_assert!(!text.contains(['\u{1b}', '\u{0}', '\u{202e}', '\u{7}']), "{text:?}");
        // Fences stand in pairs, and what is between them is still a command.
        for block in blocks(&runbook::markdown(&rollout.plan)) {
            let output = Command::new("sh").args(["-n", "-c", &block]).output().expect("sh");
            prop_assert!(output.status.success(), "{block}");
        }
    }
}
