//! `kadence demo` through the real binary: no cluster, no network, no pauses.

use std::process::{Command, Output};

fn demo(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kadence"));
    // A folder without a configuration, and nothing of the caller's.
    let folder = tempfile::tempdir().expect("a folder");
    command.arg("demo").args(args).current_dir(folder.path()).env_clear().env("TMPDIR", folder.path());
    let output = command.output().expect("started");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("read").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "the demo left {left:?}");
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// These come in the story, in this order.
fn in_order(story: &str, parts: &[&str]) {
    let mut rest = story;
    for part in parts {
        let after = rest.split_once(part).map(|(_, after)| after);
        assert!(after.is_some(), "{part:?} does not come next in:\n{rest}\nof\n{story}");
        rest = after.unwrap_or_default();
    }
}

#[test]
fn the_first_update_is_undone_and_the_second_completes() {
    let output = demo(&["--fast"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    in_order(
        &text(&output),
        &[
            "$ kadence inspect demo",
            "3 servers, 3 agents",
            "$ kadence check demo",
            "$ kadence plan demo",
            "$ kadence apply demo",
            "✘ ",
            "✔ put s2 back on v1.36.3+k3s1",
            "✔ uncordon s2",
            "exit 4",
            "$ kadence apply demo",
            "demo is on v1.36.5+k3s1",
        ],
    );
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let one = demo(&["--fast", "--seed", "7"]);
    assert_eq!(text(&one), text(&demo(&["--fast", "--seed", "7"])));
    assert_ne!(text(&one), text(&demo(&["--fast", "--seed", "8"])));
}

/// The exits of each story's commands: one, where nothing had to be done again.
#[test]
fn every_fault_comes_to_a_good_end() {
    let faults = [
        ("crash", &[4, 0][..]),
        ("hang", &[4, 0]),
        ("dies", &[4, 0]),
        ("flap", &[4, 0]),
        ("power-loss", &[0]),
        ("kill", &[5, 0]),
        ("ssh-cut", &[0]),
        ("api-away", &[0]),
        ("disk-full", &[3, 0]),
        ("server-down", &[5, 0]),
        ("foreign-cordon", &[5, 0]),
        ("bad-backup", &[3, 0]),
    ];
    for (fault, exits) in faults {
        let output = demo(&["--fast", "--fault", fault, "--output", "json"]);
        assert_eq!(output.status.code(), Some(0), "{fault}: {output:?}");
        let story = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(story.contains("⚡"), "{fault} did not strike:\n{story}");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one document");
        let commands = document["commands"].as_array().expect("commands");
        let found: Vec<u64> = commands.iter().filter_map(|c| c["exit"].as_u64()).collect();
        assert_eq!(found, exits, "{fault}:\n{story}");
    }
    let help = text(&demo(&["--help"]));
    let listed = help.lines().filter(|l| l.trim_start().starts_with("- ")).count();
    assert_eq!(listed, faults.len(), "a fault without a test:\n{help}");
}

#[test]
fn an_unknown_fault_is_refused_with_the_known_ones() {
    let output = demo(&["--fault", "nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("crash") && said.contains("bad-backup"), "{said}");
}
