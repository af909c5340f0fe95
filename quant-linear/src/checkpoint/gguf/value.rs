//! The values of a GGUF header's pairs, typed, and back to the bytes they came from.
//!
//! An array keeps its elements' bytes as the file has them: it takes no more memory than it takes
//! in the file, and is written back to the byte. A string is bytes too, because the vocabularies of
//! some tokenizers are not UTF-8.

use std::fmt;

/// A type of values, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the format's names")]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// All, by number.
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// The kind of this number.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a value; `None` if they differ.
    pub(super) fn size(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::String | Kind::Array => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::U8 => "u8",
            Kind::I8 => "i8",
            Kind::U16 => "u16",
            Kind::I16 => "i16",
            Kind::U32 => "u32",
            Kind::I32 => "i32",
            Kind::F32 => "f32",
            Kind::Bool => "bool",
            Kind::String => "string",
            Kind::Array => "array",
            Kind::U64 => "u64",
            Kind::I64 => "i64",
            Kind::F64 => "f64",
        }
    }
}

/// The value of a pair.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the format's names")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Text, in UTF-8 if it is as it should be.
    String(Vec<u8>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Values of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    pub(super) kind: Kind,
    pub(super) len: u64,
    /// The elements as the file has them.
    pub(super) bytes: Vec<u8>,
}

impl Array {
    /// An array of strings.
    pub fn of_strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Self {
        let mut array = Array { kind: Kind::String, len: 0, bytes: vec![] };
        for string in strings {
            put_string(&mut array.bytes, string.as_ref());
            array.len += 1;
        }
        array
    }

    /// The kind of its elements.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, little-endian; strings and arrays with their lengths before them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The strings of an array of strings, in order; `None` for other arrays.
    pub fn strings(&self) -> Option<impl Iterator<Item = &[u8]>> {
        let mut rest = &self.bytes[..];
        (self.kind == Kind::String).then(|| {
            std::iter::from_fn(move || {
                let (len, after) = rest.split_first_chunk::<8>()?;
                let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
                let string = after.get(..len)?;
                rest = &after[len..];
                Some(string)
            })
        })
    }

    /// Appends the number of the elements' kind, their number and their bytes.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.kind.id().to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend(&self.bytes);
    }
}

impl Value {
    /// The kind of the value.
    pub fn kind(&self) -> Kind {
        match self {
            Value::U8(_) => Kind::U8,
            Value::I8(_) => Kind::I8,
            Value::U16(_) => Kind::U16,
            Value::I16(_) => Kind::I16,
            Value::U32(_) => Kind::U32,
            Value::I32(_) => Kind::I32,
            Value::F32(_) => Kind::F32,
            Value::Bool(_) => Kind::Bool,
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::Array,
            Value::U64(_) => Kind::U64,
            Value::I64(_) => Kind::I64,
            Value::F64(_) => Kind::F64,
        }
    }

    /// The text of a string; `None` for other values and for what is not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The number of an integer of any width; `None` for other values and for negative ones.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// Appends the number of its kind and its bytes.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.kind().id().to_le_bytes());
        match self {
            Value::U8(n) => out.push(*n),
            Value::I8(n) => out.extend(n.to_le_bytes()),
            Value::U16(n) => out.extend(n.to_le_bytes()),
            Value::I16(n) => out.extend(n.to_le_bytes()),
            Value::U32(n) => out.extend(n.to_le_bytes()),
            Value::I32(n) => out.extend(n.to_le_bytes()),
            Value::F32(n) => out.extend(n.to_le_bytes()),
            Value::Bool(b) => out.push((*b).into()),
            Value::String(text) => put_string(out, text),
            Value::Array(array) => array.put(out),
            Value::U64(n) => out.extend(n.to_le_bytes()),
            Value::I64(n) => out.extend(n.to_le_bytes()),
            Value::F64(n) => out.extend(n.to_le_bytes()),
        }
    }
}

/// Appends a length and as many bytes.
pub(super) fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// For people: an array by its kind and length.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(n) => n.fmt(f),
            Value::I8(n) => n.fmt(f),
            Value::U16(n) => n.fmt(f),
            Value::I16(n) => n.fmt(f),
            Value::U32(n) => n.fmt(f),
            Value::I32(n) => n.fmt(f),
            Value::F32(n) => n.fmt(f),
            Value::Bool(b) => b.fmt(f),
            Value::String(text) => String::from_utf8_lossy(text).fmt(f),
            Value::Array(array) => write!(f, "{}[{}]", array.kind.name(), array.len),
            Value::U64(n) => n.fmt(f),
            Value::I64(n) => n.fmt(f),
            Value::F64(n) => n.fmt(f),
        }
    }
}
