//! Plans, checks, status and reports in words.
//!
//! Pure folds of core's words: the terminal, pages and files show the same. The first line of each is the answer, the
//! last one the likely next command.

pub mod check;
pub mod inspect;
mod layout;
pub mod line;
pub mod live;
pub mod plan;
pub mod report;
pub mod runbook;
pub mod status;
mod words;

/// How text is made for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub colour: bool,
    /// Columns, at most 100.
    pub width: u16,
    /// 0: the answer and what to do; 1: reasons; 2: everything.
    pub verbose: u8,
}

impl Style {
    /// Without colour, for files and pipes.
    pub const PLAIN: Self = Self { colour: false, width: 100, verbose: 0 };
}
