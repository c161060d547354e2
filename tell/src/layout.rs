//! Lines, tables and colour on a terminal.
//!
//! What is shown was said by clusters, journals and other people's programs: it may hold control characters, which a
//! terminal would obey. So text is laid out with ink as private characters, and [`Page::finish`] alone turns those into
//! escape codes, after everything else that is not plain text was taken out.

use crate::Style;

/// Ink begins with one of these and ends with [`END`].
const GOOD: char = '\u{e001}';
const WARN: char = '\u{e002}';
const BAD: char = '\u{e003}';
const DIM: char = '\u{e004}';
const STRONG: char = '\u{e005}';
const END: char = '\u{e000}';

fn ink(colour: char, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{colour}{text}{END}") }
}

pub(crate) fn good(text: &str) -> String {
    ink(GOOD, text)
}

pub(crate) fn warn(text: &str) -> String {
    ink(WARN, text)
}

pub(crate) fn bad(text: &str) -> String {
    ink(BAD, text)
}

pub(crate) fn dim(text: &str) -> String {
    ink(DIM, text)
}

pub(crate) fn strong(text: &str) -> String {
    ink(STRONG, text)
}

fn is_ink(c: char) -> bool {
    ('\u{e000}'..='\u{e00f}').contains(&c)
}

/// Columns that a text takes.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().filter(|c| !is_ink(*c)).count()
}

/// Fills up with spaces.
pub(crate) fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}

/// What a terminal would obey instead of showing it.
pub(crate) fn is_control(c: char) -> bool {
    // Besides the control characters those that turn the direction of what follows.
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text on one line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if is_control(c) { ' ' } else { c }).collect()
}

/// Breaks a text into lines of at most `width` columns, at white space; a longer word stays whole, and a number stays
/// with its unit. A text that fits stays as it is.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let text = one_line(text);
    if columns(&text) <= width {
        return vec![text.trim_end().to_owned()];
    }
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if word == "·" || is_number(last) => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
    }
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in words {
        if !line.is_empty() && columns(&line) + 1 + columns(&word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    lines.push(line);
    lines
}

fn is_number(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// A text that grows line by line.
pub(crate) struct Page {
    style: Style,
    text: String,
}

impl Page {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, text: String::new() }
    }

    pub(crate) fn verbose(&self, level: u8) -> bool {
        self.style.verbose >= level
    }

    pub(crate) fn line(&mut self, line: &str) {
        self.text.push_str(one_line(line).trim_end());
        self.text.push('\n');
    }

    /// A line that is broken where the page ends; what follows stands under the text after `label`.
    pub(crate) fn entry(&mut self, label: &str, text: &str) {
        let indent = columns(label);
        let width = usize::from(self.style.width.clamp(40, 100)).saturating_sub(indent).max(30);
        for (i, part) in wrap(text, width).iter().enumerate() {
            let label = if i == 0 { label.to_owned() } else { " ".repeat(indent) };
            self.line(&format!("{label}{part}"));
        }
    }

    /// A paragraph from the first column on.
    pub(crate) fn say(&mut self, text: &str) {
        self.entry("", text);
    }

    pub(crate) fn gap(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// Rows whose cells stand under each other, two spaces apart, after `indent` spaces.
    pub(crate) fn table(&mut self, indent: usize, rows: &[Vec<String>]) {
        let count = rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths: Vec<usize> =
            (0..count).map(|i| rows.iter().filter_map(|r| r.get(i)).map(|c| columns(c)).max().unwrap_or(0)).collect();
        for row in rows {
            let mut line = " ".repeat(indent);
            // A column that is empty in every row takes no place.
            for (cell, width) in row.iter().zip(&widths).filter(|(_, width)| **width > 0) {
                line.push_str(&pad(cell, *width));
                line.push_str("  ");
            }
            self.line(&line);
        }
    }

    /// What was laid out, with its ink, to stand on another page.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.text.lines().map(str::to_owned).collect()
    }

    /// The text with its ink as escape codes, or with none.
    pub(crate) fn finish(self) -> String {
        finish(self.style.colour, &self.text)
    }
}

/// Takes out what a terminal would obey, then turns ink into escape codes.
pub(crate) fn finish(colour: bool, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let code = match c {
            END => "\u{1b}[0m",
            GOOD => "\u{1b}[32m",
            WARN => "\u{1b}[33m",
            BAD => "\u{1b}[31m",
            DIM => "\u{1b}[2m",
            STRONG => "\u{1b}[1m",
            c if is_ink(c) => "",
            '\n' => "\n",
            c if is_control(c) => " ",
            c => {
                out.push(c);
                continue;
            }
        };
        if colour || code == "\n" || code == " " {
            out.push_str(code);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cells_stand_under_each_other_with_and_without_ink() {
        let rows = [vec![good("s1"), "server".to_owned()], vec!["agent-1".to_owned(), "agent".to_owned()]];
        let text = |colour| {
            let mut page = Page::new(Style { colour, ..Style::PLAIN });
            page.table(2, &rows);
            page.finish()
        };
        assert_eq!(text(false), "  s1       server\n  agent-1  agent\n");
        assert_eq!(text(true), "  \u{1b}[32ms1\u{1b}[0m       server\n  agent-1  agent\n");
    }

    #[test]
    fn a_long_text_is_broken_under_its_beginning() {
        let mut page = Page::new(Style { width: 40, ..Style::PLAIN });
        page.entry("    why  ", "one two three four five six, in 7 s, eight nine");
        assert_eq!(page.finish(), "    why  one two three four five six, in\n         7 s, eight nine\n");
    }

    proptest! {
        /// Whatever a cluster says, a terminal is told nothing but text, and with colour only our own codes.
        #[test]
        fn a_terminal_obeys_nobody_else(text in "(.|\u{1b}\\[31m|\u{202e}|\u{7}|\n)*") {
            let plain = finish(false, &text);
            prop_assert!(!plain.chars().any(|c| is_control(c) && c != '\n'), "{plain:?}");
            let mut coloured = finish(true, &text);
            for code in ["0", "1", "2", "31", "32", "33"] {
                coloured = coloured.replace(&format!("\u{1b}[{code}m"), "");
            }
            prop_assert!(!coloured.chars().any(|c| is_control(c) && c != '\n'), "{coloured:?}");
        }
    }
}
