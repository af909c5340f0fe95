//! A checkpoint in another layout: the bytes of codes and scales stay, names, order, header and
//! config become the target's.
//!
//! ```text
//! gather    the weights of the source as the target takes them        (gather)
//! rescale   MXFP4 as NVFP4 or back, where asked and exact             (rescale)
//! plan      what each becomes, where everything goes, what the config says
//! write     tile by tile, through the driver                          (stream, weight)
//! judge     the values of the source against those of the target      (layout::value)
//! ```
//!
//! A weight is judged while it is written: of each scale byte and code that it has, what is it
//! worth to the source's software, and to the target's? Equal, "values bit-exact"; apart by
//! roundings, "within N ulp", which [`Options::exact`] refuses; anything else means that a byte
//! says something else to the target (0xFF, a negative scale, code 8), which is refused with the
//! tensor and the coordinate unless [`Options::changed`] allows it.

mod gather;
mod notes;
pub(super) mod plan;
mod rescale;
mod weight;

use fp4_core::Format;
use serde::{Deserialize, Serialize};

use crate::checkpoint::gguf::GgufArrangement;
use crate::checkpoint::{Arrangement, Checkpoint, Listing};
use crate::error::Error;
use crate::layout::Layout;
use crate::model::stream::{self, Contents, Inputs, Memory, Output};

pub use gather::{Source, Weight, weights};
pub use plan::{Plan, Shape};
pub use rescale::{Rescale, rescale};
pub use weight::Task;

/// How a checkpoint is converted.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The layout to be written.
    pub target: &'static dyn Layout,
    /// The format that all weights are to have; `None` leaves them as they are.
    pub format: Option<Format>,
    /// True if values that differ by roundings are refused.
    pub exact: bool,
    /// True if values may mean something else to the target.
    pub changed: bool,
}

/// What became of a weight.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Values in all.
    pub values: u64,
    /// Values that differ by roundings.
    pub values_differ: u64,
    /// By how many units in the last place at most.
    pub ulps: u32,
    /// Zeros whose sign the library of one side drops as it dequantizes.
    pub zero_signs: u64,
    /// Values that mean something else.
    pub changed: u64,
}

/// Where everything goes in an output file of either container.
#[derive(Debug)]
pub enum Arranged {
    /// A safetensors file.
    Safetensors(Arrangement),
    /// A GGUF file.
    Gguf(GgufArrangement),
}

impl stream::Layout for Arranged {
    fn header(&self) -> &[u8] {
        match self {
            Arranged::Safetensors(a) => a.header(),
            Arranged::Gguf(a) => a.header(),
        }
    }

    fn file_len(&self) -> u64 {
        match self {
            Arranged::Safetensors(a) => a.file_len(),
            Arranged::Gguf(a) => a.file_len(),
        }
    }

    fn position(&self, name: &str) -> Option<u64> {
        match self {
            Arranged::Safetensors(a) => a.position(name),
            Arranged::Gguf(a) => a.position(name),
        }
    }
}

/// What a run has come to.
pub type Event<'e, 'p> = stream::Event<'e, Task<'p>>;

/// Writes a plan to its place.
///
/// # Errors
/// As [`stream::write`]; [`ModelError::Changed`](crate::model::ModelError) and
/// [`ModelError::Inexact`](crate::model::ModelError) with the tensor.
pub fn write<'p>(
    input: &'p Checkpoint,
    plan: &'p Plan<'p>,
    listing: &Listing,
    output: &Output<'_>,
    memory: Memory,
    on: &mut dyn FnMut(Event<'_, 'p>),
) -> Result<(), Error> {
    let tasks = plan.tasks(input, memory);
    let carried = output.kind == crate::atomic::Kind::Folder && input.is_folder();
    let contents = Contents {
        files: plan
            .files
            .iter()
            .map(|(name, arranged)| (name.as_str(), arranged as &dyn stream::Layout))
            .collect(),
        carried: carried.then(|| (input.path(), listing)),
        generated: match output.kind {
            crate::atomic::Kind::Folder => plan.generated(),
            crate::atomic::Kind::File => vec![],
        },
    };
    let inputs = Inputs::of(input, listing)?;
    stream::write(&contents, &tasks, output, memory, &inputs, on)
}
