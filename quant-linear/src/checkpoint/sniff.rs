//! What a file is that is neither safetensors nor GGUF, from its first bytes.
//!
//! Asked only once a file has turned out not to be one: the first eight bytes of a safetensors file
//! are a length, and could be anything.

/// Bytes that are enough to tell.
pub(super) const ENOUGH: usize = 64;

const CONVERT: &str = "fp4 reads safetensors and GGUF: get the model's safetensors files, or \
                       convert it with the software that made it";
const TORCH: &str = "load it in PyTorch and write its tensors with safetensors.torch.save_file";
const AGAIN: &str = "download the file itself";

/// First bytes, what begins with them, what to do.
const KNOWN: [(&[u8], &str, &str); 15] = [
    (b"lmgg", "a GGML file (llama.cpp)", CONVERT),
    (b"tjgg", "a GGJT file (llama.cpp)", CONVERT),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint (.pt, .pth, .bin)", TORCH),
    (b"\x80\x02", "a Python pickle, perhaps an old PyTorch checkpoint", TORCH),
    (b"\x80\x03", "a Python pickle, perhaps an old PyTorch checkpoint", TORCH),
    (b"\x80\x04", "a Python pickle, perhaps an old PyTorch checkpoint", TORCH),
    (b"\x80\x05", "a Python pickle, perhaps an old PyTorch checkpoint", TORCH),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", CONVERT),
    (b"\x93NUMPY", "a NumPy array (.npy)", CONVERT),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer to the file", "run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page", AGAIN),
    (b"<html", "a web page", AGAIN),
];

/// What the file is, and what to do about it.
pub(super) fn known(first: &[u8]) -> Option<(&'static str, &'static str)> {
    // The length of a header can begin as a pickle does; the header itself is an object.
    if first.get(8) == Some(&b'{') {
        return None;
    }
    if let Some((_, what, what_to_do)) = KNOWN.iter().find(|(magic, ..)| first.starts_with(magic)) {
        return Some((what, what_to_do));
    }
    // Field 1 of the model, its version; then field 2, the producer.
    if let [0x08, 1..=32, 0x12, ..] = first {
        return Some(("an ONNX model", CONVERT));
    }
    let text = first.trim_ascii_start();
    if text.starts_with(b"{") || text.starts_with(b"[") {
        let index = "give the folder if it is an index of shards, else the .safetensors file";
        return Some(("JSON text", index));
    }
    None
}
