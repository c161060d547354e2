//! `kadence config check` through the real binary.

use std::path::Path;
use std::process::{Command, Output};

fn check(folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kadence"));
    command.args(["config", "check"]).current_dir(folder).env_clear().output().expect("started")
}

/// Little, and all of it there.
fn good(folder: &Path) -> String {
    std::fs::write(folder.join("kubeconfig"), "").expect("written");
    "backups:\n  recipients:\n    - age1625cvwnfy9966mlreuerh6pacn70g6k0g83tsze0aky2ummguzkqec5fk6\n\
     clusters:\n  shop:\n    environment: staging\n    kubeconfig: kubeconfig\n"
        .to_owned()
}

#[test]
fn what_is_good_is_said_to_be_so() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("kadence.yaml"), good(folder.path())).expect("written");
    let output = check(folder.path());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kadence.yaml is good. Clusters: shop.\n");
}

#[test]
fn a_file_that_is_not_there_is_found_before_a_night_is_planned_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = good(folder.path()).replace("kubeconfig: kubeconfig", "kubeconfig: nowhere");
    std::fs::write(folder.path().join("kadence.yaml"), text).expect("written");
    let output = check(folder.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(said.contains("there is no file") && said.contains("nowhere"), "{said}");
    assert!(said.contains("kadence.yaml:") && said.contains("E-CONFIG") && said.contains("next: "), "{said}");
}
