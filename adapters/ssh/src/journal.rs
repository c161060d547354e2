//! Lines of K3s's journal, on their way into events, reports and terminals.
//!
//! Only lines that name a known cause are taken, and of those only what tells the cause: a line may quote a command
//! line, a statement of SQL or a URL, and with it a token or a password. So the value of a `key=value` is shown only if
//! its key is on the list below, and what looks like a secret in running text is taken out, too.

use kadence_core::apply::signature;

use kadence_engine::ports::Sign;

/// What stands in the place of what is not shown.
const HIDDEN: &str = "***";
/// Enough for the cause; stack traces and dumps come after it.
const LONGEST: usize = 600;

/// Keys whose values tell a cause, in logrus's and klog's `key=value` and in etcd's JSON.
const SHOWN: &[&str] = &[
    "address",
    "addr",
    "attempt",
    "caller",
    "code",
    "component",
    "controller",
    "count",
    "current-server-version",
    "determined-cluster-version",
    "duration",
    "elapsed",
    "endpoint",
    "endpoints",
    "err",
    "error",
    "exit",
    "expected-duration",
    "feature-gates",
    "file",
    "level",
    "local-member-id",
    "logger",
    "msg",
    "name",
    "namespace",
    "node",
    "path",
    "reason",
    "remote-peer-id",
    "server",
    "signal",
    "status",
    "time",
    "took",
    "ts",
    "unit",
    "url",
    "version",
];

/// What follows one of these, after a colon or a blank, is a secret.
const SECRET_FOLLOWS: &[&str] =
    &["authorization:", "basic", "bearer", "credential:", "passwd:", "password:", "secret:", "token:"];

/// A sign of the line, if it names a known cause.
pub(crate) fn sign(line: &str) -> Option<Sign> {
    let class = signature::classify(line)?.class.to_owned();
    Some(Sign::Journal { class, line: without_secrets(line) })
}

fn without_secrets(line: &str) -> String {
    let shown = words(&values(statement(line)));
    match shown.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// Without the statement that kine quotes when the database is slow, and its arguments.
fn statement(line: &str) -> &str {
    let Some(slow) = line.find("Slow SQL") else { return line };
    line[slow..].find("): ").map_or(&line[..slow + "Slow SQL".len()], |end| &line[..=slow + end])
}

/// Takes out the values of keys that are not on the list.
fn values(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // `=` in logrus's and klog's lines, `":` in JSON.
    while let Some(at) = rest.find(['=', ':']) {
        let (before, after) = rest.split_at(at);
        let (sign, value) = after.split_at(1);
        let json = before.ends_with('"');
        let key = before.trim_end_matches('"');
        let begin = key
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c)))
            .map_or(0, |i| i + key[i..].chars().next().map_or(1, char::len_utf8));
        let key = key[begin..].trim_start_matches('-').to_ascii_lowercase();
        out.push_str(before);
        out.push_str(sign);
        rest = value;
        if key.is_empty() || (sign == ":" && !json) {
            continue;
        }
        let blank = value.len() - value.trim_start_matches(' ').len();
        let blank = if json { blank } else { 0 };
        out.push_str(&value[..blank]);
        let (open, inner, close, behind) = value_of(&value[blank..]);
        let shown = SHOWN.contains(&key.as_str()) || key.ends_with("-arg") || matches!(inner, "" | "true" | "false");
        out.push_str(open);
        if shown {
            out.push_str(&values(inner));
        } else {
            out.push_str(HIDDEN);
        }
        out.push_str(close);
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// A value's opening quote, what is in it, its closing quote, and what comes after.
fn value_of(text: &str) -> (&str, &str, &str, &str) {
    for quote in ["\\\"", "\"", "'", "`"] {
        let Some(inside) = text.strip_prefix(quote) else { continue };
        let mut from = 0;
        while let Some(found) = inside[from..].find(quote).map(|at| from + at) {
            // An escaped quote is part of the value, and so is one that begins the value of a key within.
            if inside[..found].ends_with(['\\', '=']) {
                from = found + quote.len();
                continue;
            }
            let (inner, rest) = inside.split_at(found);
            return (&text[..quote.len()], inner, &rest[..quote.len()], &rest[quote.len()..]);
        }
        // Cut off: all of it is the value.
        return (&text[..quote.len()], inside, "", "");
    }
    let bracket =
        [('[', ']'), ('{', '}'), ('<', '>'), ('(', ')')].into_iter().find(|(open, _)| text.starts_with(*open));
    let end = match bracket {
        Some((_, close)) => text.rfind(close).map(|at| at + 1),
        None => text.find(|c: char| c.is_whitespace() || "\"'\\,;)]}".contains(c)),
    };
    let end = end.unwrap_or(text.len());
    // `--flag=value: what is wrong with it`
    let mut end = end - usize::from(text[..end].ends_with(':'));
    if text[..end].ends_with('=') {
        // It is a key itself, and its value is quoted.
        let (open, inner, close, _) = value_of(&text[end..]);
        end += open.len() + inner.len() + close.len();
    }
    let (inner, rest) = text.split_at(end);
    ("", inner, "", rest)
}

/// Takes out what looks like a secret in running text.
fn words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut secret = false;
    for piece in text.split_inclusive(|c: char| c.is_whitespace() || "\"'`,;()[]{}<>\\".contains(c)) {
        let word = piece.trim_end_matches(|c: char| c.is_whitespace() || "\"'`,;()[]{}<>\\".contains(c));
        let end = &piece[word.len()..];
        if word.is_empty() {
            out.push_str(end);
            continue;
        }
        out.push_str(&if secret { HIDDEN.to_owned() } else { without_user(&without_keys(word)) });
        out.push_str(end);
        secret = SECRET_FOLLOWS.contains(&word.to_ascii_lowercase().as_str());
    }
    out
}

/// `https://user:password@host` as `https://***@host`.
fn without_user(word: &str) -> String {
    let Some((user, host)) = word.rsplit_once('@') else { return word.to_owned() };
    let scheme = user.find("://").map_or("", |at| &user[..at + 3]);
    format!("{scheme}{HIDDEN}@{host}")
}

/// Tokens, keys and hashes: K3s's own form, and long runs of letters and digits.
fn without_keys(word: &str) -> String {
    if word.contains("::") && (word.starts_with("K10") || word.contains("server:") || word.contains("node:")) {
        return HIDDEN.to_owned();
    }
    let mut out = String::with_capacity(word.len());
    for run in word.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || "+=_".contains(c))) {
        let letters = run.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || "+=_".contains(c)));
        let long = letters.len() >= 32 && letters.contains(|c: char| c.is_ascii_digit());
        out.push_str(if long { HIDDEN } else { letters });
        out.push_str(&run[letters.len()..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_tells_the_cause_stays() {
        for line in [
            r#"time="2026-11-25T10:00:00Z" level=fatal msg="kube-apiserver exited: unrecognized feature gate: OldGate""#,
            r#"level=fatal msg="invalid argument \"Old=true\" for --feature-gates=Old=true: unrecognized feature gate""#,
            r#"{"level":"fatal","ts":"2026-11-25T10:00:00Z","caller":"membership/cluster.go:790","msg":"invalid downgrade; server version is lower than determined cluster version","current-server-version":"3.5.21","determined-cluster-version":"3.6"}"#,
            r#"level=fatal msg="starting kubernetes: listen tcp 10.0.0.1:6443: bind: address already in use""#,
            r#"level=error msg="write /var/lib/rancher/k3s/server/db/etcd/member/wal/1.wal: no space left on device""#,
        ] {
            assert_eq!(without_secrets(line), line);
        }
    }

    #[test]
    fn secrets_do_not_leave_the_node() {
        for (line, shown) in [
            (
                r#"msg="database is locked: postgres://kine:hunter2@10.0.0.9:5432/kine?sslpassword=hunter2""#,
                r#"msg="database is locked: postgres://***@10.0.0.9:5432/kine?sslpassword=***""#,
            ),
            (
                r#"msg="Compact failed" endpoint="kine:hunter2@tcp(10.0.0.9:3306)/kine""#,
                r#"msg="Compact failed" endpoint="***@tcp(10.0.0.9:3306)/kine""#,
            ),
            (
                r#"msg="Slow SQL (started: 10:00) (total time: 2s): INSERT INTO kine VALUES ('hunter2') : [[1 hunter2]]""#,
                r#"msg="Slow SQL (started: 10:00) (total time: 2s)"#,
            ),
            (
                r#"msg="unknown flag: --x" args="server --token hunter2" token=hunter2 K3S_TOKEN="two hunter2""#,
                r#"msg="unknown flag: --x" args="***" token=*** K3S_TOKEN="***""#,
            ),
            (
                r#"msg="unknown flag --kube-apiserver-arg=oidc-client-secret=hunter2 err=\"password: hunter2\"""#,
                r#"msg="unknown flag --kube-apiserver-arg=oidc-client-secret=*** err=\"password: ***\"""#,
            ),
            (
                r#"{"msg":"too many learner member","password":"hunter2","authorization": "Bearer hunter2"}"#,
                r#"{"msg":"too many learner member","password":"***","authorization": "***"}"#,
            ),
            ("token CA hash does not match: K10abc::server:hunter2", "token CA hash does not match: ***"),
            (
                "x509: certificate has expired or is not yet valid (Bearer hunter2)",
                "x509: certificate has expired or is not yet valid (Bearer ***)",
            ),
            ("unknown flag 3f5a9c3f5a9c3f5a9c3f5a9c3f5a9c3f5a9c", "unknown flag ***"),
        ] {
            assert_eq!(without_secrets(line), shown);
        }
    }

    #[test]
    fn a_line_without_a_known_cause_is_not_taken() {
        assert_eq!(sign("level=info msg=\"Running kube-apiserver --token hunter2\""), None);
        let line = format!("msg=\"unknown flag: --x\" {}", "stack ".repeat(400));
        let sign = sign(&line);
        let cut = |class: &str, line: &str| class == "configuration" && line.chars().count() == LONGEST + 1;
        assert!(matches!(&sign, Some(Sign::Journal { class, line }) if cut(class, line)), "{sign:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// In whatever a line quotes: the value of a key that nobody listed is not in what is shown.
        #[test]
        fn a_value_is_hidden_wherever_it_stands(
            before in "[ -~]{0,40}",
            key in "(token|K3S_TOKEN|datastore-endpoint|node-password|x-y)",
            quote in prop::sample::select(vec!["", "\"", "'"]),
            after in "( [ -~]{0,40})?",
        ) {
            let line = format!("{before} {key}={quote}hunter2secret{quote}{after}");
            let nested = format!("level=error msg=\"{before} {key}={quote}hunter2secret{quote}{after}\"");
            prop_assert!(!without_secrets(&nested).contains("hunter2secret"), "{}", without_secrets(&nested));
            prop_assert!(!without_secrets(&line).contains("hunter2secret"), "{}", without_secrets(&line));
        }

        #[test]
        fn any_line_is_survived(line in "(.|=|\"|\\\\|@|:|é){0,200}") {
            without_secrets(&line);
        }
    }
}
