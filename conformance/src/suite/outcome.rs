//! What one backend did with one case: passed, differs, within a bound, unsupported, or an error.

use std::fmt;

use fp4_core::FloatType;
use serde::Serialize;

use super::case::Clause;
use crate::oracle::rules::{e2m1_value, widen};
use crate::report::Bits;

/// The bound of `--grade bounded`, and where it comes from.
///
/// S is the exact sum of K products, A the sum of their magnitudes. Any order of f32 additions of
/// correctly rounded f32 products has an error of at most gamma(K) * A, with gamma(n) = n u / (1 -
/// n u) and u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
/// sections 2.2 and 3.1). Four more roundings, for the two scales, alpha and the output, are
/// counted into n, and 2^-149 is allowed for each operation that may underflow (ibid., 2.8).
pub const BOUND: &str = "|y - alpha S| <= gamma(K + 4) |alpha| A + (K + 4) 2^-149 max(1, |alpha|), \
                         gamma(n) = n u / (1 - n u), u = 2^-24 (Higham 2002, sections 2.2, 2.8, 3.1)";

/// The result of one case for one subject.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All values are equal.
    Passed {
        /// Values compared.
        values: u64,
        /// A digest of them ([`Comparison`]).
        digest: u64,
    },
    /// Within [`BOUND`]; not exact.
    Bounded {
        /// Values compared.
        values: u64,
        /// The largest error as a part of its bound.
        worst: f64,
    },
    /// Something differs.
    Differs(Box<Mismatch>),
    /// The backend returned an error.
    Error {
        /// The error.
        message: String,
    },
    /// The backend does not support the request: not a pass.
    Unsupported {
        /// The backend's reason.
        reason: String,
    },
}

/// Values that differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mismatch {
    /// The clause that fixes these values.
    pub clause: Clause,
    /// What differs: `scales`, `codes`, `output`, ...
    pub tensor: String,
    /// Row and column of the first that does.
    pub coordinate: [usize; 2],
    /// What was computed there.
    pub got: Value,
    /// What was expected there.
    pub expected: Value,
    /// How many values differ.
    pub differ: u64,
    /// How many values were compared.
    pub compared: u64,
}

/// A bit pattern and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Value {
    /// The pattern in hex.
    pub bits: String,
    /// The number, or two numbers of a byte of codes.
    pub number: String,
}

/// How bit patterns are read as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A dense value.
    Float(FloatType),
    /// Two e2m1 codes.
    Codes,
    /// An MXINT8 element.
    Int8,
    /// A scale byte.
    Scale(fp4_core::ScaleType),
    /// A byte, an index, a flag.
    Integer,
}

impl Meaning {
    fn value(self, pattern: u32) -> Value {
        let (width, number) = match self {
            Meaning::Float(ty) => (8 * ty.bytes() as u32, format!("{:e}", widen(ty, pattern))),
            Meaning::Codes => {
                let [low, high] = [pattern & 15, pattern >> 4 & 15].map(|c| e2m1_value(c as u8));
                (8, format!("{low:?}, {high:?}"))
            }
            Meaning::Int8 => (8, (pattern as u8 as i8).to_string()),
            Meaning::Scale(ty) => {
                (8, format!("{:e}", crate::oracle::rules::scale_value(ty, pattern as u8)))
            }
            Meaning::Integer => (32, pattern.to_string()),
        };
        Value { bits: Bits { pattern: pattern.into(), width }.to_string(), number }
    }
}

/// A running digest, FNV-1a of 64 bits: it tells runs apart, and proves nothing to an enemy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digest(pub(super) u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0xCBF2_9CE4_8422_2325)
    }
}

impl Digest {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}

/// Compares tensors of one case, one after the other, and digests what was computed: FNV-1a of 64
/// bits over the name of each tensor and its bit patterns, little-endian.
#[derive(Debug, Default)]
pub struct Comparison {
    values: u64,
    digest: Digest,
    mismatch: Option<Box<Mismatch>>,
}

impl Comparison {
    /// Compares bit patterns with `columns` to a row; the first tensor that differs is kept.
    pub fn compare(
        &mut self,
        clause: Clause,
        tensor: &str,
        meaning: Meaning,
        columns: usize,
        got: &[u32],
        expected: &[u32],
    ) {
        if got.len() != expected.len() {
            let lens = [got.len() as u32, expected.len() as u32];
            self.compare(clause, "length", Meaning::Integer, 1, &lens[..1], &lens[1..]);
            return;
        }
        self.digest.add(tensor.as_bytes());
        got.iter().for_each(|pattern| self.digest.add(&pattern.to_le_bytes()));
        self.judge(clause, tensor, meaning, columns, got, expected);
    }

    /// Compares what a backend says of itself, which may be another on each machine: it is no part
    /// of the digest.
    pub fn consistent(&mut self, clause: Clause, tensor: &str, got: &[u32], expected: &[u32]) {
        self.judge(clause, tensor, Meaning::Integer, got.len(), got, expected);
    }

    fn judge(
        &mut self,
        clause: Clause,
        tensor: &str,
        meaning: Meaning,
        columns: usize,
        got: &[u32],
        expected: &[u32],
    ) {
        self.values += expected.len() as u64;
        let different = got.iter().zip(expected).filter(|(g, e)| g != e).count() as u64;
        let first = got.iter().zip(expected).position(|(g, e)| g != e);
        if let (Some(first), None) = (first, &self.mismatch) {
            let columns = columns.max(1);
            self.mismatch = Some(Box::new(Mismatch {
                clause,
                tensor: tensor.to_owned(),
                coordinate: [first / columns, first % columns],
                got: meaning.value(got[first]),
                expected: meaning.value(expected[first]),
                differ: different,
                compared: expected.len() as u64,
            }));
        }
    }

    /// As [`compare`](Self::compare), for bytes.
    pub fn bytes(
        &mut self,
        clause: Clause,
        tensor: &str,
        meaning: Meaning,
        columns: usize,
        got: &[u8],
        expected: &[u8],
    ) {
        let words = |bytes: &[u8]| bytes.iter().map(|&b| b.into()).collect::<Vec<u32>>();
        self.compare(clause, tensor, meaning, columns, &words(got), &words(expected));
    }

    /// The outcome.
    pub fn outcome(self) -> Outcome {
        match self.mismatch {
            None => Outcome::Passed { values: self.values, digest: self.digest.0 },
            Some(mismatch) => Outcome::Differs(mismatch),
        }
    }
}

impl From<fp4_core::Error> for Outcome {
    fn from(error: fp4_core::Error) -> Self {
        match error {
            fp4_core::Error::Unsupported(reason) => {
                Outcome::Unsupported { reason: reason.to_string() }
            }
            error => Outcome::Error { message: error.to_string() },
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.bits, self.number)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { tensor, coordinate: [row, column], .. } = self;
        write!(
            f,
            "[{}] {tensor} at ({row}, {column}): got {}, expected {}; {} of {} differ",
            self.clause, self.got, self.expected, self.differ, self.compared
        )
    }
}
