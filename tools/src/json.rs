//! JSON (RFC 8259) for `--json`: the few values that there are, written on one line. Nothing here
//! reads any.
#![forbid(unsafe_code)]

use std::fmt::{self, Write};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// Not known.
    Null,
    /// A whole number.
    Number(i128),
    /// Text.
    Text(String),
    /// Values in order.
    List(Vec<Json>),
    /// Values by name, in order.
    Object(Vec<(&'static str, Json)>),
}

impl Json {
    /// A number of any of our types.
    pub fn number(number: impl Into<i128>) -> Json {
        Json::Number(number.into())
    }

    /// Anything that can be printed, as text.
    pub fn text(text: impl fmt::Display) -> Json {
        Json::Text(text.to_string())
    }

    /// A list of what is made of each.
    pub fn list<T>(values: impl IntoIterator<Item = T>, each: impl FnMut(T) -> Json) -> Json {
        Json::List(values.into_iter().map(each).collect())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Number(number) => write!(f, "{number}"),
            Json::Text(text) => write_text(f, text),
            Json::List(values) => {
                f.write_char('[')?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { "," })?;
                }
                f.write_char(']')
            }
            Json::Object(members) => {
                f.write_char('{')?;
                for (index, (name, value)) in members.iter().enumerate() {
                    write!(f, "{}\"{name}\":{value}", if index == 0 { "" } else { "," })?;
                }
                f.write_char('}')
            }
        }
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(f, "\\{letter}")?,
            '\u{0}'..='\u{1f}' | '\u{7f}' => write!(f, "\\u{:04x}", u32::from(letter))?,
            letter => f.write_char(letter)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value() {
        let value = Json::Object(vec![
            ("id", Json::number(-7)),
            ("owner", Json::text("a\"b\\c\n\u{7f}é")),
            ("users", Json::list([1u8, 2], Json::number)),
            ("none", Json::List(Vec::new())),
            ("state", Json::Null),
        ]);
        let text =
            r#"{"id":-7,"owner":"a\"b\\c\u000a\u007fé","users":[1,2],"none":[],"state":null}"#;
        assert_eq!(value.to_string(), text);
    }
}
