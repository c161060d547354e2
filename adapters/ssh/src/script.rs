//! The script that does everything on a node, and how it gets there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use kadence_core::ident::Digest;

const SCRIPT: &str = include_str!("node.sh");

/// What a node is asked to run: it reads lines until the script's comes, then becomes the script.
///
/// `read` takes exactly one line from a pipe, so what follows on stdin is the script's own, and nothing has to be
/// installed for a look. The lines before are for a password that sudo did not ask for.
pub(crate) const BOOTSTRAP: &str = concat!(
    "while IFS= read -r KADENCE_TEXT; do case $KADENCE_TEXT in kadence:*) break;; esac; done; ",
    "KADENCE_TEXT=${KADENCE_TEXT#kadence:}; KADENCE_SELF=$1; shift; ",
    "[ -n \"$KADENCE_TEXT\" ] && eval \"$(printf %s \"$KADENCE_TEXT\" | base64 -d)\"",
);

pub(crate) struct Script {
    line: String,
    short: String,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self { line: format!("kadence:{}\n", BASE64.encode(SCRIPT)), short: Digest::of(SCRIPT.as_bytes()).short(12) }
    }

    /// The line that carries the script.
    pub(crate) fn line(&self) -> &str {
        &self.line
    }

    /// The first digits of its digest, by which its file on a node is named.
    pub(crate) fn short(&self) -> &str {
        &self.short
    }
}
