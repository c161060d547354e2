//! What the documents say of `kadence.yaml` is what the program reads.

use std::collections::BTreeSet;
use std::path::Path;

use kadence_core::config::{ProbeTest, Update};
use kadence_engine::config;
use serde_json::Value;

fn document(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(&file).expect("a document of the repository")
}

#[test]
fn the_example_is_read_and_shows_the_defaults() {
    let config = config::parse(&document("examples/kadence.yaml"), "examples/kadence.yaml").expect("a good example");
    let shop = &config.clusters["shop"];
    assert_eq!(shop.update, Update::default(), "the example calls these the defaults");
    let kinds: BTreeSet<_> = shop.probes.iter().map(|p| kind(&p.test)).collect();
    assert_eq!(kinds.len(), 4, "each kind of probe is shown");
}

fn kind(test: &ProbeTest) -> &'static str {
    match test {
        ProbeTest::Http(_) => "http",
        ProbeTest::Tcp(_) => "tcp",
        ProbeTest::Condition(_) => "condition",
        ProbeTest::Command(_) => "command",
    }
}

/// The keys of every mapping in the schema.
fn keys(schema: &Value, into: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Object(properties)) = object.get("properties") {
                into.extend(properties.keys().cloned());
            }
            object.values().for_each(|value| keys(value, into));
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, into)),
        _ => {}
    }
}

#[test]
fn every_key_is_described() {
    let schema: Value = serde_json::from_str(&config::schema()).expect("the schema is JSON");
    let mut known = BTreeSet::new();
    keys(&schema, &mut known);
    assert!(known.contains("agents_at_once") && known.contains("password"), "{known:?}");
    let text = document("docs/configuration.md");
    let missing: Vec<_> = known.iter().filter(|key| !text.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not describe {missing:?}");
}
