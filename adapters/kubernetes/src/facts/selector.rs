//! Selectors over labels, evaluated as the API server and the scheduler do.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kadence_core::inventory::ApiNode;

pub(crate) type Labels = BTreeMap<String, String>;

/// An empty selector selects everything.
pub(crate) fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten();
    equal && expressions.into_iter().all(|e| holds(&e.operator, &e.values, labels.get(&e.key).map(String::as_str)))
}

/// Whether a pod with this node selector and these terms of a required affinity may be placed on the node. Terms are
/// alternatives; none at all is no restriction, and a term that says nothing allows nothing.
pub(crate) fn allows(selector: &Labels, terms: Option<&[NodeSelectorTerm]>, node: &ApiNode) -> bool {
    let labels = &node.object.labels;
    let label = |r: &NodeSelectorRequirement| holds(&r.operator, &r.values, labels.get(&r.key).map(String::as_str));
    let field = |r: &NodeSelectorRequirement| {
        holds(&r.operator, &r.values, (r.key == "metadata.name").then_some(node.name.as_str()))
    };
    let term = |t: &NodeSelectorTerm| {
        let expressions = t.match_expressions.as_deref().unwrap_or_default();
        let fields = t.match_fields.as_deref().unwrap_or_default();
        !(expressions.is_empty() && fields.is_empty()) && expressions.iter().all(label) && fields.iter().all(field)
    };
    selector.iter().all(|(key, value)| labels.get(key) == Some(value)) && terms.is_none_or(|t| t.iter().any(term))
}

fn holds(operator: &str, values: &Option<Vec<String>>, actual: Option<&str>) -> bool {
    let values = values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = || Some((number(actual?)?, number(values.first()?)?));
    match operator {
        "In" => actual.is_some_and(|a| values.iter().any(|v| v == a)),
        "NotIn" => !actual.is_some_and(|a| values.iter().any(|v| v == a)),
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => compare().is_some_and(|(actual, value)| actual > value),
        "Lt" => compare().is_some_and(|(actual, value)| actual < value),
        // The API server admits no other.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn label_selectors_select_as_the_api_does() {
        let web = labels(&[("app", "web"), ("tier", "front")]);
        let expression = |operator: &str, key: &str, values: &[&str]| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        for (selector, expected) in [
            (json!({}), true),
            (json!({ "matchLabels": { "app": "web" } }), true),
            (json!({ "matchLabels": { "app": "db" } }), false),
            (expression("In", "app", &["db", "web"]), true),
            (expression("In", "zone", &["a"]), false),
            (expression("NotIn", "app", &["web"]), false),
            (expression("NotIn", "zone", &["a"]), true),
            (expression("Exists", "tier", &[]), true),
            (expression("DoesNotExist", "tier", &[]), false),
            (
                json!({ "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["back"] }] }),
                false,
            ),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).expect("a selector");
            assert_eq!(selects(&parsed, &web), expected, "{selector}");
        }
    }
}
