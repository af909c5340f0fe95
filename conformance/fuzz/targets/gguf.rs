//! Any bytes as a GGUF file: an error, or pairs and tensors that are written back as they were, and
//! blocks whose values are computed.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use quant_linear::checkpoint::gguf::{GgufArrangement, GgufError, Planned, dequantize};
use quant_linear::checkpoint::{Checkpoint, TensorSource, byte_len};

/// Bytes of a file up to which it is written again: a large alignment makes large gaps.
const WRITTEN: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let path = file(data);
    let read = match Checkpoint::open(&path) {
        Ok(read) => read,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let Some(header) = read.gguf() else { return };
    // The pairs follow the counts.
    let pairs = GgufArrangement::new(header.pairs(), &[]).expect("pairs that were read");
    let pairs = &pairs.header()[24..];
    assert_eq!(pairs, &data[24..24 + pairs.len()]);

    let mut tensors: Vec<_> = read.tensors().iter().collect();
    tensors.sort_by_key(|(_, tensor)| tensor.info.data_offsets);
    let mut end = 0;
    for (name, tensor) in &tensors {
        let (ty, bytes) = (tensor.ggml.expect("all have one"), read.bytes(name).expect("inside"));
        assert_eq!(bytes.len(), byte_len(&tensor.info));
        assert_eq!(tensor.info.data_offsets.0 % u64::from(header.alignment()), 0);
        if !bytes.is_empty() {
            assert!(tensor.info.data_offsets.0 >= end, "`{name}` overlaps");
            end = tensor.info.data_offsets.1;
        }
        let mut values = vec![0f32; tensor.shape().iter().product()];
        match dequantize(ty, &bytes, &mut values) {
            Ok(()) => {}
            Err(GgufError::NoValues(other)) => assert_eq!(ty, other),
            Err(error) => panic!("{error}"),
        }
    }
    let planned = tensors.iter().map(|(name, tensor)| -> Planned {
        ((*name).clone(), tensor.ggml.expect("all have one"), tensor.shape())
    });
    let planned: Vec<_> = planned.collect();
    match GgufArrangement::new(header.pairs(), &planned) {
        Ok(arrangement) if arrangement.file_len() <= WRITTEN => again(&read, &arrangement),
        Ok(_) => {}
        // ggml's limit, which a reader need not have.
        Err(_) => assert!(planned.iter().any(|(name, ..)| name.len() > 63)),
    }
});

/// The file, which lives as long as it is read from.
fn file(data: &[u8]) -> tempfile::TempPath {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("a temporary file can be written");
    file.into_temp_path()
}

/// What was laid out again holds the same tensors.
fn again(read: &Checkpoint, arrangement: &GgufArrangement) {
    let mut data = arrangement.header().to_vec();
    data.resize(arrangement.file_len() as usize, 0);
    for name in read.tensors().keys() {
        let bytes = read.bytes(name).expect("inside");
        let at = arrangement.position(name).expect("it was planned") as usize;
        data[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let path = file(&data);
    let written = Checkpoint::open(&path).expect("what was just written");
    assert!(read.tensors().keys().eq(written.tensors().keys()));
    for (name, tensor) in written.tensors() {
        let before = &read.tensors()[name];
        assert_eq!((tensor.ggml, &tensor.info.shape), (before.ggml, &before.info.shape));
        assert_eq!(written.bytes(name).expect("inside"), read.bytes(name).expect("inside"));
    }
}
