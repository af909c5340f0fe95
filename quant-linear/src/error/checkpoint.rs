//! Why a file or a folder is no checkpoint.

use std::io;
use std::path::PathBuf;

use safetensors::Dtype;

use super::GgufError;
use crate::text::{self, printable};

/// What to do about a file that breaks the format.
const AGAIN: &str = "download or export the file again";

/// What to do about an index that disagrees with its shards.
const BOTH_AGAIN: &str = "download the index and its shards again";

/// Why a file or a folder cannot be read as a checkpoint; [`Error::Checkpoint`](crate::Error)
/// carries it with the path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The system's reason; with a path it is [`Error::Io`](crate::Error::Io).
    #[error(transparent)]
    System(#[from] io::Error),
    /// A GGUF file that breaks its format, or one that cannot be written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A name with no file at its end.
    #[error("it names no file; give a .safetensors or .gguf file, or a folder")]
    NoName,
    /// A folder, a pipe or a device in a file's place.
    #[error("it is not a plain file but {0}; give a plain file")]
    NotPlain(&'static str),
    /// A text file that is longer than it may be.
    #[error("it has {len} bytes, and at most {most} are taken; is it the right file?")]
    TooLong {
        /// Its length.
        len: u64,
        /// The most bytes taken.
        most: u64,
    },
    /// A file of another kind.
    #[error("it is no safetensors file but {what}; {what_to_do}")]
    OtherKind {
        /// What it is.
        what: &'static str,
        /// What to do.
        what_to_do: &'static str,
    },
    /// Two tensors to be written under one name.
    #[error(
        "two tensors would be named `{}` in the output: one of the input's has the name that a new \
         one needs; rename or remove it",
        printable(.name)
    )]
    TwoOfOneName {
        /// The name.
        name: String,
    },
    /// A config that cannot be parsed.
    #[error("it is no config: {}; download it again", printable(.0))]
    Config(String),
    /// A record of how weights are stored that is none.
    #[error(
        "`exact_fp4.orientation` in its header is no JSON object of \"in-out\" and \"out-in\" by \
         the names of weights ({}); write the file again",
        printable(.0)
    )]
    Orientation(String),
    /// A config of more values than are taken.
    #[error("it has about {values} values, and at most {most} are taken; is it the right file?")]
    Values {
        /// Commas, lists and objects.
        values: usize,
        /// The most of them.
        most: usize,
    },
    /// A file too short for the length of a header.
    #[error(
        "it has {len} bytes, and a safetensors file has at least 8; it is cut short or another \
         format: {AGAIN}"
    )]
    TooShort {
        /// Its length.
        len: u64,
    },
    /// A header that is longer than the file or the format allows.
    #[error(
        "its first 8 bytes announce a header of {announced} bytes, and at most {most} are \
         possible; it is cut short or not a safetensors file: {AGAIN}"
    )]
    HeaderLen {
        /// The length announced.
        announced: u64,
        /// The longest possible.
        most: u64,
    },
    /// A header that is no text.
    #[error("its header is not UTF-8 text, so not a safetensors file: {AGAIN} ({0})")]
    HeaderText(std::str::Utf8Error),
    /// A header that is not what the format says.
    #[error("its header is not that of a safetensors file: {AGAIN}: {}", printable(.0))]
    Header(String),
    /// A tensor that does not start where the one before it ends.
    #[error(
        "tensor `{}` has the offsets {} to {}, expected to start at {expected}, where the one \
         before it ends; {AGAIN}",
        printable(.name), .got.0, .got.1
    )]
    Offsets {
        /// The tensor.
        name: String,
        /// Its first byte and the one past its end.
        got: (u64, u64),
        /// Where it should start.
        expected: u64,
    },
    /// A tensor whose size does not fit the machine's integers.
    #[error(
        "the size of tensor `{}`, {dtype} of shape {shape:?}, overflows; {AGAIN}",
        printable(.name)
    )]
    Overflow {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor whose shape and offsets disagree.
    #[error(
        "tensor `{}` is {dtype} of shape {shape:?}, {bits} bits, and its offsets hold {got} bytes; \
         {AGAIN}",
        printable(.name)
    )]
    Size {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bits of its values.
        bits: u64,
        /// Bytes between its offsets.
        got: u64,
    },
    /// A part of a header that there is no memory for.
    #[error("no memory for a {what} of {bytes} bytes")]
    NoMemory {
        /// The part.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
    },
    /// A tensor that is larger than what this machine addresses.
    #[error(
        "tensor `{}` has {bytes} bytes, and a program of this many bits takes at most {most}; read \
         the file by one of 64 bits",
        printable(.name)
    )]
    TooLarge {
        /// The tensor.
        name: String,
        /// Its bytes.
        bytes: u64,
        /// The most bytes taken.
        most: u64,
    },
    /// No files where those of a checkpoint are to be given.
    #[error("no file is given; give a .safetensors or .gguf file, or the files of a folder")]
    NothingGiven,
    /// Files that are not beside each other, where those of a checkpoint are given.
    #[error(
        "the given files are not those of one folder: all lie deeper, as in `{}`; give the files \
         of one",
        printable(.0)
    )]
    GivenDeeper(String),
    /// Two files of one name where those of a checkpoint are given.
    #[error("two of the given files have this name; give one of them")]
    GivenTwice,
    /// A file that is longer or shorter than its header says.
    #[error(
        "it has {len} bytes, and its header describes {described}: {}; {AGAIN}",
        if .described < .len { "bytes follow the last tensor" } else { "it is cut short" }
    )]
    Length {
        /// Its length.
        len: u64,
        /// The length that its header describes; the largest number if that is larger.
        described: u64,
    },
    /// A file that is another than when its header was read.
    #[error("it is not the file whose header was read; run again when nothing writes to it")]
    Changed,
    /// A file that was changed while it was used.
    #[error("it has changed since this run began; run again when nothing writes to it")]
    Altered,
    /// Bytes that could not be read, though the header was.
    #[error(
        "reading {len} bytes at {position}: {error}; the file may have changed since it was \
         opened: run again when nothing writes to it"
    )]
    Bytes {
        /// Bytes to be read.
        len: usize,
        /// Position in the file.
        position: u64,
        /// The system's reason.
        error: io::Error,
    },
    /// A range that is not inside the tensor.
    #[error("bytes {start} to {end} of a tensor of {len} were asked for; ask for what is inside")]
    OutOfTensor {
        /// First byte.
        start: usize,
        /// The byte past the last.
        end: usize,
        /// Bytes of the tensor.
        len: usize,
    },
    /// A link, or a name, that leads out of its folder.
    #[error(
        "it is a link out of its folder, to {}; put a copy in its place, or remove it",
        text::path(.to)
    )]
    Outside {
        /// Where it leads.
        to: PathBuf,
    },
    /// A link that leads nowhere.
    #[error("it cannot be read; is it a broken link? repair or remove it ({0})")]
    Broken(io::Error),
    /// A link to a folder around it.
    #[error("it links back to a folder that encloses it; remove the link")]
    Endless,
    /// Neither file nor folder.
    #[error("it is neither a file nor a folder; remove it")]
    NeitherFileNorFolder,
    /// A folder without a model.
    #[error(
        "it holds no model.safetensors, no model.safetensors.index.json and no other .safetensors \
         file or index; give the folder of a model, or the file itself"
    )]
    NoModel,
    /// A folder with several files and no index.
    #[error(
        "it holds {} and no model.safetensors.index.json that says how they belong together; give \
         one of the files",
        printable(&.0.join(", "))
    )]
    ManyFiles(Vec<String>),
    /// A folder with several indexes.
    #[error(
        "it holds {} indexes of shards, {}: which is meant is not known; keep one, with its shards, \
         in a folder of its own",
        .0.len(),
        printable(&.0.join(", "))
    )]
    ManyIndexes(Vec<String>),
    /// An index that is none.
    #[error("it is no index of shards; download it again: {}", printable(.0))]
    Index(String),
    /// A tensor that a shard holds and the index has elsewhere or nowhere.
    #[error(
        "the shard {} holds the tensor `{}`, which the index {}: {BOTH_AGAIN}",
        printable(.shard),
        printable(.name),
        .listed.as_ref().map_or("does not list".into(), |other| {
            format!("places in {}", printable(other))
        })
    )]
    Unlisted {
        /// The tensor.
        name: String,
        /// The shard that holds it.
        shard: String,
        /// Where the index has it.
        listed: Option<String>,
    },
    /// A tensor that the index has in a shard that does not hold it.
    #[error(
        "the index places the tensor `{}` in {}, which does not hold it: {BOTH_AGAIN}",
        printable(.name),
        printable(.shard)
    )]
    Absent {
        /// The tensor.
        name: String,
        /// Where the index has it.
        shard: String,
    },
    /// A header to be written that is longer than the format allows.
    #[error(
        "the header would take {len} bytes, and the format allows {most}; split the checkpoint into \
         shards"
    )]
    HeaderTooLong {
        /// Its length at least.
        len: u64,
        /// The longest allowed.
        most: u64,
    },
}
