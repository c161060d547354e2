//! Every story that once broke an invariant breaks none any more.

use kadence_sim::explore::Case;

#[test]
fn what_once_broke_an_invariant_breaks_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let stories = include_str!("../regressions.txt").lines().map(str::trim);
    let mut broken = Vec::new();
    for name in stories.filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let case = Case::named(name).expect(name);
        let told = case.tell(folder.path()).expect("a runtime");
        broken.extend(told.violations.iter().map(|v| format!("{name}: {v}")));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
