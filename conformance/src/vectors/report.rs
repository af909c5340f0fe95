//! What a check of vector files found: counts, differences, and what could not be checked.
//!
//! One [`FileReport`] for each vector file, made of *cases*. A case is one operation on one input,
//! such as `bf16.edge quantize ties even`; it compares one or more tensors. A tensor that differs
//! anywhere is one [`Difference`]: how many values differ, the coordinate of the first, and both
//! bit patterns. A case that compared no value is not counted.
//!
//! ```text
//! [C4.3] f32.gauss quantize ties even: f32.gauss.codes_even at (3, 17): got 0x21, expected 0x31;
//! 5 of 3072 differ
//! ```

use std::fmt;

use super::Family;
use super::file::Column;
use crate::report::{Bits, Counts};
use crate::text::Shown;

/// A tensor in which some values differ from the expected ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The vector file, without extension.
    pub file: String,
    /// The case: input and operation.
    pub case: String,
    /// Clause of the contract that the values follow from.
    pub clause: &'static str,
    /// The tensor of the file that holds the expected values.
    pub tensor: String,
    /// Where the first difference is, in the tensor's shape.
    pub coordinate: Vec<usize>,
    /// The bits computed there.
    pub got: Bits,
    /// The bits expected there.
    pub expected: Bits,
    /// How many values of the tensor differ.
    pub differ: u64,
    /// How many values of the tensor were compared.
    pub compared: u64,
}

/// A case that the backend does not support: not a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The case: input and operation.
    pub case: String,
    /// The backend's reason.
    pub reason: String,
}

/// The result of checking one vector file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// The file, without extension.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// Cases, values compared, values that differ.
    pub counts: Counts,
    /// One for each case and tensor that differs.
    pub differences: Vec<Difference>,
    /// Cases that the backend does not support.
    pub skipped: Vec<Skipped>,
}

/// The result of checking a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// One for each file checked, by name.
    pub files: Vec<FileReport>,
    /// Files in the folder that no check covers.
    pub not_checked: Vec<String>,
}

/// An open case of a [`FileReport`]: compares tensors and counts.
#[derive(Debug)]
pub struct Case<'a> {
    report: &'a mut FileReport,
    name: String,
    counted: bool,
}

impl FileReport {
    /// An empty report on the file `name`.
    pub fn new(name: impl Into<String>, family: Family) -> Self {
        FileReport {
            name: name.into(),
            family,
            counts: Counts::default(),
            differences: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Opens a case; it is counted once it has compared a value.
    pub fn case(&mut self, name: impl Into<String>) -> Case<'_> {
        Case { report: self, name: name.into(), counted: false }
    }

    /// Notes a case that the backend does not support.
    pub fn skip(&mut self, case: impl Into<String>, reason: impl fmt::Display) {
        self.skipped.push(Skipped { case: case.into(), reason: reason.to_string() });
    }
}

impl Report {
    /// Counts of all files.
    pub fn counts(&self) -> Counts {
        self.sum(|_| true)
    }

    /// Counts of the files of one family.
    pub fn family(&self, family: Family) -> Counts {
        self.sum(|file| file.family == family)
    }

    /// All differences, in file order.
    pub fn differences(&self) -> impl Iterator<Item = &Difference> {
        self.files.iter().flat_map(|file| &file.differences)
    }

    fn sum(&self, keep: impl Fn(&FileReport) -> bool) -> Counts {
        self.files.iter().filter(|file| keep(file)).fold(Counts::default(), |mut sum, file| {
            sum.merge(&file.counts);
            sum
        })
    }
}

impl Case<'_> {
    /// Compares computed bits with a column of the file, under a clause of the contract.
    ///
    /// # Panics
    /// If `got` is not as long as the column: the check computed another shape than it read.
    pub fn compare<T: Copy + Into<u64>>(
        &mut self,
        clause: &'static str,
        expected: &Column<T>,
        got: &[T],
    ) {
        let compared = expected.values().len() as u64;
        assert_eq!(got.len() as u64, compared, "length of {} in {}", expected.tensor(), self.name);
        if compared == 0 {
            return;
        }
        self.report.counts.cases += u64::from(!self.counted);
        self.counted = true;
        self.report.counts.values += compared;

        let bits = |value: T| Bits { pattern: value.into(), width: 8 * size_of::<T>() as u32 };
        let mut differ = 0;
        let mut first = None;
        for (index, (&got, &expected)) in got.iter().zip(expected.values()).enumerate() {
            if bits(got) != bits(expected) {
                differ += 1;
                first = first.or(Some((index, bits(got), bits(expected))));
            }
        }
        let Some((index, got, wanted)) = first else { return };
        self.report.counts.differ += differ;
        self.report.differences.push(Difference {
            file: self.report.name.clone(),
            case: self.name.clone(),
            clause,
            tensor: expected.tensor().to_owned(),
            coordinate: expected.coordinate(index),
            got,
            expected: wanted,
            differ,
            compared,
        });
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.coordinate.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        write!(
            f,
            "[{}] {}: {} at ({at}): got {}, expected {}; {} of {} differ",
            self.clause,
            Shown(&self.case),
            Shown(&self.tensor),
            self.got,
            self.expected,
            self.differ,
            self.compared
        )
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Shown(&self.name), self.counts)?;
        if !self.skipped.is_empty() {
            write!(f, ", {} skipped", self.skipped.len())?;
        }
        for difference in &self.differences {
            write!(f, "\n  {difference}")?;
        }
        for Skipped { case, reason } in &self.skipped {
            write!(f, "\n  skipped {}: {}", Shown(case), Shown(reason))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            writeln!(f, "{file}")?;
        }
        for name in &self.not_checked {
            writeln!(f, "{}: not checked", Shown(name))?;
        }
        write!(f, "vectors: {}", self.counts())
    }
}
