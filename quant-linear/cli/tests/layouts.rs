//! `fp4 inspect`, `convert` and `dequantize` on files that other software has written.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, Tensor, code, fails, json, ok, read, serialized, write};
use safetensors::Dtype;
use serde_json::Value;

/// A file of the library's test data.
fn vector(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    folder.join(name).to_str().unwrap().to_string()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with one of the models as Hugging Face has them.
fn model(folder: &Folder, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::create_dir(&path).unwrap();
    fs::copy(vector(&format!("{name}.safetensors")), path.join("model.safetensors")).unwrap();
    for config in ["config.json", "hf_quant_config.json", "quantization_config.json"] {
        let from = vector(&format!("{name}.{config}"));
        if Path::new(&from).exists() {
            fs::copy(from, path.join(config)).unwrap();
        }
    }
    fs::write(path.join("tokenizer.json"), "{}").unwrap();
    path
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn inspect_shows_logical_shapes_and_the_layout() {
    for (file, layout, name, shape, experts) in [
        (
            "f_ct_nvfp4.safetensors",
            "compressed-tensors",
            "model.layers.0.mlp.down_proj",
            [64, 96],
            None,
        ),
        ("h_mlx_mxfp4.safetensors", "mlx", "model.embed_tokens", [40, 64], None),
        (
            "f_gptoss.safetensors",
            "gpt-oss",
            "model.layers.0.mlp.experts.gate_up_proj",
            [10, 96],
            Some(2),
        ),
        ("h_gguf_nvfp4.gguf", "gguf", "blk.1.ffn_gate_exps", [16, 64], Some(2)),
    ] {
        let report = json(&["inspect", &vector(file)]);
        let layers = report["layers"].as_array().unwrap();
        let layer = layers.iter().find(|layer| layer["name"] == name).unwrap();
        assert_eq!(layer["layout"], layout, "{file}");
        assert_eq!(layer["shape"], serde_json::json!(shape), "{file}");
        assert_eq!(layer["experts"], serde_json::json!(experts), "{file}");
    }
}

#[test]
fn dequantize_writes_what_the_library_says_and_keeps_the_rest() {
    let folder = Folder::new();
    for (file, suffix) in [
        ("f_ct_nvfp4", "dequant_f32"),
        ("f_modelopt_nvfp4", "dequant_f32"),
        ("h_autoround_nvfp4", "dequant_f32"),
        ("h_fpquant_mxfp4", "dequant_rotated_f32"),
        ("h_quark_mxfp4", "dequant_f32"),
    ] {
        let out = folder.path().join(format!("{file}.safetensors"));
        let input = vector(&format!("{file}.safetensors"));
        ok(&["dequantize", &input, "-o", text(&out), "--dtype", "f32"]);
        let (got, before) = (read(&out), read(Path::new(&input)));
        let reference = read(Path::new(&vector(&format!("{file}_ref.safetensors"))));
        let mut compared = 0;
        for (name, (_, _, shape, bytes)) in &reference {
            let Some(module) = name.strip_suffix(&format!(".{suffix}")) else { continue };
            if module == "edge" {
                continue; // bytes that are in no checkpoint
            }
            let (_, dtype, dense_shape, dense) = &got[&format!("{module}.weight")];
            assert_eq!(
                (*dtype, dense_shape, dense),
                (Dtype::F32, shape, bytes),
                "{file}: {module}"
            );
            compared += 1;
        }
        assert_eq!(compared, 7, "{file}");
        let kept = got.iter().filter(|(name, tensor)| before.get(*name) == Some(tensor)).count();
        assert!(kept >= 5, "{file}: {kept}");
    }
}

#[test]
fn dequantize_gives_three_dimensions_and_a_cropped_shape() {
    let folder = Folder::new();
    let out = folder.path().join("g.safetensors");
    ok(&["dequantize", &vector("f_gptoss.safetensors"), "-o", text(&out), "--dtype", "bf16"]);
    let (_, dtype, shape, _) = &read(&out)["model.layers.0.mlp.experts.gate_up_proj"];
    assert_eq!((*dtype, &shape[..]), (Dtype::BF16, &[2, 10, 96][..]));

    let module = "model.diffusion_model.blocks.0.mlp.fc1";
    let out = folder.path().join("c.safetensors");
    let comfy = vector("h_comfy_nvfp4.safetensors");
    let told = ok(&["dequantize", &comfy, "-o", text(&out)]);
    assert!(told.contains("48 x 80, padding included: its bias shows 40 real rows"), "{told}");
    let padded = read(&out)[&format!("{module}.weight")].clone();
    assert_eq!(padded.2, [48, 80]);
    let out = folder.path().join("d.safetensors");
    ok(&["dequantize", &comfy, "-o", text(&out), "--shape", &format!("{module}=40x72")]);
    let cropped = read(&out)[&format!("{module}.weight")].clone();
    assert_eq!(cropped.2, [40, 72]);
    for row in 0..40 {
        assert_eq!(cropped.3[row * 288..(row + 1) * 288], padded.3[row * 320..row * 320 + 288]);
    }
    let wrong = format!("{module}=49x72");
    let out = folder.path().join("e.safetensors");
    fails(&["dequantize", &comfy, "-o", text(&out), "--shape", &wrong], &["cannot be cropped"]);
}

#[test]
fn convert_writes_the_config_of_the_target_and_carries_the_rest() {
    let folder = Folder::new();
    let input = model(&folder, "f_modelopt_nvfp4");
    let out = folder.path().join("ct");
    let report = json(&["convert", text(&input), text(&out), "--to", "ct"]);
    assert_eq!(report["totals"]["changed"], 0);
    assert_eq!(report["from"], serde_json::json!(["modelopt"]));
    let block = &config(&out)["quantization_config"];
    assert_eq!(block["quant_method"], "compressed-tensors");
    assert_eq!(block["format"], "nvfp4-pack-quantized");
    assert_eq!(block["ignore"], serde_json::json!(["lm_head", "model.embed_tokens"]));
    assert_eq!(config(&out)["model_type"], "llama");
    assert!(out.join("tokenizer.json").exists() && !out.join("hf_quant_config.json").exists());
    // The reciprocal of the global scale is what compressed-tensors' own converter makes of it.
    let reference = read(Path::new(&vector("f_modelopt_nvfp4_ref.safetensors")));
    let written = read(&out.join("model.safetensors"));
    let mut compared = 0;
    for (name, (.., bytes)) in &reference {
        if let Some((module, scalar)) = name.split_once(".ct.") {
            assert_eq!(written[&format!("{module}.{scalar}")].3, *bytes, "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 14);

    let back = folder.path().join("back");
    ok(&["convert", text(&out), text(&back), "--to", "modelopt"]);
    assert!(back.join("hf_quant_config.json").exists());
    let (a, b) = (read(&input.join("model.safetensors")), read(&back.join("model.safetensors")));
    for (name, tensor) in a.iter().filter(|(name, _)| !name.ends_with("scale_2")) {
        if !name.ends_with("input_scale") {
            assert_eq!(tensor, &b[name], "{name}");
        }
    }
}

#[test]
fn what_would_change_is_refused_with_its_coordinate_and_leaves_nothing() {
    let folder = Folder::new();
    let out = folder.path().join("o.gguf");
    let input = vector("f_torchao.safetensors");
    let convert = ["convert", &input, text(&out), "--to", "gguf"];
    fails(&convert, &["`mx_ceil.weight` has code 0x8", "at [0, 4]", "--allow-changed"]);
    assert!(!out.exists());
    let (stdout, _) = code(&[&convert[..], &["--allow-changed"]].concat(), 0);
    assert!(stdout.contains("CHANGED"), "{stdout}");

    let out = folder.path().join("o.safetensors");
    let input = vector("h_autoround_nvfp4.safetensors");
    let exact = ["convert", &input, text(&out), "--to", "modelopt", "--exact"];
    fails(&exact, &["values would differ by up to 2 ulp", "--exact"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fails(
        &["convert", &input, text(&out), "--to", "quark"],
        &["quark cannot hold 7 of the weights", "it holds no nvfp4 weights"],
    );
}

#[test]
fn a_file_that_two_layouts_explain_asks_for_the_layout_or_the_config() {
    let folder = Folder::new();
    let (input, out) = (folder.path().join("m.safetensors"), folder.path().join("o.safetensors"));
    fs::copy(vector("f_ct_nvfp4.safetensors"), &input).unwrap();
    let needles = ["compressed-tensors or auto-round", "--layout NAME or --config FILE"];
    fails(&["inspect", text(&input)], &needles);
    fails(&["convert", text(&input), text(&out), "--to", "native"], &needles);
    let config = vector("f_ct_nvfp4.config.json");
    for extra in [["--layout", "ct"], ["--config", &config]] {
        let report = json(&[&["inspect", text(&input)][..], &extra].concat());
        assert_eq!(report["layers"][0]["layout"], "compressed-tensors");
    }
    let report = json(&["inspect", text(&input), "--layout", "autoround"]);
    assert_eq!(report["layers"][0]["layout"], "auto-round");
}

#[test]
fn mxfp4_is_written_as_nvfp4_where_every_value_stays_and_back() {
    let folder = Folder::new();
    let [mx, nv, back] = ["mx", "nv", "back"].map(|name| folder.path().join(name));
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/minilm-slice.safetensors");
    ok(&["quantize", sample, "-o", text(&mx), "--format", "mxfp4"]);
    let to_nv = ["convert", text(&mx), text(&nv), "--to", "native", "--format", "nvfp4"];
    let report = json(&to_nv);
    let totals = &report["totals"];
    assert_eq!((&totals["values"], &totals["bit_exact"]), (&73728.into(), &true.into()));
    // A folder, for no name of a file was given.
    let nv = nv.join("model.safetensors");
    let layers = json(&["inspect", text(&nv)])["layers"].clone();
    assert!(layers.as_array().unwrap().iter().all(|layer| layer["format"] == "nvfp4"));
    ok(&["convert", text(&nv), text(&back), "--to", "native", "--format", "mxfp4"]);
    let back = back.join("model.safetensors");
    let [a, b, c] = [&mx, &nv, &back].map(|path| {
        let out = path.with_extension("dense.safetensors");
        ok(&["dequantize", text(path), "-o", text(&out)]);
        read(&out)
    });
    assert!(a == b && b == c && a.len() > 1);

    // Scales that no power of two can bring into the range of e4m3.
    let wide = vector("h_quark_mxfp4.safetensors");
    let out = folder.path().join("wide.safetensors");
    fails(
        &["convert", &wide, text(&out), "--to", "native", "--format", "nvfp4"],
        &["scales from 2^-32 to 2^-1 are more than 2^17 apart (2 groups do not fit)"],
    );
}

/// A tensor of bytes.
fn bytes(name: &str, dtype: Dtype, shape: &[usize], value: u8) -> Tensor {
    let bits = shape.iter().product::<usize>() * dtype.bitsize();
    (name.into(), dtype, shape.to_vec(), vec![value; bits / 8])
}

#[test]
fn names_that_collide_are_refused() {
    let folder = Folder::new();
    let (input, out) = (folder.path().join("m.safetensors"), folder.path().join("o.safetensors"));
    let mut tensors = vec![
        bytes("a.weight_packed", Dtype::U8, &[4, 32], 0x21),
        bytes("a.weight_scale", Dtype::U8, &[4, 2], 120),
        bytes("a.weight", Dtype::BF16, &[4, 64], 0),
    ];
    write(&input, &tensors);
    let layout = ["--layout", "ct"];
    let said = ["two tensors would be named `a.weight`"];
    fails(&[&["dequantize", text(&input), "-o", text(&out)][..], &layout].concat(), &said);
    fails(&[&["convert", text(&input), text(&out), "--to", "quark"][..], &layout].concat(), &said);
    assert!(!out.exists());
    tensors.pop();
    write(&input, &tensors);
    ok(&[&["convert", text(&input), text(&out), "--to", "quark"][..], &layout].concat());
}

#[test]
fn the_config_beside_a_file_is_nobodys_to_overwrite() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    fs::copy(vector("h_quark_mxfp4.safetensors"), path("m.safetensors")).unwrap();
    fs::copy(vector("h_quark_mxfp4.config.json"), path("m.config.json")).unwrap();
    let before = fs::read(path("m.config.json")).unwrap();
    // A GGUF file needs none.
    ok(&["convert", text(&path("m.safetensors")), text(&path("m.gguf")), "--to", "gguf"]);
    assert_eq!(fs::read(path("m.config.json")).unwrap(), before);
    fs::write(path("o.config.json"), "{}").unwrap();
    let [input, output] = ["m.safetensors", "o.safetensors"].map(path);
    let convert = ["convert", text(&input), text(&output), "--to", "ct"];
    fails(&convert, &["o.config.json", "exists already", "--force"]);
    assert!(!output.exists());
    ok(&[&convert[..], &["--force"]].concat());
    assert!(fs::read_to_string(path("o.config.json")).unwrap().contains("compressed-tensors"));
    ok(&["convert", text(&output), text(&path("b.safetensors")), "--to", "quark"]);
}

#[test]
fn what_stays_in_its_layout_keeps_its_config() {
    let folder = Folder::new();
    let input = model(&folder, "h_mlx_nvfp4");
    let out = folder.path().join("mlx");
    ok(&["convert", text(&input), text(&out), "--to", "mlx"]);
    assert_eq!(config(&out), config(&input));
    // Another one says which layers it does not speak of.
    let out = folder.path().join("native");
    let told = ok(&["convert", text(&input), text(&out), "--to", "native"]);
    assert!(told.contains("quantized in another way, `lm_head.weight` the first"), "{told}");
    let told = ok(&["dequantize", text(&input), "-o", text(&folder.path().join("dense"))]);
    assert!(told.contains("`lm_head.weight` the first"), "{told}");
}

#[test]
fn experts_of_mlx_are_one_tensor() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    let tensors = [
        bytes("m.experts.up.weight", Dtype::U32, &[2, 4, 8], 0x21),
        bytes("m.experts.up.scales", Dtype::U8, &[2, 4, 2], 120),
    ];
    write(&path("m.safetensors"), &tensors);
    let layers = json(&["inspect", text(&path("m.safetensors"))])["layers"].clone();
    assert_eq!(layers[0]["experts"], 2);
    assert_eq!(layers[0]["shape"], serde_json::json!([4, 64]));
    ok(&["convert", text(&path("m.safetensors")), text(&path("n.safetensors")), "--to", "native"]);
    ok(&["convert", text(&path("n.safetensors")), text(&path("b.safetensors")), "--to", "mlx"]);
    let (before, after) = (read(&path("m.safetensors")), read(&path("b.safetensors")));
    assert_eq!(before, after);
    ok(&["dequantize", text(&path("m.safetensors")), "-o", text(&path("d.safetensors"))]);
    assert_eq!(read(&path("d.safetensors"))["m.experts.up.weight"].2, [2, 4, 64]);
}

#[test]
fn experts_that_were_taken_apart_are_one_tensor_again_under_the_name_that_it_had() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    for (module, dense) in [
        ("m.switch_mlp.up_proj", "m.switch_mlp.up_proj.weight"),
        ("blk.0.ffn_up_exps", "blk.0.ffn_up_exps.weight"),
        ("m.block_sparse_moe.input_linear", "m.block_sparse_moe.input_linear.weight"),
        // What the header records, of which transformers' parameter would have no `.weight`.
        ("m.experts.up_proj", "m.experts.up_proj.weight"),
        ("m.odd.up_proj", "m.odd.up_proj.weight"),
    ] {
        let tensors = [
            bytes(&format!("{module}.weight"), Dtype::U32, &[2, 4, 8], 0x21),
            bytes(&format!("{module}.scales"), Dtype::U8, &[2, 4, 2], 120),
        ];
        let mlx = path("m.safetensors");
        write(&mlx, &tensors);
        ok(&["convert", text(&mlx), text(&path("n.safetensors")), "--to", "native", "--force"]);
        let native = path("n.safetensors");
        ok(&["dequantize", text(&native), "-o", text(&path("d.safetensors")), "--force"]);
        assert_eq!(read(&path("d.safetensors"))[dense].2, [2, 4, 64], "{module}");
        ok(&["convert", text(&native), text(&path("b.safetensors")), "--to", "mlx", "--force"]);
        assert_eq!(read(&mlx), read(&path("b.safetensors")), "{module}");
    }
}

/// Values of a tensor in F32.
fn values(tensors: &std::collections::BTreeMap<String, Tensor>, name: &str) -> Vec<f32> {
    let bytes = tensors[name].3.chunks_exact(4);
    bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn mlx_experts_of_nvfp4_may_have_a_global_scale_each() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    let module = "m.switch_mlp.up_proj";
    let globals = [3.7f32, 0.0123];
    let global = globals.iter().flat_map(|g| g.to_le_bytes()).collect();
    let tensors = [
        bytes(&format!("{module}.weight"), Dtype::U32, &[2, 4, 8], 0x21),
        bytes(&format!("{module}.scales"), Dtype::U8, &[2, 4, 4], 0x3B),
        (format!("{module}.global_scale"), Dtype::F32, vec![2], global),
    ];
    let input = path("in");
    fs::create_dir(&input).unwrap();
    write(&input.join("model.safetensors"), &tensors);
    let mode = serde_json::json!({ "group_size": 16, "bits": 4, "mode": "nvfp4" });
    fs::write(input.join("config.json"), serde_json::json!({ "quantization": mode }).to_string())
        .unwrap();
    // e2m1 * (scale * (global / 2688)), as mlx 0.32.4 computes it, bit for bit.
    let expected: Vec<_> = globals
        .iter()
        .flat_map(|g| [0.5, 1.0].repeat(128).into_iter().map(move |e| e * (1.375 * (g / 2688.0))))
        .collect();
    ok(&["dequantize", text(&input), "-o", text(&path("d.safetensors"))]);
    let dense = read(&path("d.safetensors"));
    assert_eq!(values(&dense, &format!("{module}.weight")), expected);
    assert_eq!(dense.len(), 1);
    let (native, back) = (path("native"), path("back"));
    let told = json(&["convert", text(&input), text(&native), "--to", "native"]);
    assert_eq!(told["totals"]["values_differ"], 0);
    let told = json(&["convert", text(&native), text(&back), "--to", "mlx", "--exact"]);
    assert_eq!(told["totals"]["values_differ"], 0);
    let after = read(&back.join("model.safetensors"));
    let scales = values(&after, &format!("{module}.global_scale"));
    assert_eq!(scales.iter().map(|g| g / 2688.0).collect::<Vec<_>>(), globals.map(|g| g / 2688.0));
    assert_eq!(config(&back)["quantization"][module]["global_scale"], true);
    ok(&["verify", text(&back)]);
    // A plain linear layer has no place for one.
    let one = path("one.safetensors");
    let state = [
        bytes("a.e2m1", Dtype::U8, &[4, 16], 0x21),
        bytes("a.scale_quant", Dtype::F8_E4M3, &[4, 2], 0x3B),
        ("a.weight_global_scale".into(), Dtype::F32, vec![], 0.5f32.to_le_bytes().into()),
    ];
    write(&one, &state);
    let out = path("no");
    fails(&["convert", text(&one), text(&out), "--to", "mlx"], &["stores no global scale", "5e-1"]);
}

#[test]
fn parameters_of_torchao_have_their_own_names_and_experts_a_scale_each() {
    let folder = Folder::new();
    let path = |name: &str| folder.path().join(name);
    let described =
        r#"{"_type": "NVFP4Tensor", "_data": {"act_quant_kwargs": null, "block_size": 16}}"#;
    let scales = [0.5f32, 3.0].iter().flat_map(|g| g.to_le_bytes()).collect();
    let tensors = [
        bytes("m.experts._w1_qdata", Dtype::U8, &[2, 4, 32], 0x21),
        bytes("m.experts._w1_scale", Dtype::F8_E4M3, &[2, 4, 4], 0x38),
        ("m.experts._w1_per_tensor_scale".into(), Dtype::F32, vec![2, 1, 1], scales),
        bytes("m.a._weight_qdata", Dtype::U8, &[4, 32], 0x21),
        bytes("m.a._weight_scale", Dtype::F8_E8M0, &[32, 16], 0x7F), // swizzled
    ];
    let header =
        [("m.experts.w1", described), ("tensor_names", r#"["m.experts.w1", "m.a.weight"]"#)];
    fs::write(path("in.safetensors"), serialized(&tensors, &header)).unwrap();
    let input = path("in.safetensors");
    let layers = json(&["inspect", text(&input)])["layers"].clone();
    let one = |i: usize| ["name", "format", "shape", "experts"].map(|key| layers[i][key].clone());
    let expected =
        serde_json::json!(
            [["m.a", "mxfp4", [4, 64], null], ["m.experts.w1", "nvfp4", [4, 64], 2],]
        );
    assert_eq!(serde_json::json!([one(0), one(1)]), expected);
    ok(&["verify", text(&input)]);
    let dense = path("d.safetensors");
    ok(&["dequantize", text(&input), "-o", text(&dense)]);
    let dense = read(&dense);
    assert_eq!(dense.keys().collect::<Vec<_>>(), ["m.a.weight", "m.experts.w1"]);
    let expected: Vec<_> =
        [0.5, 3.0].iter().flat_map(|g| [0.5 * g, 1.0 * g].repeat(4 * 32)).collect();
    assert_eq!(values(&dense, "m.experts.w1"), expected);
    // In its own layout it stays as it is, described as it was.
    ok(&["convert", text(&input), text(&path("same.safetensors")), "--to", "torchao"]);
    assert_eq!(read(&input), read(&path("same.safetensors")));
    let said = |file: &Path| json(&["inspect", text(file)])["files"][0]["metadata"].clone();
    assert_eq!(said(&input), said(&path("same.safetensors")));
    // Two weights of one name are not one of them.
    let again = [
        bytes("m.experts.w1._weight_qdata", Dtype::U8, &[4, 32], 0x21),
        bytes("m.experts.w1._weight_scale", Dtype::F8_E8M0, &[4, 2], 0x7F),
    ];
    let both: Vec<_> = tensors.iter().chain(&again).cloned().collect();
    fs::write(path("both.safetensors"), serialized(&both, &header)).unwrap();
    let said = "two layers are called `m.experts.w1`";
    let (report, _) = code(&["verify", text(&path("both.safetensors"))], 1);
    assert!(report.contains(said), "{report}");
    // Elsewhere the experts are layers, and one of them can be loaded from here too.
    let native = path("n.safetensors");
    ok(&["convert", text(&input), text(&native), "--to", "native"]);
    assert_eq!(read(&native)["m.experts.w1.1.e2m1"].2, [4, 32]);
    for file in [&input, &native] {
        let name = "m.experts.w1.1";
        let layer = quant_linear::QuantLinear::load(file, name, &Default::default()).unwrap();
        assert_eq!((layer.out_features(), layer.in_features()), (4, 64));
    }
}

#[test]
fn what_a_layer_computes_beside_its_weight_is_neither_lost_nor_left_unsaid() {
    for (vector, inside, extra, to, own) in [
        ("f_modelopt_nvfp4", "", "svdquant_lora_a", "ct", "modelopt"),
        ("h_quark_mxfp4", "", "input_rotation", "ct", "quark"),
        ("f_ct_nvfp4", "", "weight_g_idx", "modelopt", "ct"),
        // Adapters that are around the layer.
        ("f_ct_nvfp4", ".linear", "lora_a", "modelopt", "ct"),
        ("f_ct_nvfp4", ".base_layer", "lora_A.default.weight", "modelopt", "ct"),
    ] {
        let folder = Folder::new();
        let input = model(&folder, vector);
        let file = input.join("model.safetensors");
        let module = "model.layers.0.mlp.down_proj";
        let mut tensors: Vec<_> = read(&file).into_values().collect();
        for (name, ..) in &mut tensors {
            if let Some(part) = name.strip_prefix(module) {
                *name = format!("{module}{inside}{part}");
            }
        }
        tensors.push(bytes(&format!("{module}.{extra}"), Dtype::F32, &[4, 96], 1));
        write(&file, &tensors);
        let name = format!("{module}.{extra}");
        let out = folder.path().join(format!("{vector}.out"));
        fails(&["convert", text(&input), text(&out), "--to", to], &[&name]);
        let dense = folder.path().join(format!("{vector}.dense"));
        let told = ok(&["dequantize", text(&input), "-o", text(&dense)]);
        assert!(told.contains(&format!("{name}, which is not undone")), "{told}");
        let note = ok(&["inspect", text(&input)]);
        assert!(note.contains("no layer here computes") && note.contains(&name), "{note}");
        let module = format!("{module}{inside}");
        let error = quant_linear::QuantLinear::load(&file, &module, &Default::default());
        assert!(error.unwrap_err().to_string().contains(&name), "{vector}");
        // Its own layout keeps it.
        ok(&["convert", text(&input), text(&out), "--to", own]);
        assert!(read(&out.join("model.safetensors")).contains_key(&name), "{vector}");
    }
}

#[test]
fn mxfp4_of_modelopt_stays_where_it_is_and_nothing_else_becomes_it() {
    let folder = Folder::new();
    let input = folder.path().join("in");
    fs::create_dir(&input).unwrap();
    let tensors = [
        bytes("a.weight", Dtype::U8, &[4, 32], 0x21),
        bytes("a.weight_scale", Dtype::U8, &[4, 2], 120),
        bytes("m.experts.up_proj", Dtype::U8, &[2, 32, 4], 0x21),
        bytes("m.experts.up_proj_weight_scale", Dtype::U8, &[2, 2, 4], 120),
    ];
    write(&input.join("model.safetensors"), &tensors);
    let block = serde_json::json!({ "quant_method": "modelopt", "quant_algo": "MXFP4" });
    let value = serde_json::json!({ "quantization_config": block });
    fs::write(input.join("config.json"), value.to_string()).unwrap();
    let [same, native, back] = ["same", "native", "back"].map(|name| folder.path().join(name));
    ok(&["convert", text(&input), text(&same), "--to", "modelopt"]);
    let file = |folder: &Path| read(&folder.join("model.safetensors"));
    assert_eq!(file(&input), file(&same));
    assert_eq!(config(&same), value);
    ok(&["convert", text(&input), text(&native), "--to", "native"]);
    let no = ["modelopt cannot hold 3 of the weights", "it holds no mxfp4 weights"];
    fails(&["convert", text(&native), text(&back), "--to", "modelopt"], &no);
}

#[test]
fn a_transform_that_only_the_config_tells_of_is_not_lost() {
    let folder = Folder::new();
    let input = model(&folder, "f_ct_nvfp4");
    let mut value = config(&input);
    value["quantization_config"]["transform_config"] = serde_json::json!({ "config_groups": {} });
    fs::write(input.join("config.json"), value.to_string()).unwrap();
    let out = folder.path().join("out");
    fails(
        &["convert", text(&input), text(&out), "--to", "modelopt"],
        &["it stores no transform", "`transform_config` of the config"],
    );
    ok(&["convert", text(&input), text(&out), "--to", "ct"]);
    assert_eq!(config(&out), value);
    let told = ok(&["dequantize", text(&input), "-o", text(&folder.path().join("dense"))]);
    assert!(told.contains("`transform_config` of the config, which is not undone"), "{told}");
}

#[test]
fn layers_that_a_header_lists_without_their_prefix_are_comfys() {
    let folder = Folder::new();
    let path = folder.path().join("m.safetensors");
    let tensors = [
        bytes("model.diffusion_model.a.weight", Dtype::U8, &[128, 32], 0x21),
        bytes("model.diffusion_model.a.weight_scale", Dtype::F8_E4M3, &[128, 4], 0x38),
        (
            "model.diffusion_model.a.weight_scale_2".into(),
            Dtype::F32,
            vec![],
            1f32.to_le_bytes().into(),
        ),
    ];
    let layout = |header: &str| {
        fs::write(&path, serialized(&tensors, &[("_quantization_metadata", header)])).unwrap();
        json(&["inspect", text(&path)])["layers"][0]["layout"].clone()
    };
    assert_eq!(layout(r#"{"layers": {"a": {"format": "nvfp4"}}}"#), "comfyui");
    let told = ok(&["verify", text(&path)]);
    assert!(!told.contains("no such module"), "{told}");
    layout(r#"{"layers": {"a": {"format": "nvfp4"}, "gone": {"format": "nvfp4"}}}"#);
    let (told, _) = code(&["verify", text(&path)], 1);
    assert!(told.contains("the header names it as `nvfp4`, and there is no such module"), "{told}");
    // A header that lists others denies this one, and ModelOpt writes no such header.
    assert_eq!(layout(r#"{"layers": {"b": {"format": "nvfp4"}}}"#), Value::Null);
}

#[test]
fn inspect_names_what_the_config_denies() {
    let folder = Folder::new();
    let input = model(&folder, "f_modelopt_nvfp4");
    fs::remove_file(input.join("hf_quant_config.json")).unwrap();
    let mut value = config(&input);
    value["quantization_config"]["quant_method"] = "gptq".into();
    fs::write(input.join("config.json"), value.to_string()).unwrap();
    let report = json(&["inspect", text(&input)]);
    assert_eq!(report["layers"].as_array().unwrap().len(), 0);
    let note = report["notes"][0].as_str().unwrap();
    for part in ["7 modules", "modelopt", "`gptq`", "model.layers.0.mlp.down_proj"] {
        assert!(note.contains(part), "no {part} in {note}");
    }
    assert!(ok(&["inspect", text(&input)]).contains(&format!("note: {note}")));
    let whole = vector("f_ct_nvfp4.safetensors");
    assert_eq!(json(&["inspect", &whole])["notes"], serde_json::json!([]));
}

#[test]
fn activations_that_are_not_quantized_become_mxint8_and_that_is_said() {
    let folder = Folder::new();
    let gpt_oss = vector("f_gptoss.safetensors");
    let report = json(&["inspect", &gpt_oss]);
    let (layer, note) = (&report["layers"][0], report["notes"][0].as_str().unwrap());
    assert_eq!(layer["activations"], "mxint8");
    assert!(layer["activations_note"].as_str().is_some_and(|own| note.ends_with(own)), "{report}");
    assert!(
        note.starts_with("the activations of 2 layers, `model.layers.0.mlp.experts."),
        "{note}"
    );
    assert!(note.contains("not spoken of") && note.contains("to mxint8"), "{note}");
    let shown = ok(&["inspect", &gpt_oss]);
    assert!(shown.contains(&format!("note: {note}")) && shown.contains("| mxint8 "), "{shown}");
    // The state of a layer says it, unless another encoding is asked for.
    for (name, asked, byte) in [("a", None, Some(1)), ("b", Some("fp4"), None)] {
        let asked = asked.map_or(vec![], |asked| vec!["--activations", asked]);
        let out = folder.path().join(name);
        let args = ["convert", &gpt_oss, text(&out), "--to", "native", "--allow-changed"];
        let notes = json(&[&args[..], &asked].concat())["notes"].to_string();
        assert_eq!(notes.contains(note), byte.is_some(), "{notes}");
        let file = out.join("model.safetensors");
        let stored = read(&file);
        let stored = stored.get("model.layers.0.mlp.experts.down_proj.0.activation_encoding");
        assert_eq!(stored.map(|tensor| tensor.3[0]), byte, "{name}");
        let report = json(&["inspect", text(&file)]);
        let expected = if byte.is_some() { "mxint8" } else { "fp4" };
        assert_eq!(report["layers"][0]["activations"], expected);
        assert_eq!(report["notes"], serde_json::json!([]));
    }
    let out = folder.path().join("c.gguf");
    let args = ["convert", &gpt_oss, text(&out), "--to", "gguf", "--activations", "fp4"];
    fails(&args, &["--activations is for --to native", "gguf", "convert without it"]);
    let out = folder.path().join("c");
    let args = ["convert", &gpt_oss, text(&out), "--to", "native", "--activation-scale", "row"];
    fails(&args, &["cannot quantize activations to fp4-rows"]);
    assert!(!out.exists());
}

#[test]
fn dequantize_warns_of_weights_that_their_loader_takes_the_other_way_around() {
    let folder = Folder::new();
    let out = folder.path().join("out");
    let report = json(&["dequantize", &vector("f_gptoss.safetensors"), "-o", text(&out)]);
    let warning = report["warnings"][0].as_str().unwrap();
    for part in ["2 weights", "experts.down_proj", "(experts, out, in)", "(experts, in, out)"] {
        assert!(warning.contains(part), "no {part} in {warning}");
    }
    // GPT-2's layers are (in, out) to their loader, and no other model's are.
    let dense: Vec<_> = ["h.0.mlp.c_fc", "h.0.mlp.other"]
        .iter()
        .map(|name| common::random(&format!("{name}.weight"), Dtype::F32, &[64, 128], 1))
        .collect();
    for (model_type, expected) in [("gpt2", 1), ("gpt_bigcode", 0)] {
        let input = folder.path().join(model_type);
        fs::create_dir(&input).unwrap();
        write(&input.join("model.safetensors"), &dense);
        let value = serde_json::json!({ "model_type": model_type });
        fs::write(input.join("config.json"), value.to_string()).unwrap();
        let [quantized, back] =
            ["fp4", "dense"].map(|end| folder.arg(&format!("{model_type}-{end}")));
        ok(&["quantize", text(&input), "-o", &quantized, "--format", "nvfp4"]);
        let report = json(&["dequantize", &quantized, "-o", &back]);
        let warnings = report["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), expected, "{model_type}: {warnings:?}");
        for warning in warnings {
            let warning = warning.as_str().unwrap();
            assert!(warning.starts_with("1 weights, `h.0.mlp.c_fc.weight`"), "{warning}");
            assert!(warning.contains("`gpt2`") && warning.contains("(in, out)"), "{warning}");
        }
    }
}
