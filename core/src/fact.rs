//! A fact, or the reason why it could not be had.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Something that was looked for. *Unknown* is a case of its own: it is never taken for "no", "none" or "healthy".
///
/// In JSON a known fact is its value, an unknown one is `{"unknown": "why"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    Known(T),
    /// Why it is not known, in words for a person.
    Unknown(String),
}

impl<T> Fact<T> {
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown(why.into())
    }

    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why the fact is unknown; `None` if it is known.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(why) => Some(why),
        }
    }

    pub fn as_ref(&self) -> Fact<&T> {
        match self {
            Self::Known(value) => Fact::Known(value),
            Self::Unknown(why) => Fact::Unknown(why.clone()),
        }
    }

    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Known(value) => Fact::Known(f(value)),
            Self::Unknown(why) => Fact::Unknown(why),
        }
    }

    pub fn and_then<U>(self, f: impl FnOnce(T) -> Fact<U>) -> Fact<U> {
        match self {
            Self::Known(value) => f(value),
            Self::Unknown(why) => Fact::Unknown(why),
        }
    }

    /// Whether the fact is known and equal to `value`. Unknown is not equal to anything.
    pub fn is(&self, value: &T) -> bool
    where
        T: PartialEq,
    {
        self.known() == Some(value)
    }
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Fact<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

#[derive(Serialize)]
struct Unknown {
    unknown: String,
}

impl<T: Serialize> Serialize for Fact<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Unknown(why) => Unknown { unknown: why.clone() }.serialize(serializer),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Fact<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        // Not by deriving: a struct is also read from a list of its fields, and `["s1"]` is a fact.
        let reason = value.as_object().filter(|fields| fields.len() == 1).and_then(|fields| fields.get("unknown"));
        if let Some(why) = reason.and_then(serde_json::Value::as_str) {
            return Ok(Self::Unknown(why.to_owned()));
        }
        serde_json::from_value(value).map(Self::Known).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_shows_the_value_or_the_reason() {
        let known: Fact<u32> = Fact::Known(3);
        let unknown: Fact<u32> = Fact::unknown("sshd did not answer");
        assert_eq!(serde_json::to_string(&known).expect("json"), "3");
        assert_eq!(serde_json::to_string(&unknown).expect("json"), r#"{"unknown":"sshd did not answer"}"#);
        for fact in [known, unknown] {
            let text = serde_json::to_string(&fact).expect("json");
            assert_eq!(serde_json::from_str::<Fact<u32>>(&text).expect("fact"), fact);
        }
    }

    #[test]
    fn a_list_of_one_text_is_known() {
        let fact = Fact::Known(vec!["s1".to_owned()]);
        let text = serde_json::to_string(&fact).expect("json");
        assert_eq!(serde_json::from_str::<Fact<Vec<String>>>(&text).expect("fact"), fact);
    }
}
