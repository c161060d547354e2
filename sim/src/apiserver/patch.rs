//! JSON patches and selectors.

use serde_json::Value;

/// RFC 6902: `add`, `remove`, `replace`, `test`, `copy` and `move`. Not by the crate: as in the API server, a `test` for
/// null passes where nothing is.
///
/// # Errors
/// In words, if an operation does not fit; `target` is then half changed.
pub(crate) fn apply(target: &mut Value, patch: &Value) -> Result<(), String> {
    let operations = patch.as_array().ok_or("a JSON patch is a list of operations")?;
    for operation in operations {
        let text = |field: &str| operation[field].as_str().ok_or_else(|| format!("{field} is missing: {operation}"));
        let (op, path) = (text("op")?, text("path")?);
        match op {
            "add" => add(target, path, operation["value"].clone())?,
            "remove" => drop(remove(target, path)?),
            "replace" => {
                let place = target.pointer_mut(path).ok_or_else(|| format!("{path} is not there"))?;
                *place = operation["value"].clone();
            }
            "test" => {
                if target.pointer(path).unwrap_or(&Value::Null) != &operation["value"] {
                    return Err(format!("the test of {path} failed"));
                }
            }
            "copy" => {
                let value = target.pointer(text("from")?).cloned().ok_or("there is nothing to copy")?;
                add(target, path, value)?;
            }
            "move" => {
                let value = remove(target, text("from")?)?;
                add(target, path, value)?;
            }
            other => return Err(format!("no operation `{other}`")),
        }
    }
    Ok(())
}

fn unescaped(word: &str) -> String {
    word.replace("~1", "/").replace("~0", "~")
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let Some((parent, last)) = path.rsplit_once('/') else {
        *target = value;
        return Ok(());
    };
    match target.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            fields.insert(unescaped(last), value);
        }
        Some(Value::Array(items)) => {
            let at = if last == "-" { Some(items.len()) } else { last.parse().ok().filter(|at| *at <= items.len()) };
            items.insert(at.ok_or_else(|| format!("{path} is no place in the list"))?, value);
        }
        _ => return Err(format!("{parent} is not there")),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str) -> Result<Value, String> {
    let missing = || format!("{path} is not there");
    let (parent, last) = path.rsplit_once('/').ok_or_else(missing)?;
    match target.pointer_mut(parent) {
        Some(Value::Object(fields)) => fields.remove(&unescaped(last)).ok_or_else(missing),
        Some(Value::Array(items)) => {
            let at: usize = last.parse().map_err(|_| missing())?;
            if at < items.len() { Ok(items.remove(at)) } else { Err(missing()) }
        }
        _ => Err(missing()),
    }
}

/// Whether an object is among those that `labelSelector` and `fieldSelector` of a request name.
pub(crate) fn selected(object: &Value, labels: Option<&str>, fields: Option<&str>) -> bool {
    requirements(labels).all(|r| label_fits(object, &r)) && requirements(fields).all(|r| field_fits(object, &r))
}

/// The requirements of a selector: commas part them, except inside of brackets.
fn requirements(selector: Option<&str>) -> impl Iterator<Item = String> {
    let mut all = vec![String::new()];
    let mut depth = 0;
    for c in selector.unwrap_or_default().chars() {
        match c {
            ',' if depth == 0 => all.push(String::new()),
            _ => {
                depth += i32::from(c == '(') - i32::from(c == ')');
                if let Some(last) = all.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    all.into_iter().map(|r| r.trim().to_owned()).filter(|r| !r.is_empty())
}

fn label_fits(object: &Value, requirement: &str) -> bool {
    let label = |key: &str| object["metadata"]["labels"][key.trim()].as_str();
    if let Some((key, rest)) = requirement.split_once(' ') {
        let values = || {
            rest.split_once('(').map(|(_, v)| v.trim_end_matches(')').split(',').map(str::trim)).into_iter().flatten()
        };
        return match rest.split([' ', '(']).next() {
            Some("in") => label(key).is_some_and(|is| values().any(|v| v == is)),
            Some("notin") => label(key).is_none_or(|is| values().all(|v| v != is)),
            _ => false,
        };
    }
    if let Some((key, value)) = requirement.split_once("!=") {
        label(key) != Some(value)
    } else if let Some((key, value)) = requirement.split_once("==").or_else(|| requirement.split_once('=')) {
        label(key) == Some(value)
    } else if let Some(key) = requirement.strip_prefix('!') {
        label(key).is_none()
    } else {
        label(requirement).is_some()
    }
}

fn field_fits(object: &Value, requirement: &str) -> bool {
    let (field, value, equal) = match requirement.split_once("!=") {
        Some((field, value)) => (field, value, false),
        None => match requirement.split_once("==").or_else(|| requirement.split_once('=')) {
            Some((field, value)) => (field, value, true),
            None => return false,
        },
    };
    let is = object.pointer(&format!("/{}", field.replace('.', "/"))).and_then(Value::as_str).unwrap_or_default();
    (is == value) == equal
}

/// Whether a `LabelSelector` of an object's spec selects these labels.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    let exact = selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels[key] == *value);
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten().all(|e| {
        let is = &labels[e["key"].as_str().unwrap_or_default()];
        let among = || e["values"].as_array().into_iter().flatten().any(|v| v == is);
        match e["operator"].as_str() {
            Some("In") => among(),
            Some("NotIn") => !among(),
            Some("Exists") => !is.is_null(),
            Some("DoesNotExist") => is.is_null(),
            _ => false,
        }
    });
    exact && expressions
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_do_what_their_rfcs_say() {
        let mut object = json!({ "a": { "b": 1, "c": [1, 2] } });
        json_patch::merge(&mut object, &json!({ "a": { "b": null, "d": { "e": null } } }));
        assert_eq!(object, json!({ "a": { "c": [1, 2], "d": {} } }));
        let patch = json!([
            { "op": "test", "path": "/a/c/0", "value": 1 },
            { "op": "add", "path": "/a/c/-", "value": 3 },
            { "op": "add", "path": "/a/c/0", "value": 0 },
            { "op": "add", "path": "/a/x~1y", "value": "z" },
            { "op": "remove", "path": "/a/d" },
            { "op": "replace", "path": "/a/c/1", "value": 9 },
            { "op": "move", "from": "/a/x~1y", "path": "/w" },
        ]);
        apply(&mut object, &patch).expect("it fits");
        assert_eq!(object, json!({ "a": { "c": [0, 9, 2, 3] }, "w": "z" }));
        for (op, path) in
            [("test", "/w"), ("remove", "/nowhere"), ("replace", "/nowhere"), ("add", "/a/c/99"), ("x", "/w")]
        {
            let patch = json!([{ "op": op, "path": path, "value": 0 }]);
            assert!(apply(&mut object.clone(), &patch).is_err(), "{op} {path}");
        }
    }

    #[test]
    fn selectors_select() {
        let pod = json!({ "metadata": { "name": "web", "labels": { "app": "web" } }, "spec": { "nodeName": "a1" } });
        for (labels, fields, fits) in [
            ("", "", true),
            ("app=web", "spec.nodeName=a1", true),
            ("app", "metadata.name==web", true),
            ("app in (api, web),!tier", "", true),
            ("app notin (api,web)", "", false),
            ("app!=web", "", false),
            ("!app", "", false),
            ("tier", "", false),
            ("", "spec.nodeName!=a1", false),
            ("", "spec.nodeName=", false),
        ] {
            assert_eq!(selected(&pod, Some(labels), Some(fields)), fits, "{labels} {fields}");
        }
        let labels = &pod["metadata"]["labels"];
        assert!(selects(
            &json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web"] }] }),
            labels
        ));
        assert!(selects(&json!({}), labels) && !selects(&Value::Null, labels));
        assert!(!selects(&json!({ "matchLabels": { "app": "api" } }), labels));
    }
}
