//! Writes files that look like snapshots of embedded etcd, so that what reads them back has something to read.

use sha2::{Digest as _, Sha256};

const PAGE: usize = 4096;
const HEADER: usize = 16;
const ELEMENT: usize = 16;
const META: u16 = 0x04;
const LEAF: u16 = 0x02;
const IS_BUCKET: u32 = 0x01;
/// Revisions in the file: the last ones, as after a compaction.
const REVISIONS: u64 = 40;

/// A snapshot that reaches `revision`. `salt` makes files of the same revision differ.
pub(crate) fn snapshot(revision: u64, salt: u64) -> Vec<u8> {
    snapshot_of(revision, &salt.to_le_bytes())
}

/// A snapshot that reaches `revision` and holds `content` as the value of its last key.
pub(crate) fn snapshot_of(revision: u64, content: &[u8]) -> Vec<u8> {
    let mut bucket = 3_u64.to_le_bytes().to_vec();
    bucket.extend(0_u64.to_le_bytes());
    let revisions: Vec<_> = (revision.saturating_sub(REVISIONS - 1).max(1)..=revision)
        .map(|main| {
            let mut key = main.to_be_bytes().to_vec();
            key.push(b'_');
            key.extend(0_u64.to_be_bytes());
            (0, key, if main == revision { content.to_vec() } else { Vec::new() })
        })
        .collect();
    let leaf = page(3, LEAF, &revisions);
    let pages = 3 + (leaf.len() / PAGE) as u64;
    let mut bytes = meta(0, 8, pages);
    bytes.extend(meta(1, 7, pages));
    bytes.extend(page(2, LEAF, &[(IS_BUCKET, b"key".to_vec(), bucket)]));
    bytes.extend(leaf);
    let sum = Sha256::digest(&bytes);
    bytes.extend(sum);
    bytes
}

/// The content of a snapshot that [`snapshot_of`] made; whether it is whole is looked at elsewhere.
pub(crate) fn content_of(snapshot: &[u8]) -> Option<&[u8]> {
    let leaf = snapshot.get(3 * PAGE..)?;
    let number = |at: usize| Some(u32::from_le_bytes(leaf.get(at..at + 4)?.try_into().ok()?) as usize);
    let count = usize::from(u16::from_le_bytes(leaf.get(10..12)?.try_into().ok()?));
    let last = HEADER + count.checked_sub(1)? * ELEMENT;
    let from = last + number(last + 4)? + number(last + 8)?;
    leaf.get(from..from + number(last + 12)?)
}

/// A page with as many that follow it as it needs.
fn page(id: u64, flags: u16, elements: &[(u32, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut page = id.to_le_bytes().to_vec();
    page.extend(flags.to_le_bytes());
    page.extend(u16::try_from(elements.len()).unwrap_or(u16::MAX).to_le_bytes());
    page.extend(0_u32.to_le_bytes());
    let mut data: Vec<u8> = Vec::new();
    for (i, (flags, key, value)) in elements.iter().enumerate() {
        let position = (elements.len() - i) * ELEMENT + data.len();
        for field in [*flags, word(position), word(key.len()), word(value.len())] {
            page.extend(field.to_le_bytes());
        }
        data.extend(key);
        data.extend(value);
    }
    page.extend(data);
    let pages = page.len().div_ceil(PAGE);
    page[12..HEADER].copy_from_slice(&word(pages - 1).to_le_bytes());
    page.resize(pages * PAGE, 0);
    page
}

/// A meta page: the root bucket is page 2, no free list was written, as etcd has it.
fn meta(id: u64, transaction: u64, pages: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    for field in [0xED0C_DAED_u32, 2, word(PAGE), 0] {
        meta.extend(field.to_le_bytes());
    }
    for field in [2_u64, 0, u64::MAX, pages, transaction] {
        meta.extend(field.to_le_bytes());
    }
    let sum = meta
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    meta.extend(sum.to_le_bytes());
    let mut page = page(id, META, &[]);
    page[HEADER..HEADER + meta.len()].copy_from_slice(&meta);
    page
}

fn word(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use kadence_core::apply::backup::verify_etcd_snapshot;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for revision in [1, 39, 40, 12_345] {
            let bytes = snapshot(revision, 7);
            let facts = verify_etcd_snapshot(Cursor::new(bytes), Some(revision)).expect("whole");
            assert_eq!(facts.revision, revision);
        }
    }

    #[test]
    fn a_large_content_comes_back() {
        for length in [0, 7, 4096, 300_000] {
            let content: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).expect("small")).collect();
            let bytes = snapshot_of(50, &content);
            assert_eq!(content_of(&bytes), Some(content.as_slice()));
            let facts = verify_etcd_snapshot(Cursor::new(bytes), Some(50)).expect("whole");
            assert_eq!(facts.keys, 40);
        }
        assert_eq!(content_of(b"short"), None);
    }
}
