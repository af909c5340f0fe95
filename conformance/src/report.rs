//! What every check reports in the same way: bit patterns, and how much was compared.

use std::fmt;

/// A bit pattern and its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bits {
    /// The pattern, in the low bits.
    pub pattern: u64,
    /// Number of bits: 8, 16 or 32.
    pub width: u32,
}

/// How much was compared, and how much of it differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Cases: operations on inputs.
    pub cases: u64,
    /// Values compared.
    pub values: u64,
    /// Values that differ.
    pub differ: u64,
}

impl Counts {
    /// Adds the counts of another part.
    pub fn merge(&mut self, other: &Counts) {
        self.cases += other.cases;
        self.values += other.values;
        self.differ += other.differ;
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.width as usize / 4;
        write!(f, "0x{:0digits$X}", self.pattern)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { cases, values, differ } = self;
        write!(f, "{cases} cases, {values} values compared, {differ} differ")
    }
}
