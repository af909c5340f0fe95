//! Any bytes as a safetensors file for quant-linear's own reader: an error, or the same tensors
//! that the `safetensors` crate reads.

#![no_main]

use std::io::Write;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use quant_linear::checkpoint::{TensorFile, byte_len};
use safetensors::SafeTensors;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("a temporary file can be written");
    check(file.path(), data);
});

fn check(path: &Path, data: &[u8]) {
    let mut read = match TensorFile::open(path) {
        Ok(read) => read,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(read.file_len(), data.len() as u64);
    if read.gguf().is_some() {
        return; // the target `gguf` has its own seeds
    }
    let expected = SafeTensors::deserialize(data).expect("the reader is the stricter one");
    let tensors = read.take_tensors();
    assert_eq!((tensors.len(), read.count()), (expected.len(), expected.len()));
    for (name, (info, _)) in &tensors {
        let view = expected.tensor(name).expect("both name the same tensors");
        assert_eq!((info.dtype, info.shape.as_slice()), (view.dtype(), view.shape()));
        let len = byte_len(info);
        assert_eq!(read.bytes(info, 0, len).expect("inside the file"), view.data());
        let half = read.bytes(info, len / 2, len - len / 2).expect("inside the file");
        assert_eq!(half, view.data()[len / 2..]);
        assert!(read.bytes(info, 1, len).is_err(), "a read past the tensor's end");
    }
}
