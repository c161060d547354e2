//! Reads a backup back: whether what was copied off a node is whole, and how far it reaches.
//!
//! A snapshot of etcd is a bbolt file with its SHA-256 after it. The format is bbolt's own: pages of equal size, two
//! meta pages at the front, buckets as B+trees. The bytes are not trusted: every offset is checked, no page is read
//! twice, and the memory used is that of one page (a page with a large value spans several).

use std::io::{Read, Seek, SeekFrom};

use sha2::{Digest as _, Sha256};

/// What a snapshot of etcd holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// The last revision that a write left in it.
    pub revision: u64,
    /// Bytes of the file, its sum included.
    pub size: u64,
    /// Revisions of keys that it holds: more than there are keys, fewer than there were writes.
    pub keys: u64,
}

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it has {0} bytes: too few for a snapshot, or cut off")]
    Size(u64),
    #[error("its SHA-256 does not match its content: it is damaged or cut off")]
    Sum,
    #[error("meta page {page}: {why}")]
    Meta { page: u64, why: String },
    #[error("page {page}: {why}")]
    Page { page: u64, why: String },
    #[error("it has no bucket `key`: it is a bbolt file, and not one of etcd's")]
    NoKeys,
    #[error("it reaches revision {reaches}, and the datastore was at {at_least} before")]
    TooOld { reaches: u64, at_least: u64 },
    #[error("SQLite's integrity check says: {0}")]
    Integrity(String),
}

const SUM_BYTES: u64 = 32;
const HEADER: usize = 16;
const ELEMENT: usize = 16;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const META: u16 = 0x04;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const IS_BUCKET: u32 = 0x01;
/// bbolt's trees have a fanout of dozens: one of this depth would be larger than any disk.
const MAX_DEPTH: u32 = 32;
/// A page spans more than one page size for a value that is too large; etcd's largest request is far below this.
const MAX_SPAN: u64 = 64 << 20;
/// The most pages that are kept track of: 128 GiB of database. etcd's own limit is 8 GiB.
const MAX_PAGES: u64 = 1 << 25;

/// Reads a snapshot of embedded etcd whole: its sum, both meta pages, and every page of the bucket `key`.
///
/// # Errors
/// The first thing that is wrong, in the order sum, meta pages, pages, age.
pub fn verify_etcd_snapshot<R: Read + Seek>(
    mut snapshot: R,
    at_least: Option<u64>,
) -> Result<SnapshotFacts, SnapshotError> {
    let size = snapshot.seek(SeekFrom::End(0))?;
    // What etcd appends is the sum of whole pages: anything else is no snapshot, or one without its end.
    if size <= SUM_BYTES || size % 512 != SUM_BYTES {
        return Err(SnapshotError::Size(size));
    }
    check_sum(&mut snapshot, size - SUM_BYTES)?;

    let (page_size, root) = newest_root(&mut snapshot, size - SUM_BYTES)?;
    let pages = (size - SUM_BYTES) / u64::from(page_size);
    if pages > MAX_PAGES {
        return Err(SnapshotError::Size(size));
    }
    let mut file =
        File { bytes: snapshot, page_size, pages, seen: vec![0; usize::try_from(pages / 64 + 1).unwrap_or(0)] };
    let mut bucket: Option<Bucket> = None;
    file.walk(root, 0, &mut |page, flags, key, value| {
        if flags & IS_BUCKET != 0 && key == b"key" {
            bucket = Some(Bucket::parse(page, value)?);
        }
        Ok(())
    })?;
    let bucket = bucket.ok_or(SnapshotError::NoKeys)?;

    let mut revisions = Revisions::default();
    match bucket {
        Bucket::Inline { page, bytes } => leaf(page, &bytes, &mut |p, f, k, _| revisions.take(p, f, k))?,
        Bucket::Tree(root) => file.walk(root, 0, &mut |p, f, k, _| revisions.take(p, f, k))?,
    }
    let reaches = revisions.last.0;
    match at_least {
        Some(at_least) if reaches < at_least => Err(SnapshotError::TooOld { reaches, at_least }),
        _ => Ok(SnapshotFacts { revision: reaches, size, keys: revisions.keys }),
    }
}

/// What SQLite says of a copy of K3s's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteFacts {
    /// The answer of `PRAGMA integrity_check`.
    pub integrity: String,
    /// The highest id in `kine`: the revision it reaches.
    pub revision: u64,
}

/// Judges a copy of a SQLite database by what SQLite said of it; gives the revision it reaches.
///
/// # Errors
/// The check did not say `ok`, or the copy is older than what was seen before.
pub fn judge_sqlite(facts: &SqliteFacts, at_least: Option<u64>) -> Result<u64, SnapshotError> {
    let said = facts.integrity.trim();
    if said != "ok" {
        let said = if said.is_empty() { "nothing" } else { said };
        return Err(SnapshotError::Integrity(said.chars().take(200).collect()));
    }
    match at_least {
        Some(at_least) if facts.revision < at_least => Err(SnapshotError::TooOld { reaches: facts.revision, at_least }),
        _ => Ok(facts.revision),
    }
}

fn check_sum(bytes: &mut (impl Read + Seek), length: u64) -> Result<(), SnapshotError> {
    bytes.seek(SeekFrom::Start(0))?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut left = length;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        bytes.read_exact(&mut buffer[..part])?;
        sum.update(&buffer[..part]);
        left -= part as u64;
    }
    let mut stored = [0; SUM_BYTES as usize];
    bytes.read_exact(&mut stored)?;
    if sum.finalize().as_slice() == stored { Ok(()) } else { Err(SnapshotError::Sum) }
}

/// Page size and root page, by the newer of the two meta pages. Both have to be whole: etcd writes them so.
fn newest_root(bytes: &mut (impl Read + Seek), length: u64) -> Result<(u32, u64), SnapshotError> {
    let first = Meta::read(bytes, 0, 0)?;
    let size = first.page_size;
    if !(1024..=65536).contains(&size) || !size.is_power_of_two() || !length.is_multiple_of(u64::from(size)) {
        return Err(SnapshotError::Meta { page: 0, why: format!("pages of {size} bytes do not fit the file") });
    }
    let second = Meta::read(bytes, 1, u64::from(size))?;
    if second.page_size != size {
        let why = format!("its pages have {} bytes, those of the other {size}", second.page_size);
        return Err(SnapshotError::Meta { page: 1, why });
    }
    let newer = if second.transaction > first.transaction { second } else { first };
    if newer.end > length / u64::from(size) {
        let why = format!("it counts {} pages, the file has {}", newer.end, length / u64::from(size));
        return Err(SnapshotError::Meta { page: 0, why });
    }
    Ok((size, newer.root))
}

struct Meta {
    page_size: u32,
    root: u64,
    /// The first page number that was never used.
    end: u64,
    transaction: u64,
}

impl Meta {
    fn read(bytes: &mut (impl Read + Seek), page: u64, at: u64) -> Result<Self, SnapshotError> {
        let bad = |why: &str| SnapshotError::Meta { page, why: why.to_owned() };
        let mut buffer = [0; HEADER + 64];
        bytes.seek(SeekFrom::Start(at))?;
        bytes.read_exact(&mut buffer)?;
        let (header, meta) = buffer.split_at(HEADER);
        if u16_at(header, 8) != Some(META) {
            return Err(bad("it is no meta page"));
        }
        let field = |at| u64_at(meta, at).ok_or_else(|| bad("it is cut off"));
        if u32_at(meta, 0) != Some(MAGIC) || u32_at(meta, 4) != Some(VERSION) {
            return Err(bad("it is not bbolt's, or of another version"));
        }
        if fnv_1a(&meta[..56]) != field(56)? {
            return Err(bad("its checksum does not match"));
        }
        let page_size = u32_at(meta, 8).unwrap_or(0);
        Ok(Self { page_size, root: field(16)?, end: field(40)?, transaction: field(48)? })
    }
}

/// A bucket, as the value of its name holds it: small ones lie in the value itself.
enum Bucket {
    Inline { page: u64, bytes: Vec<u8> },
    Tree(u64),
}

impl Bucket {
    fn parse(page: u64, value: &[u8]) -> Result<Self, SnapshotError> {
        match u64_at(value, 0) {
            None => Err(SnapshotError::Page { page, why: "the bucket `key` has no root".to_owned() }),
            Some(0) => Ok(Self::Inline { page, bytes: value.get(16..).unwrap_or_default().to_vec() }),
            Some(root) => Ok(Self::Tree(root)),
        }
    }
}

/// Takes in keys of the bucket `key`: revisions, in rising order.
#[derive(Default)]
struct Revisions {
    last: (u64, u64),
    keys: u64,
}

impl Revisions {
    fn take(&mut self, page: u64, flags: u32, key: &[u8]) -> Result<(), SnapshotError> {
        let bad = |why: &str| SnapshotError::Page { page, why: why.to_owned() };
        // Eight bytes, `_`, eight bytes; a deletion has a `t` after them.
        let shaped = matches!(key.len(), 17 | 18) && key[8] == b'_' && key.get(17).is_none_or(|t| *t == b't');
        let (true, Some(main), Some(sub)) = (flags & IS_BUCKET == 0 && shaped, be_u64_at(key, 0), be_u64_at(key, 9))
        else {
            return Err(bad("a key in the bucket `key` is no revision"));
        };
        if self.keys > 0 && (main, sub) <= self.last {
            return Err(bad("its revisions do not rise"));
        }
        self.last = (main, sub);
        self.keys += 1;
        Ok(())
    }
}

type Take<'a> = dyn FnMut(u64, u32, &[u8], &[u8]) -> Result<(), SnapshotError> + 'a;

struct File<R> {
    bytes: R,
    page_size: u32,
    pages: u64,
    /// A bit for each page that was read: a tree meets none twice.
    seen: Vec<u64>,
}

impl<R: Read + Seek> File<R> {
    /// Visits every element of the tree below this page, in order.
    fn walk(&mut self, page: u64, depth: u32, take: &mut Take<'_>) -> Result<(), SnapshotError> {
        if depth > MAX_DEPTH {
            return Err(SnapshotError::Page { page, why: "the tree is too deep".to_owned() });
        }
        let bytes = self.page(page)?;
        let flags = u16_at(&bytes, 8).unwrap_or(0);
        if flags == LEAF {
            return leaf(page, &bytes, take);
        }
        if flags != BRANCH {
            return Err(SnapshotError::Page { page, why: format!("it has kind {flags:#x}: neither branch nor leaf") });
        }
        let children = branch(page, &bytes)?;
        drop(bytes);
        children.into_iter().try_for_each(|child| self.walk(child, depth + 1, take))
    }

    /// Reads a page with all it spans.
    fn page(&mut self, page: u64) -> Result<Vec<u8>, SnapshotError> {
        let bad = |why: &str| SnapshotError::Page { page, why: why.to_owned() };
        if page < 2 || page >= self.pages {
            return Err(bad("a link leads there, and it lies outside the file's data"));
        }
        let (word, bit) = (usize::try_from(page / 64).unwrap_or(usize::MAX), 1_u64 << (page % 64));
        match self.seen.get_mut(word) {
            Some(seen) if *seen & bit == 0 => *seen |= bit,
            _ => return Err(bad("two links lead there")),
        }
        let size = u64::from(self.page_size);
        self.bytes.seek(SeekFrom::Start(page * size))?;
        let mut header = [0; HEADER];
        self.bytes.read_exact(&mut header)?;
        if u64_at(&header, 0) != Some(page) {
            return Err(bad("it says that it is another page"));
        }
        let span = u64::from(u32_at(&header, 12).unwrap_or(0)) + 1;
        if span * size > MAX_SPAN || page + span > self.pages {
            return Err(bad("it spans more pages than there are"));
        }
        let mut bytes = vec![0; usize::try_from(span * size).map_err(|_| bad("it is too large"))?];
        bytes[..HEADER].copy_from_slice(&header);
        self.bytes.read_exact(&mut bytes[HEADER..])?;
        Ok(bytes)
    }
}

fn leaf(page: u64, bytes: &[u8], take: &mut Take<'_>) -> Result<(), SnapshotError> {
    let bad = || SnapshotError::Page { page, why: "an element lies outside it".to_owned() };
    if u16_at(bytes, 8) != Some(LEAF) {
        return Err(SnapshotError::Page { page, why: "it is no leaf".to_owned() });
    }
    let count = usize::from(u16_at(bytes, 10).unwrap_or(0));
    for at in (0..count).map(|i| HEADER + i * ELEMENT) {
        let field = |i: usize| u32_at(bytes, at + 4 * i).ok_or_else(bad);
        let (flags, position, key, value) = (field(0)?, field(1)?, field(2)?, field(3)?);
        let start = at.checked_add(position as usize).ok_or_else(bad)?;
        let middle = start.checked_add(key as usize).ok_or_else(bad)?;
        let end = middle.checked_add(value as usize).ok_or_else(bad)?;
        take(page, flags, bytes.get(start..middle).ok_or_else(bad)?, bytes.get(middle..end).ok_or_else(bad)?)?;
    }
    Ok(())
}

fn branch(page: u64, bytes: &[u8]) -> Result<Vec<u64>, SnapshotError> {
    let count = usize::from(u16_at(bytes, 10).unwrap_or(0));
    (0..count)
        .map(|i| {
            u64_at(bytes, HEADER + i * ELEMENT + 8)
                .ok_or_else(|| SnapshotError::Page { page, why: "an element lies outside it".to_owned() })
        })
        .collect()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be_u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// A bbolt file made by hand: pages of 1024 bytes, the bucket `key` as a branch over leaves.
    struct Made {
        pages: Vec<Vec<u8>>,
    }

    const PAGE: usize = 1024;

    impl Made {
        fn page(id: u64, flags: u16, elements: &[(u32, Vec<u8>, Vec<u8>)], children: &[u64]) -> Vec<u8> {
            let count = elements.len() + children.len();
            let mut page = Vec::new();
            page.extend(id.to_le_bytes());
            page.extend(flags.to_le_bytes());
            page.extend(u16::try_from(count).expect("few").to_le_bytes());
            page.extend(0_u32.to_le_bytes());
            let mut data = Vec::<u8>::new();
            for (i, (flags, key, value)) in elements.iter().enumerate() {
                let position = (count - i) * ELEMENT + data.len();
                for field in [*flags, position as u32, key.len() as u32, value.len() as u32] {
                    page.extend(field.to_le_bytes());
                }
                data.extend(key);
                data.extend(value);
            }
            for child in children {
                page.extend([0; 8]);
                page.extend(child.to_le_bytes());
            }
            page.extend(data);
            page.resize(PAGE, 0);
            page
        }

        fn meta(id: u64, transaction: u64, end: u64) -> Vec<u8> {
            let mut meta = Vec::new();
            for word in [MAGIC, VERSION, PAGE as u32, 0] {
                meta.extend(word.to_le_bytes());
            }
            for word in [2_u64, 0, u64::MAX, end, transaction] {
                meta.extend(word.to_le_bytes());
            }
            meta.extend(fnv_1a(&meta).to_le_bytes());
            let mut page = Self::page(id, META, &[], &[]);
            page[HEADER..HEADER + 64].copy_from_slice(&meta);
            page
        }

        fn revision(main: u64) -> (u32, Vec<u8>, Vec<u8>) {
            let mut key = main.to_be_bytes().to_vec();
            key.push(b'_');
            key.extend(0_u64.to_be_bytes());
            (0, key, b"value".to_vec())
        }

        fn new() -> Self {
            let mut bucket = 3_u64.to_le_bytes().to_vec();
            bucket.extend(0_u64.to_le_bytes());
            let pages = vec![
                Self::meta(0, 8, 6),
                Self::meta(1, 7, 6),
                Self::page(2, LEAF, &[(IS_BUCKET, b"key".to_vec(), bucket)], &[]),
                Self::page(3, BRANCH, &[], &[4, 5]),
                Self::page(4, LEAF, &(1..=9).map(Self::revision).collect::<Vec<_>>(), &[]),
                Self::page(5, LEAF, &(10..=14).map(Self::revision).collect::<Vec<_>>(), &[]),
            ];
            Self { pages }
        }

        fn file(&self) -> Vec<u8> {
            let mut bytes = self.pages.concat();
            let sum = Sha256::digest(&bytes);
            bytes.extend(sum);
            bytes
        }
    }

    fn verify(bytes: &[u8]) -> Result<SnapshotFacts, SnapshotError> {
        verify_etcd_snapshot(Cursor::new(bytes), Some(14))
    }

    #[test]
    fn a_whole_snapshot_says_how_far_it_reaches() {
        let file = Made::new().file();
        let facts = verify(&file).expect("it is whole");
        assert_eq!(facts, SnapshotFacts { revision: 14, size: file.len() as u64, keys: 14 });
    }

    #[test]
    fn one_that_is_older_than_what_was_seen_is_refused() {
        let error = verify_etcd_snapshot(Cursor::new(Made::new().file()), Some(15)).expect_err("too old");
        assert_eq!(error.to_string(), "it reaches revision 14, and the datastore was at 15 before");
    }

    /// What a right sum cannot hide: each spoils the structure and then sums it anew.
    #[test]
    fn structure_is_checked_behind_the_sum() {
        type Spoil = fn(&mut Made);
        let cases: [(&str, Spoil); 9] = [
            ("meta page 1: its checksum", |m| m.pages[1][HEADER + 20] ^= 1),
            ("meta page 0: it is not bbolt's", |m| m.pages[0][HEADER] ^= 1),
            ("meta page 0: it counts 60 pages", |m| m.pages[0] = Made::meta(0, 8, 60)),
            ("page 3: two links lead there", |m| m.pages[3] = Made::page(3, BRANCH, &[], &[4, 3])),
            ("page 600: a link leads there", |m| m.pages[3] = Made::page(3, BRANCH, &[], &[4, 600])),
            ("page 4: its revisions do not rise", |m| m.pages[3] = Made::page(3, BRANCH, &[], &[5, 4])),
            ("page 4: an element lies outside", |m| m.pages[4][HEADER + 4..HEADER + 8].fill(0xff)),
            ("page 5: it says that it is another", |m| m.pages[5][0] = 9),
            ("it has no bucket `key`", |m| m.pages[2] = Made::page(2, LEAF, &[], &[])),
        ];
        for (expected, spoil) in cases {
            let mut made = Made::new();
            spoil(&mut made);
            let error = verify(&made.file()).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.starts_with(expected), "expected `{expected}`, got `{error}`");
        }
    }

    #[test]
    fn a_small_bucket_lies_in_its_value() {
        let mut bucket = vec![0; 16];
        let mut inline = Made::page(0, LEAF, &(13..=14).map(Made::revision).collect::<Vec<_>>(), &[]);
        inline.truncate(200);
        bucket.extend(inline);
        let mut made = Made::new();
        made.pages[2] = Made::page(2, LEAF, &[(IS_BUCKET, b"key".to_vec(), bucket)], &[]);
        assert_eq!(verify(&made.file()).map(|f| (f.revision, f.keys)).ok(), Some((14, 2)));
    }

    #[test]
    fn sqlite_is_judged_by_what_it_said() {
        let judge = |said: &str, revision, at_least| {
            judge_sqlite(&SqliteFacts { integrity: said.to_owned(), revision }, at_least)
        };
        assert_eq!(judge("ok\n", 812, Some(812)).ok(), Some(812));
        assert_eq!(judge("ok", 811, None).ok(), Some(811));
        assert!(matches!(judge("ok", 811, Some(812)), Err(SnapshotError::TooOld { .. })));
        for bad in ["", "database disk image is malformed", "*** in database main ***"] {
            assert!(matches!(judge(bad, 900, Some(812)), Err(SnapshotError::Integrity(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(at in 0..(6 * PAGE + 32), bit in 0_u8..8) {
            let mut file = Made::new().file();
            file[at] ^= 1 << bit;
            prop_assert!(verify(&file).is_err());
        }

        #[test]
        fn a_cut_off_file_is_refused(length in 0..(6 * PAGE + 32)) {
            let mut file = Made::new().file();
            file.truncate(length);
            prop_assert!(verify(&file).is_err());
        }

        /// Whatever the bytes are, and however well they are summed up: an answer, and soon.
        #[test]
        fn hostile_bytes_never_panic(
            changes in proptest::collection::vec((2 * PAGE..6 * PAGE, any::<u8>()), 1..200),
            root in 0_u64..9,
        ) {
            let mut made = Made::new();
            for (at, byte) in changes {
                made.pages[at / PAGE][at % PAGE] = byte;
            }
            for (page, transaction) in [(0, 8), (1, 7)] {
                let mut meta = Made::meta(page, transaction, 6);
                meta[HEADER + 16..HEADER + 24].copy_from_slice(&root.to_le_bytes());
                let sum = fnv_1a(&meta[HEADER..HEADER + 56]);
                meta[HEADER + 56..HEADER + 64].copy_from_slice(&sum.to_le_bytes());
                made.pages[usize::try_from(page).expect("small")] = meta;
            }
            let _ = verify(&made.file());
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert!(verify(&bytes).is_err());
        }
    }
}
