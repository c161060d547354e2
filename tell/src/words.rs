//! Small pieces of text that every page uses.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kadence_core::apply::plan::{DatastoreKind, Decision, Purpose};
use kadence_core::fact::Fact;
use kadence_core::ident::NodeName;
use kadence_core::inventory::Role;

/// A duration, rounded to what matters: `0.3 s`, `7.2 s`, `13 s`, `1 min 31 s`, `10 min`, `5 h`, `11 days`.
pub(crate) fn duration(duration: SignedDuration) -> String {
    let millis = duration.as_millis();
    if millis < 9_950 { took(duration).replace(".0 s", " s") } else { whole(duration) }
}

/// A measured time, with tenths of a second below a minute: `13.4 s`.
pub(crate) fn took(duration: SignedDuration) -> String {
    let millis = duration.as_millis().max(0);
    match millis {
        0 => "0 s".to_owned(),
        1..50 => "<0.1 s".to_owned(),
        50..59_950 => format!("{}.{} s", (millis + 50) / 1000, (millis + 50) % 1000 / 100),
        _ => whole(duration),
    }
}

fn whole(duration: SignedDuration) -> String {
    let seconds = duration.as_millis().max(0).saturating_add(500) / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 if seconds % 60 == 0 => format!("{minutes} min"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..172_800 if minutes % 60 == 0 => format!("{hours} h"),
        3600..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A point in time, with its zone.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A time of day in UTC, where the day is known.
pub(crate) fn clock(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%H:%M:%S").to_string()
}

/// How long ago, as a reader counts it: `12 s`, `13 min`, `5 h`, `11 days`.
pub(crate) fn age(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A size: `62 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..10_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
        10_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        1_000_000_000..10_000_000_000 => {
            format!("{}.{} GB", bytes / 1_000_000_000, bytes % 1_000_000_000 / 100_000_000)
        }
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// `1 server`, `3 servers`.
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `s1, s2, s3`.
pub(crate) fn names<'a>(names: impl IntoIterator<Item = &'a NodeName>) -> String {
    names.into_iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}

/// A fact as its value, or the word for its lack.
pub(crate) fn fact<T: ToString>(fact: &Fact<T>) -> String {
    fact.known().map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

/// What the plan is for, as a word.
pub(crate) fn purpose(decision: &Decision) -> &'static str {
    match decision.purpose {
        Purpose::Update => "update",
        Purpose::Rollback { .. } => "rollback",
        Purpose::Restore { .. } => "restore",
    }
}

pub(crate) fn datastore(kind: DatastoreKind) -> &'static str {
    match kind {
        DatastoreKind::Sqlite => "SQLite",
        DatastoreKind::EmbeddedEtcd => "embedded etcd",
        DatastoreKind::External => "external datastore",
    }
}

/// `3 servers and 1 agent`.
pub(crate) fn servers_and_agents(roles: impl Iterator<Item = Role>) -> String {
    let (servers, agents): (Vec<_>, Vec<_>) = roles.partition(|r| *r == Role::Server);
    match (servers.len(), agents.len()) {
        (s, 0) => count(s, "server"),
        (0, a) => count(a, "agent"),
        (s, a) => format!("{}, {}", count(s, "server"), count(a, "agent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_to_what_matters() {
        for (millis, text) in [
            (0, "0 s"),
            (16, "<0.1 s"),
            (300, "0.3 s"),
            (1_000, "1 s"),
            (7_245, "7.2 s"),
            (9_980, "10 s"),
            (13_400, "13 s"),
            (59_700, "1 min"),
            (91_000, "1 min 31 s"),
            (600_000, "10 min"),
            (5_400_000, "1 h 30 min"),
            (86_400_000, "24 h"),
            (950_400_000, "11 days"),
        ] {
            assert_eq!(duration(SignedDuration::from_millis(millis)), text, "{millis} ms");
        }
        assert_eq!(took(SignedDuration::from_millis(13_440)), "13.4 s");
        assert_eq!(took(SignedDuration::from_millis(59_970)), "1 min");
        assert_eq!(took(SignedDuration::from_millis(-5)), "0 s", "a clock that went back");
    }

    #[test]
    fn sizes_have_two_digits_that_matter() {
        for (size, text) in [
            (999, "999 B"),
            (2_199_584, "2.1 MB"),
            (62_000_000, "62 MB"),
            (2_147_483_648, "2.1 GB"),
            (12_000_000_000, "12 GB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }
}
