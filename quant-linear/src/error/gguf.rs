//! Why a file is no GGUF file, or not one that can be read or written here.

use crate::checkpoint::gguf::GgmlType;
use crate::text::printable;

/// What to do about a file that breaks the format.
const AGAIN: &str = "download or convert the file again";

/// Why a GGUF file cannot be read or written; [`Refusal::Gguf`](super::Refusal) carries it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A version that has another layout.
    #[error(
        "it is GGUF of version {0}, expected 2 or 3; convert the model again with a current \
         llama.cpp"
    )]
    Version(u32),
    /// A file for machines of the other byte order.
    #[error(
        "it is GGUF in big-endian byte order (version {0}), expected little-endian; convert it \
         with gguf-py's gguf_convert_endian"
    )]
    BigEndian(u32),
    /// Something longer than what is left of the file.
    #[error(
        "its {what} at byte {at} takes {need} bytes at least, and {left} are left; the file is cut \
         short or broken: {AGAIN}"
    )]
    Cut {
        /// What it is.
        what: &'static str,
        /// Where it starts.
        at: u64,
        /// Bytes that it takes at least; the largest number if more than that.
        need: u64,
        /// Bytes that are left of the file.
        left: u64,
    },
    /// A name that is no text.
    #[error("its {what} at byte {at} is not UTF-8 text; {AGAIN}")]
    Text {
        /// What it is.
        what: &'static str,
        /// Where it starts.
        at: u64,
    },
    /// A value of a type that the format does not have.
    #[error(
        "the value of `{}` has type {id}, expected 0 to 12; {AGAIN}, or get a newer fp4",
        printable(.key)
    )]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        id: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("the value of `{}` has the byte {byte} for a bool, expected 0 or 1; {AGAIN}",
            printable(.key))]
    Bool {
        /// The key.
        key: String,
        /// The byte.
        byte: u8,
    },
    /// Arrays in arrays in arrays.
    #[error("the value of `{}` nests arrays more than {most} deep; {AGAIN}", printable(.key))]
    Depth {
        /// The key.
        key: String,
        /// The deepest taken.
        most: usize,
    },
    /// A key that is there twice.
    #[error("the key `{}` is there twice; {AGAIN}", printable(.0))]
    DuplicateKey(String),
    /// A tensor that is there twice.
    #[error("the tensor `{}` is there twice; {AGAIN}", printable(.0))]
    DuplicateTensor(String),
    /// An alignment that cannot be.
    #[error(
        "its general.alignment is {}, expected a U32 that is a power of two; {AGAIN}",
        printable(.0)
    )]
    Alignment(String),
    /// A tensor of too many dimensions.
    #[error("tensor `{}` has {got} dimensions, expected at most 4; {AGAIN}", printable(.name))]
    Rank {
        /// The tensor.
        name: String,
        /// Its number of dimensions.
        got: usize,
    },
    /// A tensor of a type whose size is unknown.
    #[error(
        "tensor `{}` has ggml type {id}, which is not known here, so neither is its size; quantize \
         the model to a current type, or get a newer fp4",
        printable(.name)
    )]
    Type {
        /// The tensor.
        name: String,
        /// The type's number.
        id: u32,
    },
    /// A tensor whose size does not fit the machine's integers.
    #[error(
        "the size of tensor `{}`, {ty} of shape {shape:?}, overflows; {AGAIN}",
        printable(.name)
    )]
    Overflow {
        /// The tensor.
        name: String,
        /// Its type.
        ty: GgmlType,
        /// Its shape, rows first.
        shape: Vec<u64>,
    },
    /// A tensor whose rows are no whole blocks.
    #[error(
        "tensor `{}` is {ty} with rows of {k} elements, expected a multiple of {}; {AGAIN}",
        printable(.name), .ty.block_len()
    )]
    Blocks {
        /// The tensor.
        name: String,
        /// Its type.
        ty: GgmlType,
        /// Elements of a row.
        k: u64,
    },
    /// A tensor that does not start where tensors may.
    #[error(
        "tensor `{}` starts at byte {offset} of the data, expected a multiple of {alignment}; \
         {AGAIN}",
        printable(.name)
    )]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its first byte.
        offset: u64,
        /// The alignment of the file.
        alignment: u64,
    },
    /// A tensor that reaches past the end of the file.
    #[error(
        "tensor `{}` ends at byte {end} of the data, which has {len}; the file is cut short or \
         broken: {AGAIN}",
        printable(.name)
    )]
    Outside {
        /// The tensor.
        name: String,
        /// The byte past its last; the largest number if more than that.
        end: u64,
        /// Bytes of the data.
        len: u64,
    },
    /// Two tensors that share bytes.
    #[error("the tensors `{}` and `{}` overlap; {AGAIN}", printable(.0), printable(.1))]
    Overlap(String, String),
    /// One file of a model in several, whose others cannot be found by its name.
    #[error(
        "it is one of {count} files of a model, expected a name that ends in \
         -{:05}-of-{count:05}.gguf, so that the others are found; give it its name back, or merge \
         the files with llama-gguf-split --merge", .number.saturating_add(1)
    )]
    SplitName {
        /// Its number, from 0 on.
        number: u64,
        /// Files of the model.
        count: u64,
    },
    /// One file of a model in several that is not there.
    #[error(
        "it is not there, and the model has {0} such files; put it beside the others, or merge \
        them with llama-gguf-split --merge where all are"
    )]
    SplitMissing(u64),
    /// A file of a model that is not the one that its name says.
    #[error(
        "its split.no is {got:?} and its split.count {count:?}, expected {number} and {expected}; \
         the files are not of one model: download them again"
    )]
    SplitNumber {
        /// Its number by its header.
        got: Option<u64>,
        /// The number of files by its header.
        count: Option<u64>,
        /// Its number by its name, from 0 on.
        number: u64,
        /// Files of the model.
        expected: u64,
    },
    /// A model in several files that lacks tensors, or has too many.
    #[error(
        "the {count} files of the model hold {got} tensors, expected {expected} by \
         split.tensors.count; download them again"
    )]
    SplitTensors {
        /// Files of the model.
        count: u64,
        /// Tensors in them.
        got: u64,
        /// Tensors expected.
        expected: u64,
    },
    /// A tensor name that ggml does not load.
    #[error(
        "tensor `{}` has a name of {} bytes, and ggml loads at most {most}; give it a shorter one",
        printable(.name), .name.len()
    )]
    LongName {
        /// The tensor.
        name: String,
        /// The longest that is loaded.
        most: usize,
    },
    /// A type whose values are not computed here.
    #[error(
        "values of ggml type {0} are not computed here, only of F32, F16, BF16, Q4_0, Q4_1, Q5_0, \
         Q5_1, Q8_0 and Q6_K; convert the tensor with llama-quantize to one of these"
    )]
    NoValues(GgmlType),
    /// Bytes that are no whole blocks, or not as many as values.
    #[error(
        "{bytes} bytes of ggml type {ty} for {values} values were given, expected {} bytes for \
        each {} values", .ty.block_bytes(), .ty.block_len()
    )]
    Bytes {
        /// The type.
        ty: GgmlType,
        /// Bytes given.
        bytes: usize,
        /// Values given.
        values: usize,
    },
}
