//! The container: what is written is read back, and what is broken is refused by name.

use std::path::Path;

use safetensors::Dtype;

use super::value::put_string;
use super::*;
use crate::checkpoint::{Checkpoint, TensorSource};

/// A file, put together with nothing checked.
struct Raw {
    version: u32,
    counts: Option<[u64; 2]>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: usize,
}

impl Default for Raw {
    fn default() -> Self {
        let (pairs, tensors) = (vec![], vec![]);
        Raw { version: 3, counts: None, pairs, tensors, alignment: 32, data: 64 }
    }
}

impl Raw {
    fn bytes(&self) -> Vec<u8> {
        let counts = self.counts.unwrap_or([self.tensors.len() as u64, self.pairs.len() as u64]);
        let mut file = [MAGIC, &self.version.to_le_bytes()].concat();
        counts.iter().for_each(|n| file.extend(n.to_le_bytes()));
        file.extend(self.pairs.concat());
        file.extend(self.tensors.concat());
        file.resize(file.len().next_multiple_of(self.alignment) + self.data, 0xA5);
        file
    }

    fn with_pair(key: &str, kind: u32, value: &[u8]) -> Self {
        Raw { pairs: vec![pair(key.as_bytes(), kind, value)], ..Raw::default() }
    }

    fn with(tensors: &[Vec<u8>]) -> Self {
        Raw { tensors: tensors.to_vec(), ..Raw::default() }
    }
}

fn pair(key: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    put_string(&mut out, key);
    [&out, &kind.to_le_bytes()[..], value].concat()
}

/// A tensor with its dimensions in the file's order.
fn tensor(name: &[u8], ne: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut out = vec![];
    put_string(&mut out, name);
    out.extend((ne.len() as u32).to_le_bytes());
    ne.iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(ty.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

fn array(kind: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

fn refusal(file: &[u8]) -> String {
    match read(file, file.len() as u64) {
        Ok(read) => panic!("it was read: {read:?}"),
        Err(refusal) => refusal.to_string(),
    }
}

const F32: u32 = 0;

fn refused(cases: &[(&str, Raw, &str)]) {
    for (what, raw, expected) in cases {
        let refusal = refusal(&raw.bytes());
        assert!(refusal.contains(expected), "{what}: {refusal}");
    }
}

#[test]
fn broken_counts_and_pairs_are_refused_by_name() {
    let max = u64::MAX.to_le_bytes();
    let nested = (0..8).fold(array(0, 0, &[]), |inner, _| array(9, 1, &inner));
    refused(&[
        ("version 1", Raw { version: 1, ..Raw::default() }, "GGUF of version 1, expected 2 or 3"),
        ("version 0", Raw { version: 0, ..Raw::default() }, "GGUF of version 0, expected 2 or 3"),
        ("version 4", Raw { version: 4, ..Raw::default() }, "GGUF of version 4, expected 2 or 3"),
        (
            "the other byte order",
            Raw { version: 3 << 24, ..Raw::default() },
            "big-endian byte order (version 3)",
        ),
        (
            "too many tensors",
            Raw { counts: Some([u64::MAX, 0]), ..Raw::default() },
            "its list of tensors at byte 24 takes 18446744073709551615 bytes at least, and 72 are",
        ),
        (
            "more pairs than fit",
            Raw { counts: Some([0, 6]), ..Raw::default() },
            "its list of pairs at byte 24 takes 78 bytes at least, and 72 are left",
        ),
        ("a key without end", Raw { counts: Some([0, 1]), ..Raw::default() }, "its key at byte 32"),
        (
            "a key that is no text",
            Raw { pairs: vec![pair(b"a\xFF", 0, &[1])], ..Raw::default() },
            "its key at byte 24 is not UTF-8",
        ),
        ("no kind", Raw::with_pair("k", 13, &[0; 8]), "the value of `k` has type 13"),
        ("a kind in an array", Raw::with_pair("k", 9, &array(99, 1, &[0])), "`k` has type 99"),
        ("a bool of 2", Raw::with_pair("k", 7, &[2]), "the byte 2 for a bool"),
        ("a bool of 3", Raw::with_pair("k", 9, &array(7, 2, &[1, 3])), "the byte 3 for a bool"),
        ("a string", Raw::with_pair("k", 8, &max), "its string at byte 45 takes 18446744073709"),
        (
            "an array",
            Raw::with_pair("k", 9, &array(12, 1 << 62, &[])),
            "its array at byte 49 takes",
        ),
        ("strings", Raw::with_pair("k", 9, &array(8, 1 << 40, &[])), "its array of strings at"),
        ("arrays", Raw::with_pair("k", 9, &array(9, 1 << 40, &[])), "its array of arrays at"),
        ("deep arrays", Raw::with_pair("k", 9, &nested), "nests arrays more than 8 deep"),
        (
            "a key twice",
            Raw { pairs: vec![pair(b"k", 0, &[1]), pair(b"k", 0, &[1])], ..Raw::default() },
            "the key `k` is there twice",
        ),
        (
            "alignment 0",
            Raw::with_pair("general.alignment", 4, &[0; 4]),
            "alignment is 0, expected",
        ),
        ("24", Raw::with_pair("general.alignment", 4, &[24, 0, 0, 0]), "alignment is 24, expected"),
        ("u64", Raw::with_pair("general.alignment", 10, &32u64.to_le_bytes()), "is 32, expected a"),
        ("steering", Raw::with_pair("\x1b[2J", 13, &[0; 8]), r"the value of `\u{1b}[2J`"),
    ]);
}

#[test]
fn broken_tensors_are_refused_by_name() {
    let t = |ne: &[u64], ty, offset| Raw::with(&[tensor(b"w", ne, ty, offset)]);
    refused(&[
        ("no text", Raw::with(&[tensor(b"\xC0", &[1], F32, 0)]), "its name of a tensor at byte 24"),
        ("rank 5", t(&[1; 5], F32, 0), "tensor `w` has 5 dimensions, expected at most 4"),
        ("a removed type", t(&[32], 4, 0), "tensor `w` has ggml type 4"),
        ("a new type", t(&[32], 4242, 0), "tensor `w` has ggml type 4242"),
        ("a huge shape", t(&[1 << 32, 1 << 32], F32, 0), "the size of tensor `w`, F32 of shape"),
        ("a huge size", t(&[1 << 62], F32, 0), "the size of tensor `w`, F32"),
        ("negative", t(&[u64::MAX], 24, 0), "the size of tensor `w`, I8"),
        (
            "half a block",
            t(&[48], 39, 0),
            "MXFP4 with rows of 48 elements, expected a multiple of 32",
        ),
        ("half a block of 64", t(&[32, 2], 40, 0), "NVFP4 with rows of 32 elements"),
        ("a scalar of blocks", t(&[], 8, 0), "Q8_0 with rows of 1 elements"),
        ("between", t(&[1], F32, 4), "starts at byte 4 of the data, expected a multiple of 32"),
        ("past the end", t(&[8], F32, 64), "ends at byte 96 of the data, which has 64"),
        ("longer than the file", t(&[17], F32, 0), "ends at byte 68 of the data, which has 64"),
        ("far out", t(&[1], F32, u64::MAX - 31), "ends at byte 18446744073709551588 of the data"),
        ("nothing far out", t(&[0], F32, 1 << 63), "ends at byte 9223372036854775808 of the data"),
        ("overflowing", t(&[8], F32, u64::MAX - 31), "ends at byte 18446744073709551615 of the"),
        (
            "a tensor twice",
            Raw::with(&[tensor(b"w", &[8], F32, 0), tensor(b"w", &[8], F32, 32)]),
            "the tensor `w` is there twice",
        ),
        (
            "two in one place",
            Raw::with(&[tensor(b"v", &[8], F32, 32), tensor(b"w", &[9], F32, 0)]),
            "the tensors `w` and `v` overlap",
        ),
    ]);
}

#[test]
fn what_ggml_takes_is_read() {
    let all = [
        tensor(b"scalar", &[], F32, 0),
        tensor(b"none", &[0, 7], F32, 32),
        tensor(b"last", &[64, 1, 1, 1], 40, 32),
        tensor(b"", &[32, 2, 1], 39, 96),
        // Without bytes it shares nothing, and its place is where the padding would end.
        tensor(b"end", &[64, 0], 40, 160),
    ];
    for version in [2, 3] {
        // The padding behind the last tensor is missing, and there may be gaps.
        let file = Raw { version, data: 96 + 34, ..Raw::with(&all) }.bytes();
        let (header, tensors, data_start) = read(&file[..], file.len() as u64).unwrap();
        assert_eq!((header.version(), header.alignment()), (version, 32));
        assert_eq!(data_start as usize, file.len() - 130);
        let shapes = tensors.iter().map(|(name, (info, ty))| (&**name, *ty, &*info.shape));
        let expected: [(&str, _, &[usize]); 5] = [
            ("", Some(GgmlType::MXFP4), &[1, 2, 17]),
            ("end", Some(GgmlType::NVFP4), &[0, 36]),
            ("last", Some(GgmlType::NVFP4), &[1, 1, 1, 36]),
            ("none", Some(GgmlType::F32), &[7, 0]),
            ("scalar", Some(GgmlType::F32), &[]),
        ];
        assert_eq!(shapes.collect::<Vec<_>>(), expected);
    }
    // No tensors, no data, not even the padding to it.
    let empty = Raw::default().bytes();
    let (_, tensors, data_start) = read(&empty[..24], 24).unwrap();
    assert_eq!((tensors.len(), data_start), (0, 32));
}

/// Pairs of every kind, and tensors of several types.
fn example() -> (Vec<(String, Value)>, Vec<Planned>) {
    let nested = array(8, 1, &[1, 0, 0, 0, 0, 0, 0, 0, b'x']);
    let array = |kind, len, bytes: &[u8]| Value::Array(Array { kind, len, bytes: bytes.into() });
    let pairs = [
        ("general.architecture", Value::String(b"llama".into())),
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-100)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-30_000)),
        ("u32", Value::U32(1 << 31)),
        ("i32", Value::I32(-7)),
        ("nan", Value::F32(f32::from_bits(0x7FA0_1234))),
        ("yes", Value::Bool(true)),
        ("no text", Value::String(vec![0xFF, 0xFE])),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(-0.0)),
        ("tokens", Value::Array(Array::of_strings([&b"a"[..], b"\xE4", b""]))),
        ("scores", array(Kind::F32, 2, &[0, 0, 128, 63, 1, 2, 3, 255])),
        ("flags", array(Kind::Bool, 3, &[0, 1, 1])),
        ("nested", array(Kind::Array, 2, &[nested.clone(), nested].concat())),
        ("empty", array(Kind::U16, 0, &[])),
        ("general.alignment", Value::U32(64)),
    ];
    let tensors: [(&str, _, &[usize]); 6] = [
        ("z.weight", GgmlType::MXFP4, &[3, 64]),
        ("a.weight", GgmlType::NVFP4, &[2, 4, 128]),
        ("a.scale", GgmlType::F32, &[1]),
        ("none", GgmlType::Q6_K, &[0, 256]),
        ("h", GgmlType::F16, &[5, 7]),
        ("scalar", GgmlType::I64, &[]),
    ];
    (
        pairs.map(|(key, value)| (key.to_string(), value)).into(),
        tensors.map(|(name, ty, shape)| (name.to_string(), ty, shape.to_vec())).into(),
    )
}

fn write(path: &Path, arrangement: &GgufArrangement, data: u8) {
    let mut file = arrangement.header().to_vec();
    let start = file.len();
    file.resize(arrangement.file_len() as usize, 0);
    file[start.next_multiple_of(64)..].fill(data);
    std::fs::write(path, file).unwrap();
}

#[test]
fn what_is_written_is_read_back_to_the_byte() {
    let (pairs, tensors) = example();
    let arrangement = GgufArrangement::new(&pairs, &tensors).unwrap();
    let mut file = arrangement.header().to_vec();
    file.resize(arrangement.file_len() as usize, 0);
    // The position of a tensor holds its own bytes.
    for (i, (name, ty, shape)) in tensors.iter().enumerate() {
        let at = arrangement.position(name).unwrap() as usize;
        assert_eq!(at % 64, 0, "{name}");
        let len = shape.iter().product::<usize>() / ty.block_len() * ty.block_bytes();
        file[at..at + len].fill(i as u8 + 1);
    }
    assert_eq!(file.len() % 64, 0);
    assert_eq!(arrangement.data_len(), 3 * 34 + 8 * 72 + 4 + 70 + 8);
    assert_eq!(arrangement.position("absent"), None);
    let folder = tempfile::tempdir().unwrap();
    // By its first bytes, not its name.
    let path = folder.path().join("model.bin");
    std::fs::write(&path, &file).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let header = checkpoint.gguf().unwrap();
    assert_eq!((header.version(), header.alignment()), (3, 64));
    let again = GgufArrangement::new(header.pairs(), &tensors).unwrap();
    assert!(again.header() == arrangement.header(), "the pairs come back to the byte");
    assert_eq!(header.pairs()[..7], pairs[..7]);
    assert_eq!(header.get("general.architecture").unwrap().as_str(), Some("llama"));
    assert_eq!(header.get("no text").unwrap().as_str(), None);
    assert_eq!(header.get("u16").unwrap().as_u64(), Some(60_000));
    assert_eq!(header.get("i32").unwrap().as_u64(), None);
    assert_eq!(header.get("absent"), None);
    for (i, (name, ty, shape)) in tensors.iter().enumerate() {
        let tensor = checkpoint.tensor(name).unwrap();
        assert_eq!((tensor.ggml, &tensor.shape()), (Some(*ty), shape), "{name}");
        assert_eq!(checkpoint.ggml_type(name), Some(*ty));
        assert_eq!(tensor.info.dtype, ty.dtype().unwrap_or(Dtype::U8));
        let bytes = checkpoint.bytes(name).unwrap();
        assert!(bytes.iter().all(|b| *b == i as u8 + 1), "{name}");
    }
    assert_eq!(checkpoint.tensor("a.weight").unwrap().info.shape, [2, 4, 72]);
    assert_eq!(checkpoint.range("a.weight", 570..576).unwrap().len(), 6);
    assert!(checkpoint.range("a.weight", 570..577).is_err());
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (pairs, tensors) = example();
    let arrangement = GgufArrangement::new(&pairs, &tensors).unwrap();
    let mut file = arrangement.header().to_vec();
    file.resize(arrangement.file_len() as usize, 0);
    // The last tensor is 8 bytes and 56 of padding, which may be missing.
    let last = file.len() - 56;
    for len in 0..last {
        let refusal = refusal(&file[..len]);
        assert!(refusal.contains("the file is cut short or broken"), "{len}: {refusal}");
    }
    for len in last..=file.len() {
        assert_eq!(read(&file[..len], len as u64).unwrap().1.len(), 6);
    }
    // A file that is shorter than its length said.
    assert!(matches!(read(&file[..100], file.len() as u64), Err(crate::error::Refusal::System(_))));
}

#[test]
fn what_a_reader_would_refuse_is_not_written() {
    let long = "w".repeat(64);
    let alignment = |value| vec![("general.alignment".to_string(), value)];
    let twice = vec![("k".to_string(), Value::U8(1)), ("k".to_string(), Value::U8(2))];
    let t = |name: &str, ty, shape: &[usize]| vec![(name.to_string(), ty, shape.to_vec())];
    let w = t("w", GgmlType::F32, &[1]);
    let cases = [
        (twice, vec![], "the key `k` is there twice"),
        (alignment(Value::U32(48)), vec![], "alignment is 48"),
        (alignment(Value::U64(32)), vec![], "alignment is 32, expected a U32"),
        (vec![], [w.clone(), w].concat(), "the tensor `w` is there twice"),
        (
            vec![],
            t(&long, GgmlType::F32, &[1]),
            "has a name of 64 bytes, and ggml loads at most 63",
        ),
        (vec![], t("w", GgmlType::F32, &[1; 5]), "5 dimensions"),
        (
            vec![],
            t("w", GgmlType::NVFP4, &[2, 96]),
            "rows of 96 elements, expected a multiple of 64",
        ),
        (vec![], t("w", GgmlType::F64, &[usize::MAX / 4]), "overflows"),
        (
            vec![],
            [t("v", GgmlType::I8, &[1 << 62]), t("w", GgmlType::I8, &[1 << 62])].concat(),
            "the size of tensor `w`",
        ),
    ];
    for (pairs, tensors, expected) in cases {
        let error = GgufArrangement::new(&pairs, &tensors).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(GgufArrangement::new(&[], &t(&long[1..], GgmlType::F32, &[1])).is_ok());
}

/// Writes file `no` of `count`, with one tensor.
fn part(path: &Path, no: u16, count: u16, tensors: i32, name: &str) {
    let pairs = [
        ("split.no", Value::U16(no)),
        ("split.count", Value::U16(count)),
        ("split.tensors.count", Value::I32(tensors)),
        ("general.alignment", Value::U32(64)),
        ("general.name", Value::U16(no)),
    ];
    let pairs = pairs.map(|(key, value)| (key.to_string(), value));
    let tensors = [(name.to_string(), GgmlType::I8, vec![64])];
    write(path, &GgufArrangement::new(&pairs, &tensors).unwrap(), no as u8 + 1);
}

#[test]
fn a_model_in_several_files_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let names = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];
    let whole = || {
        for (no, (file, tensor)) in names.iter().zip(["c", "a", "b"]).enumerate() {
            part(&at(file), no as u16, 3, 3, tensor);
        }
    };
    whole();
    for name in names {
        let checkpoint = Checkpoint::open(&at(name)).unwrap();
        assert_eq!(checkpoint.own_names().into_iter().collect::<Vec<_>>(), names);
        let name = checkpoint.gguf().unwrap().get("general.name").unwrap().as_u64();
        assert_eq!(name, Some(0), "the first file has the model's pairs");
        let bytes = ["a", "b", "c"].map(|name| checkpoint.bytes(name).unwrap()[0]);
        assert_eq!(bytes, [2, 3, 1]);
    }
    let refused = |name: &str, expected: &str| {
        let error = Checkpoint::open(&at(name)).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    };
    part(&at(names[1]), 2, 3, 3, "a");
    refused(names[0], "its split.no is Some(2) and its split.count Some(3), expected 1 and 3");
    part(&at(names[1]), 1, 3, 3, "c");
    refused(names[0], "the tensor `c` is there twice");
    part(&at(names[0]), 0, 3, 4, "d");
    refused(names[0], "the 3 files of the model hold 3 tensors, expected 4");
    std::fs::remove_file(at(names[1])).unwrap();
    refused(names[0], "m-00002-of-00003.gguf: it is not there, and the model has 3 such files");
    std::fs::rename(at(names[0]), at("m.gguf")).unwrap();
    refused("m.gguf", "expected a name that ends in -00001-of-00003.gguf");
    part(&at("m.gguf"), 7, 3, 3, "a");
    refused("m.gguf", "-00008-of-00003.gguf");
    whole();
    std::fs::write(at(names[1]), [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    refused(names[0], "its split.no is None");
    // One of one needs no such name.
    part(&at("whole.gguf"), 0, 1, 1, "a");
    assert_eq!(Checkpoint::open(&at("whole.gguf")).unwrap().files().len(), 1);
}

#[test]
fn gguf_is_not_taken_for_a_shard_of_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    part(&folder.path().join("model.safetensors"), 0, 1, 1, "a");
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("no safetensors file but a GGUF file"), "{error}");
    assert!(Checkpoint::open(&folder.path().join("model.safetensors")).is_ok());
}
