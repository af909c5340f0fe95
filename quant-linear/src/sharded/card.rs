//! What each rank says that the layer is, and the first difference that all find.
//!
//! ```text
//! card      name=value, a line each: version, kind, format, shape, scalars, digests
//! exchange  lengths, then cards, of all ranks to all; every rank compares all with rank 0's
//! ```
//!
//! A rank that could not build its part sends why, instead, so that the others need not wait.

use std::fmt::Display;
use std::ops::Range;

use fp4_core::reduction::Reach;
use fp4_core::{ExactSum, FloatType};
use sha2::{Digest, Sha256};

use crate::sharded::{Communicator, ShardError, Team};

/// What a value is that goes with any.
pub(super) const ANY: &str = "-";
/// The line of a rank that could not build its part.
const FAILED: &str = "failed";
/// The line with a rank's range.
const RANGE: &str = "range";

/// What a rank says.
#[derive(Debug, Default)]
pub(super) struct Card(Vec<(&'static str, String)>);

impl Card {
    /// One that says which program and kind of layer it is of.
    pub(super) fn new(kind: &str) -> Self {
        Self::of(kind, env!("CARGO_PKG_VERSION"), ExactSum::VERSION)
    }

    fn of(kind: &str, version: &str, sums: u8) -> Self {
        let card = Card::default().with("version", version);
        card.with("the exact sums' version", sums).with("layer", kind)
    }

    /// The same with a value of this name, without line ends.
    pub(super) fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.0.push((name, value.to_string().replace('\n', " ")));
        self
    }

    /// The same with a value that goes with any, if there is none.
    pub(super) fn with_some(self, name: &'static str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self.with(name, ANY),
        }
    }

    /// The same with the range of what it has.
    pub(super) fn with_range(self, range: &Range<usize>) -> Self {
        self.with(RANGE, format_args!("{} {}", range.start, range.end))
    }

    /// That of a rank that could not build its part.
    pub(super) fn failed(error: &ShardError) -> Self {
        Card::default().with(FAILED, error)
    }

    fn text(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }
}

/// A digest of bytes, short enough for a message.
pub(super) fn digest(bytes: &[u8]) -> String {
    digest_all(&[bytes])
}

/// That of parts, one after the other.
pub(super) fn digest_all(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Exchanges cards; the ranges of all ranks.
///
/// # Errors
/// [`ShardError::Peer`] or [`ShardError::Disagree`], the same on every rank but the one that
/// failed.
pub(super) fn exchange(
    comm: &impl Communicator,
    card: &Card,
) -> Result<Vec<Range<usize>>, ShardError> {
    let cards = comm.share(card.text().as_bytes())?;
    compare(
        &cards.iter().map(|card| String::from_utf8_lossy(card).into_owned()).collect::<Vec<_>>(),
    )
}

fn lines(card: &str) -> Vec<(&str, &str)> {
    card.lines().filter_map(|line| line.split_once('=')).collect()
}

fn compare(cards: &[String]) -> Result<Vec<Range<usize>>, ShardError> {
    let cards: Vec<_> = cards.iter().map(|card| lines(card)).collect();
    for (rank, card) in cards.iter().enumerate() {
        if let Some((_, message)) = card.iter().find(|(name, _)| *name == FAILED) {
            return Err(ShardError::Peer { rank, message: (*message).into() });
        }
    }
    let Some(first) = cards.first() else { return Ok(Vec::new()) };
    for (at, &(what, _)) in first.iter().enumerate().filter(|(_, (name, _))| *name != RANGE) {
        // The first rank with a value that does not go with any is what others are compared with.
        let value = |rank: usize| cards[rank].get(at).copied().unwrap_or((what, "nothing"));
        let Some(of) = (0..cards.len()).find(|&rank| value(rank).1 != ANY) else { continue };
        let known = value(of);
        for rank in of + 1..cards.len() {
            let other = value(rank);
            if other.1 != ANY && other != known {
                let (first, other) = (known.1.into(), other.1.into());
                return Err(ShardError::Disagree { what: what.into(), of, first, rank, other });
            }
        }
    }
    let range = |card: &Vec<(&str, &str)>| {
        let (start, end) = card.iter().find(|(name, _)| *name == RANGE)?.1.split_once(' ')?;
        Some(start.parse().ok()?..end.parse().ok()?)
    };
    Ok(cards.iter().map(|card| range(card).unwrap_or(0..0)).collect())
}

/// Checks that ranges are `0..whole`, each part once, in the order of the ranks.
pub(super) fn expect_whole(
    ranges: &[Range<usize>],
    what: &'static str,
    whole: usize,
) -> Result<(), ShardError> {
    let mut start = 0;
    for (rank, range) in ranges.iter().enumerate() {
        let last = rank + 1 == ranges.len();
        if range.start != start || range.end < range.start || (last && range.end != whole) {
            return Err(ShardError::Ranges { rank, what, got: range.clone(), start, whole });
        }
        start = range.end;
    }
    Ok(())
}

/// What ranks do together in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// A column-parallel layer's outputs, gathered.
    Columns = 1,
    /// All outputs of a row-parallel layer, all-reduced.
    All,
    /// Each rank its own rows of them, reduce-scattered.
    Own,
    /// All of them, reduce-scattered and gathered.
    Gathered,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Columns => "outputs gathered from all ranks",
            Operation::All => "all outputs on every rank",
            Operation::Own => "each rank its own rows",
            Operation::Gathered => "each rank its own rows, gathered",
        }
    }
}

/// Rows whose reaches go with what else is sent at the start of a call.
pub(super) const FIRST_ROWS: usize = 16;

/// What every rank sends at the start of a call: whether it refuses, and what it is about to do.
/// Merged by a maximum, of numbers and of their complements, they tell whether all are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) rows: usize,
    pub(super) operation: Operation,
    /// Of the outputs.
    pub(super) ty: FloatType,
    /// Whether all sums are to go in the wide form.
    pub(super) wide: bool,
}

impl Call {
    const OWN: usize = 8 + 3;
    pub(super) const BYTES: usize = 1 + 2 * Self::OWN;

    /// What is sent, with room for the reaches of the first rows: as long for every operation, so
    /// that ranks in different ones hear of it.
    pub(super) fn opening(self, refuses: bool) -> Vec<u8> {
        let mut bytes = self.bytes(refuses).to_vec();
        bytes.resize(Self::BYTES + FIRST_ROWS * Reach::BYTES, 0);
        bytes
    }

    fn bytes(self, refuses: bool) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = refuses.into();
        bytes[1..9].copy_from_slice(&(self.rows as u64).to_le_bytes());
        bytes[9..12].copy_from_slice(&[self.operation as u8, self.ty as u8, self.wide.into()]);
        for at in 1..=Self::OWN {
            bytes[at + Self::OWN] = !bytes[at];
        }
        bytes
    }

    /// What the merged bytes say.
    pub(super) fn check(self, merged: &[u8]) -> Result<(), ShardError> {
        // Where all are equal the largest is its complement's complement. A rank that refuses may
        // not know its rows.
        if merged.first() != Some(&0) {
            return Err(ShardError::PeerInput);
        }
        match merged.get(1..Self::BYTES) == self.bytes(false).get(1..) {
            true => Ok(()),
            false => Err(ShardError::Calls { rows: self.rows, mode: self.operation.name() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_with_both_sides() {
        let card = |format: &str, range: Range<usize>| {
            Card::new("row")
                .with("format", format)
                .with_some("transform", None::<u8>)
                .with_range(&range)
                .text()
        };
        let same = [card("mxfp4", 0..32), card("mxfp4", 32..32)];
        assert_eq!(compare(&same).unwrap(), [0..32, 32..32]);
        let other = [card("mxfp4", 0..32), card("mxfp4", 32..64), card("nvfp4", 64..80)];
        let said = compare(&other).unwrap_err().to_string();
        assert!(said.contains("format is `mxfp4` on rank 0 and `nvfp4` on rank 2"), "{said}");
        let failed = Card::failed(&ShardError::PeerInput).text();
        let said = compare(&[card("mxfp4", 0..32), failed]).unwrap_err().to_string();
        assert!(said.contains("rank 1 cannot go on"), "{said}");
        let ranges = |ranges: &[Range<usize>]| expect_whole(ranges, "columns", 64).is_ok();
        assert!(ranges(&[0..32, 32..32, 32..64]));
        assert!(
            !ranges(&[0..32, 0..64]) && !ranges(&[0..32, 32..48]) && !ranges(&[32..64, 64..64])
        );
    }

    #[test]
    fn ranks_of_other_versions_are_told_apart() {
        let card = |version: &str, sums: u8| {
            Card::of("row", version, sums).with("format", "mxfp4").with_range(&(0..0)).text()
        };
        assert!(compare(&[card("0.1.0", 2), card("0.1.0", 2)]).is_ok());
        let said = |other: String| compare(&[card("0.1.0", 2), other]).unwrap_err().to_string();
        let version = said(card("0.2.0", 2));
        assert!(
            version.contains("version is `0.1.0` on rank 0 and `0.2.0` on rank 1"),
            "{version}"
        );
        let sums = said(card("0.1.0", 3));
        assert!(sums.contains("exact sums' version is `2` on rank 0 and `3` on rank 1"), "{sums}");
    }

    #[test]
    fn calls_differ_where_anything_of_them_does() {
        let merge = |calls: &[(Call, bool)]| {
            calls.iter().fold([0; Call::BYTES], |merged, (call, refuses)| {
                let bytes = call.bytes(*refuses);
                std::array::from_fn(|i| merged[i].max(bytes[i]))
            })
        };
        let check = |calls: &[(Call, bool)]| calls[0].0.check(&merge(calls));
        let one = Call { rows: 3, operation: Operation::Own, ty: FloatType::F16, wide: false };
        assert!(check(&[(one, false), (one, false)]).is_ok());
        for other in [
            Call { rows: 2, ..one },
            Call { rows: 4, ..one },
            Call { operation: Operation::Columns, ..one },
            Call { operation: Operation::All, ..one },
            Call { operation: Operation::Gathered, ..one },
            Call { ty: FloatType::F32, ..one },
            Call { ty: FloatType::Bf16, ..one },
            Call { wide: true, ..one },
        ] {
            let calls = [(one, false), (other, false)];
            assert!(matches!(check(&calls), Err(ShardError::Calls { .. })), "{other:?}");
            let calls = [(other, false), (one, false)];
            assert!(matches!(check(&calls), Err(ShardError::Calls { .. })), "{other:?}");
        }
        let refused = check(&[(one, false), (one, true)]);
        assert!(matches!(refused, Err(ShardError::PeerInput)));
    }
}
