//! Text from files, made fit for a terminal.
//!
//! Names in vector files are other people's text. Control characters move the cursor, clear lines
//! or forge a line of a report; format characters (bidirectional overrides among them) show another
//! name than the one that is there. `\u{1b}[2K` is printed as `\u{1b}[2K`, letter by letter.

use std::fmt::{self, Write};

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Shows text with every character that a terminal would not print as itself escaped, as Rust
/// writes it in a string.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            c if needs_escape(c) => write!(f, "{}", c.escape_unicode()),
            c => f.write_char(c),
        })
    }
}

/// JSON for a terminal: the same value, with what [`Shown`] escapes in JSON's way.
pub fn shown_json(value: &serde_json::Value) -> String {
    let mut shown = String::new();
    // Line ends are the form's: those in strings are escaped already.
    for c in format!("{value:#}").chars() {
        if c == '\n' || !needs_escape(c) {
            shown.push(c);
        } else {
            let mut units = [0; 2];
            shown.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    shown
}

/// True for every character of the categories Cc and Cf, and for the separators of lines and
/// paragraphs.
fn needs_escape(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    matches!(c.general_category(), Control | Format | LineSeparator | ParagraphSeparator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_and_format_characters_are_escaped() {
        // Ends of ranges of the categories Cc and Cf.
        for c in [
            '\0',
            '\t',
            '\n',
            '\r',
            '\x1b',
            '\x1f',
            '\x7f',
            '\u{80}',
            '\u{9b}',
            '\u{9f}',
            '\u{ad}',
            '\u{600}',
            '\u{605}',
            '\u{61c}',
            '\u{6dd}',
            '\u{70f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200f}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{206f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{fffb}',
            '\u{110bd}',
            '\u{13430}',
            '\u{1bca0}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e0020}',
            '\u{e007f}',
        ] {
            let text = format!("a{c}b");
            assert_eq!(Shown(&text).to_string(), format!("a{}b", c.escape_unicode()));
        }
    }

    #[test]
    fn shown_json_is_the_same_value_in_characters_that_print() {
        let value = serde_json::json!({ "a\u{9b}\n": ["\u{202e}x\u{e0001}", "é", 1] });
        let shown = shown_json(&value);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert!(!shown.chars().any(|c| c != '\n' && needs_escape(c)), "{shown:?}");
        assert!(shown.contains("\\u202ex\\udb40\\udc01"), "{shown}");
    }

    #[test]
    fn what_prints_stays() {
        for text in ["b_rtn_nvfp4/x.y", "a 'quoted' \"name\" \\ 100 %", "größe", "権重", "वज़न"]
        {
            assert_eq!(Shown(text).to_string(), text);
        }
    }
}
