//! `docs/errors.md` has every code that the program can end with, and no other.

use std::collections::BTreeSet;
use std::path::Path;

fn sources(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// The codes between these two marks.
fn codes(text: &str, before: &str, after: char) -> BTreeSet<String> {
    let words = text.split(before).skip(1).filter_map(|rest| rest.split(after).next());
    words.filter(|w| w.starts_with("E-")).map(str::to_owned).collect()
}

#[test]
fn every_code_is_explained_and_every_explained_code_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    sources(&root.join("src"), &mut code);
    let used = codes(&code, "\"", '"');
    let text = std::fs::read_to_string(root.join("../docs/errors.md")).expect("docs/errors.md");
    // A row begins with its code; elsewhere a code may be spoken of.
    let explained = codes(&text, "\n| `", '`');
    assert!(used.contains("E-CONFIG"), "{used:?}");
    assert_eq!(used.difference(&explained).collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/errors.md");
    assert_eq!(explained.difference(&used).collect::<Vec<_>>(), Vec::<&String>::new(), "used nowhere in cli/src");
}
