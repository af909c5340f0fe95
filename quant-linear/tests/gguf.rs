//! GGUF files that other software wrote: gguf-py's, byte for byte, and what it makes of blocks.

use std::fs;
use std::path::{Path, PathBuf};

use quant_linear::checkpoint::gguf::{GgmlType, GgufArrangement, Planned, Value, dequantize};
use quant_linear::checkpoint::{Checkpoint, TensorSource};
use serde_json::Value as Json;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");

/// The GGUF files with their manifests.
fn files() -> Vec<(PathBuf, Json)> {
    let mut files = vec![];
    for entry in fs::read_dir(DATA).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            let manifest = fs::read(path.with_extension("json")).unwrap();
            files.push((path, serde_json::from_slice(&manifest).unwrap()));
        }
    }
    assert!(files.len() >= 4, "{files:?}");
    files
}

#[test]
fn real_files_hold_what_their_manifests_say() {
    for (path, manifest) in files() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let listed = manifest["tensors"].as_object().unwrap();
        assert!(checkpoint.tensors().keys().eq(listed.keys()), "{path:?}");
        for (name, tensor) in checkpoint.tensors() {
            let (ty, shape) = (tensor.type_name(), serde_json::json!(tensor.shape()));
            assert_eq!(listed[name]["dtype"].as_str(), Some(&*ty), "{path:?} {name}");
            assert_eq!(listed[name]["shape"], shape, "{path:?} {name}");
        }
        let header = checkpoint.gguf().unwrap();
        let pairs = manifest["gguf_kv"].as_object().unwrap();
        assert_eq!(header.pairs().len(), pairs.len() - 3, "{path:?}: the counts are not pairs");
        for (key, value) in header.pairs() {
            let Json::String(expected) = &pairs[key]["value"] else {
                let number = match value {
                    Value::F32(n) => f64::from(*n),
                    other => other.as_u64().unwrap() as f64,
                };
                assert_eq!(pairs[key]["value"].as_f64(), Some(number), "{path:?} {key}");
                continue;
            };
            match value {
                Value::Array(array) => assert_eq!(*expected, format!("{} elements", array.len())),
                other => assert_eq!(other.as_str(), Some(&**expected), "{path:?} {key}"),
            }
        }
    }
}

#[test]
fn real_files_are_written_back_to_the_byte() {
    for (path, _) in files() {
        let (checkpoint, expected) = (Checkpoint::open(&path).unwrap(), fs::read(&path).unwrap());
        let mut tensors: Vec<_> = checkpoint.tensors().iter().collect();
        tensors.sort_by_key(|(_, tensor)| tensor.info.data_offsets);
        let planned = tensors.iter().map(|(name, tensor)| -> Planned {
            ((*name).clone(), tensor.ggml.unwrap(), tensor.shape())
        });
        let planned: Vec<_> = planned.collect();
        let pairs = checkpoint.gguf().unwrap().pairs();
        let arrangement = GgufArrangement::new(pairs, &planned).unwrap();
        let mut file = arrangement.header().to_vec();
        file.resize(arrangement.file_len() as usize, 0);
        for (name, _) in tensors {
            let bytes = checkpoint.bytes(name).unwrap();
            let at = arrangement.position(name).unwrap() as usize;
            file[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        assert!(file == expected, "{path:?}");
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

#[test]
fn values_are_those_of_gguf_py_bit_for_bit() {
    let table = fs::read_to_string(Path::new(DATA).join("ggml_values.txt")).unwrap();
    let rows: Vec<_> = table.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rows.len(), 9);
    for row in rows {
        let [name, blocks, values] = row.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let ty = GgmlType::ALL.into_iter().find(|ty| ty.name() == name).unwrap();
        let (blocks, expected) = (unhex(blocks), unhex(values));
        let mut values = vec![0f32; blocks.len() / ty.block_bytes() * ty.block_len()];
        dequantize(ty, &blocks, &mut values).unwrap();
        let got: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(got == expected, "{ty}: {values:?}");
    }
}

/// Some elements of a block.
type Values = &'static [(usize, f32)];

#[test]
fn values_are_those_computed_by_hand() {
    // 1.5, -2 and 0.25 in f16.
    let (d, m, small) = (0x3E00u16.to_le_bytes(), 0xC000u16.to_le_bytes(), 0x3400u16.to_le_bytes());
    let rest = |first: u8| [&[first][..], &[0; 15]].concat();
    // Bit 0 and bit 31 of the fifth bits.
    let fifth = 0x8000_0001u32.to_le_bytes();
    let last = |first: u8, last: u8| [&[first][..], &[0; 14], &[last]].concat();
    let mut six = [0u8; 210];
    (six[0], six[96], six[0x80], six[0x80 + 32]) = (0x2F, 0x70, 0b0011_0010, 0b1100_0000);
    (six[192], six[192 + 4], six[192 + 14]) = (3, 0x80, 0xFF);
    six[208..].copy_from_slice(&small);
    let cases: [(GgmlType, Vec<u8>, Values); 9] = [
        (GgmlType::F32, 1.1f32.to_le_bytes().into(), &[(0, 1.1)]),
        (GgmlType::F16, vec![0x01, 0x80], &[(0, -1.0 / 16_777_216.0)]),
        (GgmlType::BF16, vec![0x80, 0xBF], &[(0, -1.0)]),
        // (15 - 8) * 1.5, (2 - 8) * 1.5, (0 - 8) * 1.5.
        (GgmlType::Q4_0, [&d[..], &rest(0x2F)].concat(), &[(0, 10.5), (16, -9.0), (1, -12.0)]),
        // 15 * 1.5 - 2, 2 * 1.5 - 2, -2.
        (GgmlType::Q4_1, [&d[..], &m, &rest(0x2F)].concat(), &[(0, 20.5), (16, 1.0), (31, -2.0)]),
        // (16 + 15 - 16) * 1.5, (2 - 16) * 1.5, (16 + 10 - 16) * 1.5, (0 - 16) * 1.5.
        (
            GgmlType::Q5_0,
            [&d[..], &fifth, &last(0x2F, 0xA0)].concat(),
            &[(0, 22.5), (16, -21.0), (31, 15.0), (1, -24.0)],
        ),
        // 31 * 1.5 - 2, 2 * 1.5 - 2, 26 * 1.5 - 2, -2.
        (
            GgmlType::Q5_1,
            [&d[..], &m, &fifth, &last(0x2F, 0xA0)].concat(),
            &[(0, 44.5), (16, 1.0), (31, 37.0), (1, -2.0)],
        ),
        // -128 * 1.5, 1 * 1.5.
        (
            GgmlType::Q8_0,
            [&d[..], &[0x80], &[0; 30], &[1]].concat(),
            &[(0, -192.0), (31, 1.5), (7, 0.0)],
        ),
        // j = 0: q = 15 + 16 * 2 - 32 = 15, times 0.25 * 3. j = 64: q = 2 + 16 * 3 - 32 = 18,
        // times 0.25 * -128. j = 224: q = 7 + 16 * 3 - 32 = 23, times 0.25 * -1. j = 1: q = -32,
        // times 0.25 * 3. j = 255: its scale is 0.
        (
            GgmlType::Q6_K,
            six.to_vec(),
            &[(0, 11.25), (64, -576.0), (224, -5.75), (1, -24.0), (255, 0.0)],
        ),
    ];
    for (ty, block, expected) in cases {
        let mut values = vec![f32::NAN; 2 * ty.block_len()];
        dequantize(ty, &block.repeat(2), &mut values).unwrap();
        for &(j, expected) in expected {
            let second = values[ty.block_len() + j];
            assert_eq!((values[j], second), (expected, expected), "{ty} {j}");
        }
        assert!(values.iter().all(|value| !value.is_nan()), "{ty}");
    }
}

#[test]
fn other_types_and_broken_blocks_have_no_values() {
    let refused = |ty, bytes: usize, values: usize| {
        dequantize(ty, &vec![0; bytes], &mut vec![0.0; values]).unwrap_err().to_string()
    };
    for ty in GgmlType::ALL {
        let result = dequantize(ty, &[], &mut []);
        match result {
            Ok(()) => assert!(refused(ty, 1, ty.block_len()).contains("bytes for each"), "{ty}"),
            Err(error) => assert!(error.to_string().contains(ty.name()), "{error}"),
        }
    }
    assert!(refused(GgmlType::MXFP4, 17, 32).contains("values of ggml type MXFP4"));
    for (bytes, values) in
        [(34, 31), (34, 33), (34, 64), (33, 32), (35, 32), (68, 32), (0, 32), (34, 0)]
    {
        let error = refused(GgmlType::Q8_0, bytes, values);
        assert!(error.contains("expected 34 bytes for each 32 values"), "{error}");
    }
}
