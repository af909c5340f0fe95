//! Text from files on its way to a person: nothing in it may steer a terminal or forge a line.
//!
//! A tensor's name is any Unicode text. Printed as it is, an ESC in it recolours or rewrites the
//! screen, a newline adds a row to a table, and a bidirectional control shows other letters than
//! there are. So whatever prints a string that it did not make itself passes it through
//! [`printable`]: every character of the categories Cc (controls) and Cf (invisible formatting),
//! and the two separators of lines and paragraphs, becomes its escape as Rust writes it.
//!
//! ```
//! use quant_linear::text::printable;
//!
//! assert_eq!(printable("a.weight"), "a.weight");
//! assert_eq!(printable("a\u{1b}[2J\n\u{202e}b"), r"a\u{1b}[2J\n\u{202e}b");
//! ```

use std::borrow::Cow;
use std::fmt::Write;
use std::path::Path;

use serde::{Serialize, Serializer};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Must the character be escaped where people read?
pub fn is_hidden(c: char) -> bool {
    // ASCII by range: nearly all of any text.
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(
        c.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    )
}

/// The text with every [hidden](is_hidden) character escaped: `\n`, `\u{1b}`. Escaping twice is
/// escaping once.
pub fn printable(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(is_hidden) else { return Cow::Borrowed(text) };
    let mut escaped = text[..first].to_string();
    for c in text[first..].chars() {
        if !is_hidden(c) {
            escaped.push(c);
        } else if matches!(c, '\n' | '\r' | '\t') {
            escaped.extend(c.escape_default());
        } else {
            let _ = write!(escaped, "{}", c.escape_unicode()); // a String takes all
        }
    }
    Cow::Owned(escaped)
}

/// The beginning of a word from a file, which may be any text: it is kept once for each layer.
pub(crate) fn short(word: &str) -> &str {
    word.char_indices().nth(40).map_or(word, |(end, _)| &word[..end])
}

/// A path for people, escaped like all text.
pub fn path(path: &Path) -> String {
    printable(&path.to_string_lossy()).into_owned()
}

/// A JSON list that is made while it is written.
pub struct JsonList<F>(pub F);

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for JsonList<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_and_format_character_is_escaped_and_no_letter_is() {
        let mut hidden = 0;
        for c in '\0'..=char::MAX {
            let text = format!("a{c}b");
            let shown = printable(&text);
            let category = c.general_category();
            if matches!(category, GeneralCategory::Control | GeneralCategory::Format) {
                assert!(!shown.contains(c) && shown.starts_with(r"a\"), "{c:?}");
                assert_eq!(printable(&shown), shown);
                hidden += 1;
            } else if c.is_alphanumeric() {
                assert_eq!(shown, text);
            }
        }
        // 65 controls; the formats grow with Unicode.
        assert!(hidden >= 65 + 163, "{hidden}");
        for c in "\u{1b}\u{7f}\u{9b}\u{ad}\u{200b}\u{200f}\u{202e}\u{2066}\u{feff}\u{e0041}".chars()
        {
            assert!(is_hidden(c), "{c:?}");
        }
        assert_eq!(printable("ä漢\u{301}\u{a0}\\n"), "ä漢\u{301}\u{a0}\\n");
    }
}
