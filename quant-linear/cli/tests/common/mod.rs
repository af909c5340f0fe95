//! What the tests of the `fp4` command share: making checkpoints, running, and reading back.

#![allow(dead_code)] // each test program uses its own part

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use quant_linear::{Bias, LoadOptions, QuantLinear};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Name, type, shape, bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// The command.
pub(crate) fn fp4(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fp4"));
    // A command that waits for what never comes fails its test instead of hanging it.
    command.args(args).env_remove("RUST_LOG").timeout(Duration::from_secs(120));
    command
}

/// Runs, expects success, and returns stdout.
pub(crate) fn ok(args: &[&str]) -> String {
    code(args, 0).0
}

/// Runs, expects success with `--json`, and returns the object.
pub(crate) fn json(args: &[&str]) -> Value {
    let args: Vec<_> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&ok(&args)).expect("stdout is one JSON object")
}

/// Runs, expects the exit code, and returns stdout and stderr.
pub(crate) fn code(args: &[&str], expected: i32) -> (String, String) {
    let output = fp4(args).output().expect("the command runs");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
    assert_eq!(output.status.code(), Some(expected), "fp4 {args:?}\n{stdout}\n{stderr}");
    assert!(!stderr.contains("panicked"), "fp4 {args:?}\n{stderr}");
    (stdout, stderr)
}

/// Runs, expects an error that says all of `needles`, and nothing on stdout.
pub(crate) fn fails(args: &[&str], needles: &[&str]) {
    let (stdout, stderr) = code(args, 2);
    assert_eq!(stdout, "", "fp4 {args:?}");
    for needle in needles {
        assert!(stderr.contains(needle), "fp4 {args:?}: no `{needle}` in: {stderr}");
    }
}

/// Numbers between -1 and 1 with some outliers; the same for the same seed.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|i| next() * if i % 97 == 0 { 8.0 } else { 1.0 }).collect()
}

/// An f32 tensor.
pub(crate) fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (name.into(), Dtype::F32, shape.to_vec(), bytes)
}

/// A tensor of random numbers in F32, F16 or BF16.
pub(crate) fn random(name: &str, dtype: Dtype, shape: &[usize], seed: u64) -> Tensor {
    let values = numbers(seed, shape.iter().product());
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("no random {other}"),
    };
    (name.into(), dtype, shape.to_vec(), bytes)
}

/// The bytes of a safetensors file.
pub(crate) fn serialized(tensors: &[Tensor], metadata: &[(&str, &str)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata: HashMap<_, _> =
        metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).unwrap()
}

/// Writes a safetensors file.
pub(crate) fn write(path: &Path, tensors: &[Tensor]) {
    fs::write(path, serialized(tensors, &[])).unwrap();
}

/// A file with this header text and data.
pub(crate) fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// All tensors of a file by name.
pub(crate) fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let tensor =
                (name.to_string(), view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name.to_string(), tensor)
        })
        .collect()
}

/// A layer of a file.
pub(crate) fn layer(path: &Path, prefix: &str) -> QuantLinear {
    let options = LoadOptions { bias: Bias::Ignore, ..LoadOptions::default() };
    QuantLinear::load(path, prefix, &options).unwrap()
}

/// Two layers hold the same bits.
pub(crate) fn assert_same_layer(a: &QuantLinear, b: &QuantLinear) {
    assert_eq!(a.weight().unwrap(), b.weight().unwrap());
    assert_eq!(a.transform(), b.transform());
    let scalars = |l: &QuantLinear| {
        [l.weight_global_scale(), l.activation_global_scale(), l.activation_scale_scale()]
            .map(f32::to_bits)
    };
    assert_eq!(scalars(a), scalars(b));
}

/// A temporary folder.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path inside.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A path inside, as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_string()
    }

    /// Every file and folder inside, with contents.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        snapshot(self.path())
    }
}

/// Every file and folder below a path, by relative path, with contents.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    fn walk(root: &Path, at: &Path, all: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let relative = path.strip_prefix(root).unwrap().to_path_buf();
            all.insert(relative, meta.is_file().then(|| fs::read(&path).unwrap()));
            if meta.is_dir() {
                walk(root, &path, all);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    all
}

/// A small model: three linear layers in three types, and all else that a file may hold.
pub(crate) fn model() -> Vec<Tensor> {
    vec![
        random("a.weight", Dtype::F32, &[24, 128], 1),
        random("a.bias", Dtype::F32, &[24], 2),
        random("b.c.weight", Dtype::BF16, &[8, 384], 3),
        random("d.weight", Dtype::F16, &[5, 256], 4),
        random("embed_tokens.weight", Dtype::F32, &[10, 128], 5),
        random("norm.weight", Dtype::BF16, &[128], 6),
        random("conv.weight", Dtype::F32, &[2, 2, 32], 7),
        ("ids".into(), Dtype::I64, vec![3], (0..24).collect()),
        ("flag".into(), Dtype::BOOL, vec![1], vec![1]),
    ]
}

/// Two shards with an index, and files and folders beside them.
pub(crate) fn sharded(root: &Path) {
    fs::create_dir_all(root.join("sub/deeper")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    let model = model();
    let (first, second) = model.split_at(3);
    write(&root.join("model-00001-of-00002.safetensors"), first);
    write(&root.join("model-00002-of-00002.safetensors"), second);
    let map = |tensors: &[Tensor], shard: &str| -> BTreeMap<String, String> {
        tensors.iter().map(|t| (t.0.clone(), shard.to_string())).collect()
    };
    let mut weight_map = map(first, "model-00001-of-00002.safetensors");
    weight_map.extend(map(second, "model-00002-of-00002.safetensors"));
    let index = serde_json::json!({ "metadata": { "total_size": 1, "kept": [1] }, "weight_map": weight_map });
    fs::write(root.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(root.join("config.json"), "{ }\n").unwrap();
    fs::write(root.join("sub/deeper/vocab.bin"), [0, 255, 7]).unwrap();
    fs::write(root.join("sub/model.safetensors"), "not one, and not looked at").unwrap();
}

/// Tensors by their names.
pub(crate) fn by_name(tensors: &[Tensor]) -> BTreeMap<String, Tensor> {
    tensors.iter().map(|t| (t.0.clone(), t.clone())).collect()
}
