//! Saving and loading through safetensors, hostile states included.

#![allow(missing_docs)]

mod common;
mod mock;

use common::values;
use fp4_core::backend::erased::Backend;
use fp4_core::{FloatType, Format, ScaleType};
use mock::{MOCK, MockDevice};
use quant_linear::{
    Backends, Bias, DenseOptions, Error, LoadOptions, QuantLinear, StoredTransform, state,
};
use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, serialize};

fn layer(format: Format, transform: bool) -> QuantLinear {
    let weight = values(7, 4 * 64);
    let options = DenseOptions {
        transform: transform.then(|| StoredTransform::hadamard(32).unwrap()),
        ..DenseOptions::new(format)
    };
    QuantLinear::from_dense(&weight[..], 4, 64, &options).unwrap()
}

fn bytes_of(layer: &QuantLinear, prefix: &str) -> Vec<u8> {
    serialize(layer.state_dict(prefix).unwrap(), None).unwrap()
}

/// Tensors of a state as (name, type, shape, bytes), to be changed.
type Raw = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn raw(layer: &QuantLinear) -> Raw {
    let state = layer.state_dict("").unwrap();
    state
        .iter()
        .map(|(n, t)| (n.clone(), t.dtype(), t.shape().to_vec(), t.data().to_vec()))
        .collect()
}

fn rebuild(raw: &Raw) -> Vec<u8> {
    let views = raw.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    serialize(views, None).unwrap()
}

fn load(bytes: &[u8], options: LoadOptions) -> Result<QuantLinear, Error> {
    QuantLinear::from_state(&SafeTensors::deserialize(bytes)?, "", &options)
}

#[test]
fn a_saved_layer_loads_to_the_same_bytes_and_outputs() {
    for format in Format::ALL {
        for transform in [false, true] {
            let saved = layer(format, transform);
            let bytes = bytes_of(&saved, "encoder.0");
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let loaded =
                QuantLinear::from_state(&tensors, "encoder.0", &LoadOptions::default()).unwrap();
            assert_eq!(bytes_of(&loaded, "encoder.0"), bytes);
            let x = values(8, 3 * 64);
            assert_eq!(loaded.forward(&x, &[3, 64]).unwrap(), saved.forward(&x, &[3, 64]).unwrap());
        }
    }
}

#[test]
fn states_have_the_real_types_and_all_three_scalars() {
    let layer = layer(Format::NvFp4, true);
    let bytes = bytes_of(&layer, "");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (name, dtype, shape) in [
        (state::E2M1, Dtype::U8, &[4, 32][..]),
        (state::SCALE_QUANT, Dtype::F8_E4M3, &[4, 4]),
        (state::TRANSFORM, Dtype::F32, &[32, 32]),
        (state::WEIGHT_GLOBAL_SCALE, Dtype::F32, &[]),
        (state::ACTIVATION_GLOBAL_SCALE, Dtype::F32, &[]),
        (state::ACTIVATION_SCALE_SCALE, Dtype::F32, &[]),
    ] {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape), "{name}");
    }
    assert_eq!(tensors.len(), 6);
    let mx = bytes_of(&self::layer(Format::MxFp4, false), "");
    let tensors = SafeTensors::deserialize(&mx).unwrap();
    assert_eq!(tensors.tensor(state::SCALE_QUANT).unwrap().dtype(), Dtype::F8_E8M0);
    assert_eq!(tensors.len(), 5);
}

#[test]
fn loading_into_an_empty_layer_of_another_shape_and_format_keeps_backends_and_device() {
    let saved = layer(Format::NvFp4, true);
    let bytes = bytes_of(&saved, "p");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mock = MockDevice::default();
    let mut target = QuantLinear::empty(128, 9, false).unwrap();
    target.set_backends(Backends::available().with(Backend::resident(mock.clone())));
    target.set_device(Some(MOCK)).unwrap();
    target.load_state(&tensors, "p", &LoadOptions::default()).unwrap();
    assert_eq!((target.in_features(), target.out_features()), (64, 4));
    assert_eq!(target.format(), Some(Format::NvFp4));
    assert!(target.transform().is_some());
    assert_eq!(target.device(), Some(MOCK));
    assert_eq!(bytes_of(&target, "p"), bytes, "a device changes no byte");
    let x = values(8, 3 * 64);
    assert_eq!(target.forward(&x, &[3, 64]).unwrap(), saved.forward(&x, &[3, 64]).unwrap());
    assert_eq!(mock.transfers.take(), (1, 1), "the forward ran on the device");
    // A state without a transform takes it away again.
    let plain = bytes_of(&layer(Format::MxFp4, false), "p");
    target
        .load_state(&SafeTensors::deserialize(&plain).unwrap(), "p", &LoadOptions::default())
        .unwrap();
    assert!(target.transform().is_none());
    assert_eq!(target.format(), Some(Format::MxFp4));
}

#[test]
fn a_failed_load_leaves_the_layer_as_it_was() {
    let mut target = layer(Format::MxFp4, false);
    let before = bytes_of(&target, "");
    let mut broken = raw(&layer(Format::NvFp4, false));
    broken.retain(|t| t.0 != state::WEIGHT_GLOBAL_SCALE);
    let bytes = rebuild(&broken);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let error = target.load_state(&tensors, "", &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
    assert_eq!(bytes_of(&target, ""), before);
}

#[test]
fn scalars_of_other_types_and_shapes_load() {
    let base = raw(&layer(Format::MxFp4, false));
    let with = |dtype, shape: &[usize], bytes: &[u8]| {
        let mut raw = base.clone();
        for t in &mut raw {
            if t.0 == state::ACTIVATION_GLOBAL_SCALE {
                *t = (t.0.clone(), dtype, shape.to_vec(), bytes.to_vec());
            }
        }
        load(&rebuild(&raw), LoadOptions::default()).map(|l| l.activation_global_scale())
    };
    assert_eq!(with(Dtype::F32, &[1], &0.5f32.to_le_bytes()).unwrap(), 0.5);
    assert_eq!(with(Dtype::F64, &[], &0.1f64.to_le_bytes()).unwrap(), 0.1);
    assert_eq!(with(Dtype::F16, &[], &0x3800u16.to_le_bytes()).unwrap(), 0.5);
    assert_eq!(with(Dtype::BF16, &[1], &0x3F00u16.to_le_bytes()).unwrap(), 0.5);
    for (dtype, shape, bytes) in [
        (Dtype::F32, &[2][..], vec![0; 8]),
        (Dtype::I32, &[], vec![0; 4]),
        (Dtype::F32, &[1, 1], vec![0; 4]),
        (Dtype::F32, &[0], vec![]),
    ] {
        let error = with(dtype, shape, &bytes).unwrap_err();
        assert!(matches!(error, Error::Shape { .. } | Error::Dtype { .. }), "{error}");
    }
    for bad in [0.0, -0.5, f32::NAN, f32::INFINITY, 2.0] {
        let error = with(Dtype::F32, &[], &f32::to_le_bytes(bad)).unwrap_err();
        assert!(matches!(error, Error::Core(fp4_core::Error::ScaleSetting { .. })), "{error}");
    }
}

#[test]
fn absent_scalars_follow_the_origin_of_the_state() {
    for (format, usual) in [(Format::MxFp4, 4.0), (Format::NvFp4, 6.0)] {
        let mut raw = raw(&layer(format, false));
        raw.retain(|t| !t.0.starts_with("activation"));
        let bytes = rebuild(&raw);
        let own = load(&bytes, LoadOptions::default()).unwrap();
        assert_eq!(own.activation_scale_scale(), 1.0);
        assert_eq!(own.activation_global_scale(), own.weight_global_scale());
        let foreign = load(&bytes, LoadOptions { foreign: true, ..Default::default() }).unwrap();
        assert_eq!(foreign.activation_scale_scale(), usual);
    }
}

#[test]
fn u8_scales_need_their_type() {
    let saved = layer(Format::NvFp4, false);
    let mut raw = raw(&saved);
    for t in &mut raw {
        if t.0 == state::SCALE_QUANT {
            t.1 = Dtype::U8;
        }
    }
    let bytes = rebuild(&raw);
    let error = load(&bytes, LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::ScaleTypeUnknown { .. }), "{error}");
    let options = LoadOptions { scale_type: Some(ScaleType::E4M3), ..Default::default() };
    assert_eq!(load(&bytes, options).unwrap().weight().unwrap(), saved.weight().unwrap());
}

#[test]
fn a_bias_is_refused_unless_zero_or_ignored() {
    let base = raw(&layer(Format::MxFp4, false));
    let with = |dtype, bytes: Vec<u8>| {
        let mut raw = base.clone();
        raw.push((state::BIAS.into(), dtype, vec![4], bytes));
        rebuild(&raw)
    };
    let nonzero =
        with(Dtype::F32, [0f32, 0.0, 1e-40, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect());
    let error = load(&nonzero, LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Bias { .. }), "{error}");
    load(&nonzero, LoadOptions { bias: Bias::Ignore, ..Default::default() }).unwrap();
    let nan = with(Dtype::BF16, vec![0, 0, 0xC0, 0x7F, 0, 0, 0, 0]);
    assert!(load(&nan, LoadOptions::default()).is_err());
    let zero = with(Dtype::F16, vec![0, 0, 0, 0x80, 0, 0, 0, 0]);
    load(&zero, LoadOptions::default()).unwrap();
}

#[test]
fn a_bias_is_applied_when_asked_saved_and_loaded_again() {
    let plain = layer(Format::NvFp4, false);
    let bias = [0.5f32, -1.0, 0.0, 3.0];
    let biased = plain.clone().with_bias(&bias).unwrap();
    let saved = bytes_of(&biased, "");
    let x = values(9, 64);
    let expected = biased.forward(&x, &[64]).unwrap();
    assert_ne!(expected, plain.forward(&x, &[64]).unwrap());

    let apply = LoadOptions { bias: Bias::Apply, ..Default::default() };
    let loaded = load(&saved, apply).unwrap();
    assert_eq!((loaded.bias(), bytes_of(&loaded, "")), (Some(&bias[..]), saved.clone()));
    assert_eq!(loaded.forward(&x, &[64]).unwrap(), expected);
    assert!(matches!(load(&saved, LoadOptions::default()).unwrap_err(), Error::Bias { .. }));

    // A skeleton built with a bias applies that of the state, without being asked again.
    let state = SafeTensors::deserialize(&saved).unwrap();
    let mut skeleton = QuantLinear::empty(64, 4, true).unwrap();
    skeleton.load_state(&state, "", &LoadOptions::default()).unwrap();
    assert_eq!(skeleton.forward(&x, &[64]).unwrap(), expected);
    let mut without = QuantLinear::empty(64, 4, false).unwrap();
    without.load_state(&state, "", &LoadOptions::default()).unwrap_err();
    assert!(without.is_empty(), "a refused state changes nothing");

    // One of the wrong shape is named.
    let mut raw = raw(&plain);
    raw.push((state::BIAS.into(), Dtype::F32, vec![2], vec![0; 8]));
    let error = load(&rebuild(&raw), apply).unwrap_err().to_string();
    assert!(error.contains("`bias` has shape [2], expected (4)"), "{error}");
}

#[test]
fn wrong_types_and_shapes_name_the_tensor() {
    let base = raw(&layer(Format::MxFp4, true));
    let change = |name: &str, dtype, shape: &[usize]| {
        let mut raw = base.clone();
        for t in &mut raw {
            if t.0 == name {
                let bits = shape.iter().product::<usize>() * Dtype::bitsize(&dtype);
                *t = (t.0.clone(), dtype, shape.to_vec(), vec![0; bits / 8]);
            }
        }
        load(&rebuild(&raw), LoadOptions::default()).unwrap_err().to_string()
    };
    for (name, dtype, shape) in [
        (state::E2M1, Dtype::I8, &[4, 32][..]),
        (state::E2M1, Dtype::U8, &[128]),
        (state::SCALE_QUANT, Dtype::F8_E5M2, &[4, 2]),
        (state::SCALE_QUANT, Dtype::F8_E8M0, &[3, 2]),
        (state::SCALE_QUANT, Dtype::F8_E8M0, &[4, 3]),
        (state::SCALE_QUANT, Dtype::F8_E8M0, &[4, 0]),
        (state::SCALE_QUANT, Dtype::F8_E8M0, &[2, 2, 2]),
        (state::TRANSFORM, Dtype::F64, &[32, 32]),
        (state::TRANSFORM, Dtype::F32, &[32, 16]),
        (state::TRANSFORM, Dtype::F32, &[8, 8]),
        (state::TRANSFORM, Dtype::F32, &[]),
    ] {
        let error = change(name, dtype, shape);
        assert!(error.contains(name), "{name} {dtype:?} {shape:?}: {error}");
    }
    // Legal buffers that make no legal layer.
    assert!(change(state::SCALE_QUANT, Dtype::F8_E8M0, &[4, 1]).contains("no matmul format"));
    assert!(change(state::SCALE_QUANT, Dtype::F8_E8M0, &[4, 64]).contains("16, 32, 64 or 128"));
    assert!(change(state::TRANSFORM, Dtype::F32, &[128, 128]).contains("transform block 128"));
    assert!(change(state::TRANSFORM, Dtype::F32, &[3, 32, 32]).contains("3 blocks"));
}

#[test]
fn nan_scales_load_and_make_their_rows_nan() {
    let mut raw = raw(&layer(Format::MxFp4, false));
    for t in &mut raw {
        if t.0 == state::SCALE_QUANT {
            t.3[2] = 0xFF; // row 1, group 0
        }
    }
    let layer = load(&rebuild(&raw), LoadOptions::default()).unwrap();
    let y = layer.forward(&values(1, 64), &[64]).unwrap();
    assert_eq!(y[1].to_bits(), 0x7FC0_0000);
    assert!(y[0].is_finite() && y[2].is_finite());
}

#[test]
fn truncated_and_hostile_files_are_errors() {
    let bytes = bytes_of(&layer(Format::MxFp4, true), "");
    let mut refused = 0;
    for cut in (0..bytes.len()).step_by(7) {
        assert!(load(&bytes[..cut], LoadOptions::default()).is_err(), "cut at {cut}");
        refused += 1;
    }
    // Every single-byte change of the header is an error or still a legal layer: never a panic.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for i in 0..header {
        for flip in [0x01, 0x10, 0x80] {
            let mut hostile = bytes.clone();
            hostile[i] ^= flip;
            refused += usize::from(load(&hostile, LoadOptions::default()).is_err());
        }
    }
    println!("hostile: {refused} files refused");
    assert!(refused > header);
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    let saved = layer(Format::NvFp4, true);
    saved.save(&path, "a.b").unwrap();
    let loaded = QuantLinear::load(&path, "a.b", &LoadOptions::default()).unwrap();
    assert_eq!(bytes_of(&loaded, ""), bytes_of(&saved, ""));
    // A failing write leaves the old file and nothing beside it.
    let before = std::fs::read(&path).unwrap();
    let error = quant_linear::atomic::write(&path, |file| {
        std::io::Write::write_all(file, b"half")?;
        Err(std::io::Error::other("the disk is full"))
    })
    .unwrap_err();
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let missing = folder.path().join("none").join("layer.safetensors");
    assert!(matches!(saved.save(&missing, "").unwrap_err(), Error::Io { .. }));
    let error = QuantLinear::load(&missing, "", &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(error.to_string().contains("No such file"), "{error}");
    let error = QuantLinear::load(&path, "wrong", &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("wrong.e2m1"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_save_replaces_a_plain_file_alone_and_keeps_its_permissions() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let saved = layer(Format::NvFp4, true);
    let _socket = UnixListener::bind(at("socket")).unwrap();
    std::fs::write(at("file"), "old").unwrap();
    std::fs::set_permissions(at("file"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    symlink("file", at("link")).unwrap();
    for (name, found) in
        [("socket", "a socket"), ("folder", "a folder"), ("link", "a symbolic link")]
    {
        let error = saved.save(&at(name), "a").unwrap_err();
        assert!(matches!(error, Error::Place { found: is, .. } if is == found), "{error}");
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"old");
    let error = saved.save(std::path::Path::new("/"), "a").unwrap_err().to_string();
    assert!(error.contains("names no file"), "{error}");
    // What a process left that is no more.
    std::fs::create_dir(at(".fp4-abc123.tmp")).unwrap();
    std::fs::write(at(".fp4-abc123.tmp/new"), "half").unwrap();
    saved.save(&at("file"), "a").unwrap();
    assert_eq!(std::fs::metadata(at("file")).unwrap().permissions().mode() & 0o777, 0o600);
    QuantLinear::load(&at("file"), "a", &LoadOptions::default()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn a_changed_dtype_is_saved_as_that_type() {
    let mut layer = layer(Format::MxFp4, true);
    layer.set_dtype(FloatType::F16);
    let bytes = bytes_of(&layer, "");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor(state::TRANSFORM).unwrap().dtype(), Dtype::F16);
    let loaded = load(&bytes, LoadOptions::default()).unwrap();
    assert_eq!(loaded.dtype(), FloatType::F16);
}

/// Another tensor of the file takes 64 GiB, none of them on the disk: whoever reads the file whole
/// fails.
#[test]
#[cfg(unix)]
fn a_load_reads_the_header_and_the_layer_alone() {
    const HUGE: u64 = 64 << 30;
    let saved = layer(Format::NvFp4, true);
    let bytes = bytes_of(&saved, "model.layers.7");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&bytes[8..8 + header]).unwrap().trim_end();
    let data = &bytes[8 + header..];
    let (start, end) = (data.len() as u64, data.len() as u64 + HUGE);
    let other =
        format!(r#""other":{{"dtype":"U8","shape":[{HUGE}],"data_offsets":[{start},{end}]}}"#);
    let text = format!("{},{other}}}", &text[..text.len() - 1]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &(text.len() as u64).to_le_bytes()).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    std::io::Write::write_all(&mut file, data).unwrap();
    file.as_file().set_len(8 + text.len() as u64 + end).unwrap();

    let options = LoadOptions::default();
    let loaded = QuantLinear::load(file.path(), "model.layers.7", &options).unwrap();
    assert_eq!(bytes_of(&loaded, "model.layers.7"), bytes);
    assert_eq!(loaded.name(), Some("model.layers.7"));
    let error = QuantLinear::load(file.path(), "model.layers.8", &options).unwrap_err();
    assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
}
