//! K3s versions and their order.
//!
//! K3s tags read `v1.36.4+k3s1`: a Kubernetes version and the number of the K3s build made from it. Semantic
//! versioning leaves build metadata out of the order and the `semver` crate orders it as text, so `+k3s10` would come
//! before `+k3s2`; downgrade guards in the field fail on exactly that. Only this module compares versions.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A K3s version such as `v1.36.4+k3s1` or `v1.37.0-rc1+k3s1`.
///
/// Ordered by major, minor, patch, pre-release (by the rules of semantic versioning: a pre-release comes before its
/// release), then by the number after `+k3s`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    kubernetes: semver::Version,
    build: u32,
}

/// A Kubernetes minor, such as `v1.36`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Minor {
    pub major: u64,
    pub minor: u64,
}

/// Why a text is not a version that Kadence knows how to order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error("`{text}` is not a version: {why}; K3s versions look like v1.36.4+k3s1")]
    Malformed { text: String, why: String },
    #[error("`{text}` has no `+k3s` build number; K3s versions look like v1.36.4+k3s1")]
    NoBuild { text: String },
    /// RKE2, forks and development builds: their order relative to K3s releases is not known.
    #[error("`{text}` has the build suffix `+{suffix}`, which is not K3s's `+k3sN`: its order is unknown")]
    ForeignBuild { text: String, suffix: String },
}

impl Version {
    /// Builds a release (not a pre-release) from its numbers.
    pub fn new(major: u64, minor: u64, patch: u64, build: u32) -> Self {
        Self { kubernetes: semver::Version::new(major, minor, patch), build }
    }

    pub fn minor(&self) -> Minor {
        Minor { major: self.kubernetes.major, minor: self.kubernetes.minor }
    }

    pub fn patch(&self) -> u64 {
        self.kubernetes.patch
    }

    /// The number after `+k3s`.
    pub fn build(&self) -> u32 {
        self.build
    }

    pub fn is_prerelease(&self) -> bool {
        !self.kubernetes.pre.is_empty()
    }

    /// The tag of images that belong to this release: `+` is not allowed in image tags, so K3s writes `-`.
    pub fn image_tag(&self) -> String {
        self.to_string().replace('+', "-")
    }
}

impl Minor {
    /// How many minors `self` is above `other`; negative if below; `None` across majors, where minors do not count.
    pub fn above(self, other: Self) -> Option<i64> {
        (self.major == other.major)
            .then(|| i64::try_from(self.minor).ok()?.checked_sub(i64::try_from(other.minor).ok()?))
            .flatten()
    }

    pub fn next(self) -> Self {
        Self { major: self.major, minor: self.minor.saturating_add(1) }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.kubernetes.cmp_precedence(&other.kubernetes).then(self.build.cmp(&other.build))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let malformed = |why: String| VersionError::Malformed { text: text.to_owned(), why };
        let bare = text.strip_prefix('v').ok_or_else(|| malformed("it does not begin with `v`".to_owned()))?;
        let Some((kubernetes, suffix)) = bare.split_once('+') else {
            semver::Version::parse(bare).map_err(|e| malformed(e.to_string()))?;
            return Err(VersionError::NoBuild { text: text.to_owned() });
        };
        let kubernetes = semver::Version::parse(kubernetes).map_err(|e| malformed(e.to_string()))?;
        let foreign = || VersionError::ForeignBuild { text: text.to_owned(), suffix: suffix.to_owned() };
        let digits = suffix.strip_prefix("k3s").ok_or_else(foreign)?;
        // No sign, no leading zero: what is parsed must print as it was written, or two texts would name one release.
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
            return Err(foreign());
        }
        let build = digits.parse().map_err(|_| foreign())?;
        Ok(Self { kubernetes, build })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("v{}+k3s{}", self.kubernetes, self.build))
    }
}

impl FromStr for Minor {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let malformed =
            || VersionError::Malformed { text: text.to_owned(), why: "a minor looks like v1.36".to_owned() };
        let (major, minor) = text.strip_prefix('v').and_then(|t| t.split_once('.')).ok_or_else(malformed)?;
        match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => Ok(Self { major, minor }),
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("v{}.{}", self.major, self.minor))
    }
}

macro_rules! text_conversions {
    ($($t:ty),*) => {$(
        impl TryFrom<String> for $t {
            type Error = VersionError;
            fn try_from(text: String) -> Result<Self, VersionError> {
                text.parse()
            }
        }
        impl From<$t> for String {
            fn from(value: $t) -> Self {
                value.to_string()
            }
        }
    )*};
}
text_conversions!(Version, Minor);

impl JsonSchema for Version {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A K3s version, such as v1.36.4+k3s1",
            "pattern": r"^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?\+k3s[1-9]\d*$",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v(text: &str) -> Version {
        text.parse().expect("a version")
    }

    #[test]
    fn builds_are_numbers_not_text() {
        assert!(v("v1.30.4+k3s10") > v("v1.30.4+k3s2"));
        assert!(v("v1.30.4+k3s2") > v("v1.30.4+k3s1"));
    }

    #[test]
    fn order_is_patch_then_prerelease_then_build() {
        let ordered = [
            "v1.9.9+k3s1",
            "v1.36.3+k3s2",
            "v1.36.4-rc1+k3s1",
            "v1.36.4-rc1+k3s2",
            "v1.36.4-rc2+k3s1",
            "v1.36.4+k3s1",
            "v1.36.10+k3s1",
            "v1.37.0+k3s1",
            "v2.0.0+k3s1",
        ];
        for pair in ordered.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{} < {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn what_is_not_a_k3s_release_is_refused() {
        for foreign in
            ["v1.36.4+rke2r1", "v1.36.4+k3s", "v1.36.4+k3s1-dirty", "v1.36.4+k3s01", "v1.36.4+k3s99999999999"]
        {
            assert!(matches!(foreign.parse::<Version>(), Err(VersionError::ForeignBuild { .. })), "{foreign}");
        }
        assert!(matches!("v1.36.4".parse::<Version>(), Err(VersionError::NoBuild { .. })));
        for malformed in ["", "1.36.4+k3s1", "v1.36+k3s1", "v1.36.x+k3s1", "stable", "v1.36.4+", "v+k3s1"] {
            assert!(malformed.parse::<Version>().is_err(), "{malformed}");
        }
    }

    #[test]
    fn minors_count_within_a_major_only() {
        assert_eq!(v("v1.36.4+k3s1").minor().above(v("v1.34.9+k3s3").minor()), Some(2));
        assert_eq!(v("v1.34.4+k3s1").minor().above(v("v1.36.9+k3s3").minor()), Some(-2));
        assert_eq!(v("v2.0.0+k3s1").minor().above(v("v1.36.9+k3s3").minor()), None);
    }

    fn any_version() -> impl Strategy<Value = Version> {
        (0_u64..3, 0_u64..3, 0_u64..3, prop_oneof![Just(""), Just("-alpha1"), Just("-rc1"), Just("-rc2")], 1_u32..12)
            .prop_map(|(a, b, c, pre, build)| v(&format!("v{a}.{b}.{c}{pre}+k3s{build}")))
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(version in any_version()) {
            prop_assert_eq!(v(&version.to_string()), version);
        }

        #[test]
        fn the_order_is_total(a in any_version(), b in any_version(), c in any_version()) {
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a == b, a.cmp(&b) == Ordering::Equal);
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<Version>();
            let _ = text.parse::<Minor>();
        }
    }
}
