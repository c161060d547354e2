//! Names and identities. Each kind is a type of its own, so that mixing two of them does not compile.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

macro_rules! name {
    ($(#[$doc:meta])* $t:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $t(String);

        impl $t {
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<&str> for $t {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }

        impl std::borrow::Borrow<str> for $t {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name a cluster has in `kadence.yaml`.
    ClusterName
);
name!(
    /// The identity of a cluster: the uid of its namespace `kube-system`, which lives as long as the datastore.
    ClusterUid
);
name!(
    /// The name of a Kubernetes Node; for a server without one (`--disable-agent`), its name in `kadence.yaml`.
    NodeName
);
name!(
    /// One rollout, rollback or restore. Minted by the engine; sorts by time of creation.
    RolloutId
);
name!(
    /// One action of a rollout: `<rollout>-<number>`. Names the transient unit on the node, so it is never reused.
    ActionId
);

impl RolloutId {
    /// What a rollout has in common with those that adopted it: `r7` of `r7` and of `r7.2`. Marks on nodes are
    /// compared by it, so that who adopts a rollout finds and lifts its cordons.
    pub fn family(&self) -> &str {
        self.0.split('.').next().unwrap_or(&self.0)
    }

    /// The id of the rollout that takes over from this one without having its log.
    #[must_use]
    pub fn adopted(&self) -> Self {
        let next = self.0.split_once('.').and_then(|(_, n)| n.parse::<u32>().ok()).map_or(2, |n| n.saturating_add(1));
        Self(format!("{}.{next}", self.family()))
    }
}

impl ActionId {
    /// One of the orders to nodes that an action consists of.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        Self(format!("{}-{name}", self.0))
    }

    pub fn of(rollout: &RolloutId, number: u32) -> Self {
        Self(format!("{rollout}-{number}"))
    }
}

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256 in 64 hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of all that is read until the end.
    ///
    /// # Errors
    /// As reading has them.
    pub fn of_all(mut bytes: impl std::io::Read) -> std::io::Result<Self> {
        let mut sum = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match bytes.read(&mut buffer)? {
                0 => return Ok(Self(sum.finalize().into())),
                read => sum.update(&buffer[..read]),
            }
        }
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first `digits` hexadecimal digits, for people.
    pub fn short(&self, digits: usize) -> String {
        self.to_string().chars().take(digits).collect()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError(text.chars().take(80).collect());
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |d: u8| char::from(d).to_digit(16).and_then(|n| u8::try_from(n).ok());
            match (nibble(pair[0]), nibble(pair[1])) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Err(error()),
            }
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.short(12))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl JsonSchema for Digest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Digest".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 in hexadecimal" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_round_trip_and_refuse_the_rest() {
        let digest = Digest::of(b"k3s");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest), "sums are sometimes written in capitals");
        for bad in ["", "abc", &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
