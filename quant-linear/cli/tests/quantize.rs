//! `fp4 quantize` where it succeeds: what is written, and what is reported.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use fp4_core::{Format, ScaleRule};
use quant_linear::{DenseOptions, FloatVec, QuantLinear, StoredTransform, state};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const LINEAR: [&str; 3] = ["a", "b.c", "d"];

fn options(format: Format, block: Option<usize>) -> DenseOptions {
    let transform = block.map(|block| StoredTransform::hadamard(block).unwrap());
    DenseOptions { transform, ..DenseOptions::new(format) }
}

/// The layer that the library makes of a dense tensor.
fn expected(tensor: &Tensor, options: &DenseOptions) -> QuantLinear {
    let (_, dtype, shape, bytes) = tensor;
    let values = FloatVec::from_le_bytes(state::float_type(*dtype).unwrap(), bytes).unwrap();
    QuantLinear::from_dense(values.as_slice(), shape[0], shape[1], options).unwrap()
}

#[test]
fn a_file_becomes_the_layers_that_the_library_makes() {
    let folder = Folder::new();
    fs::write(folder.at("in"), serialized(&model(), &[("format", "pt"), ("note", "n")])).unwrap();
    let dense = by_name(&model());
    for (name, format) in [("mxfp4", Format::MxFp4), ("nvfp4", Format::NvFp4)] {
        for block in [None, Some(16), Some(32), Some(64), Some(128)] {
            let out = format!("{name}-{block:?}");
            let number = block.unwrap_or(0).to_string();
            let (input, output) = (folder.arg("in"), folder.arg(&out));
            let mut args = vec!["quantize", &input, "-o", &output, "--format", name];
            if block.is_some() {
                args.extend(["--transform", "hadamard", "--transform-block", &number]);
            }
            ok(&args);
            let written = read(&folder.at(&out));
            for prefix in LINEAR {
                let options = options(format, block);
                let want = expected(&dense[&format!("{prefix}.weight")], &options);
                assert_same_layer(&layer(&folder.at(&out), prefix), &want);
                assert!(!written.contains_key(&format!("{prefix}.weight")));
                // Every tensor of the state, with its real type and shape.
                for (name, tensor) in want.state_dict(prefix).unwrap() {
                    let (_, dtype, shape, data) = &written[&name];
                    assert_eq!((*dtype, &shape[..]), (tensor.dtype(), tensor.shape()), "{name}");
                    assert_eq!(data, tensor.data(), "{name}");
                }
            }
            let others: Vec<_> = dense
                .keys()
                .filter(|n| !LINEAR.iter().any(|p| **n == format!("{p}.weight")))
                .collect();
            for name in &others {
                assert_eq!(written[*name], dense[*name], "{name}");
            }
            let states = LINEAR.len() * if block.is_some() { 6 } else { 5 };
            assert_eq!(written.len(), others.len() + states);

            let bytes = fs::read(folder.at(&out)).unwrap();
            let metadata =
                SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
            let transform = block.map_or("none".into(), |b| format!("hadamard{b}"));
            for (key, value) in [
                ("format", "pt"),
                ("note", "n"),
                ("exact_fp4.format", name),
                ("exact_fp4.scale_rule", "search"),
                ("exact_fp4.transform", &transform),
                ("exact_fp4.version", env!("CARGO_PKG_VERSION")),
            ] {
                assert_eq!(metadata.get(key).map(String::as_str), Some(value), "{key}");
            }
            assert_eq!(metadata.len(), 6);
        }
    }
}

#[test]
fn every_tensor_of_the_output_is_aligned_to_its_element() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "nvfp4"]);
    let bytes = fs::read(folder.at("out")).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header % 8, 0);
    for (name, info) in metadata.tensors() {
        assert_eq!(info.data_offsets.0 % info.dtype.bitsize().div_ceil(8), 0, "{name}");
    }
}

#[test]
fn a_sharded_folder_keeps_its_shards_and_everything_else() {
    let folder = Folder::new();
    sharded(&folder.at("in"));
    let before = snapshot(&folder.at("in"));
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "nvfp4"]);
    assert_eq!(snapshot(&folder.at("in")), before, "the input is untouched");
    let after = snapshot(&folder.at("out"));
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    let changed: Vec<_> = after.keys().filter(|name| after[*name] != before[*name]).collect();
    let index = "model.safetensors.index.json";
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    assert_eq!(changed, [shards[0], shards[1], index].map(Path::new));

    let dense = by_name(&model());
    let home = |prefix| folder.at("out").join(shards[usize::from(prefix == "d")]);
    for prefix in LINEAR {
        let want = expected(&dense[&format!("{prefix}.weight")], &options(Format::NvFp4, None));
        assert_same_layer(&layer(&home(prefix), prefix), &want);
    }
    let index: Value =
        serde_json::from_slice(&fs::read(folder.at("out").join(index)).unwrap()).unwrap();
    let (mut weight_map, mut total) = (BTreeMap::new(), 0);
    for shard in shards {
        for (name, tensor) in read(&folder.at("out").join(shard)) {
            total += tensor.3.len();
            weight_map.insert(name, shard.to_string());
        }
    }
    let metadata = json!({ "total_size": total, "kept": [1] });
    assert_eq!(index, json!({ "metadata": metadata, "weight_map": weight_map }));
    // What was written can be read again as a folder.
    let inspected = json(&["inspect", &folder.arg("out")]);
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 3);
}

#[test]
fn a_folder_with_one_file_needs_no_index() {
    for name in ["model.safetensors", "adapter.safetensors"] {
        let folder = Folder::new();
        fs::create_dir(folder.at("in")).unwrap();
        write(&folder.at("in").join(name), &model());
        fs::write(folder.at("in/config.json"), "{}").unwrap();
        ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"]);
        let mut names = [name, "config.json"].map(PathBuf::from);
        names.sort();
        assert_eq!(snapshot(&folder.at("out")).into_keys().collect::<Vec<_>>(), names);
        layer(&folder.at("out").join(name), "a");
    }
}

#[cfg(unix)]
#[test]
fn a_folder_of_links_becomes_a_folder_of_files() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    fs::create_dir_all(folder.at("blobs/dir")).unwrap();
    fs::create_dir(folder.at("in")).unwrap();
    write(&folder.at("blobs/1"), &model());
    fs::write(folder.at("blobs/2"), "text").unwrap();
    fs::write(folder.at("blobs/dir/3"), "more").unwrap();
    symlink("../blobs/1", folder.at("in/model.safetensors")).unwrap();
    symlink("../blobs/2", folder.at("in/config.json")).unwrap();
    symlink("../blobs/dir", folder.at("in/sub")).unwrap();
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"]);
    let out = snapshot(&folder.at("out"));
    assert_eq!(out[Path::new("config.json")].as_deref(), Some(&b"text"[..]));
    assert_eq!(out[Path::new("sub/3")].as_deref(), Some(&b"more"[..]));
    layer(&folder.at("out/model.safetensors"), "a");
    // A folder reached through a link is inside the input too.
    fails(
        &["quantize", &folder.arg("in"), "-o", &folder.arg("blobs/dir/out"), "--format", "mxfp4"],
        &["inside the input"],
    );
}

#[test]
fn the_memory_changes_nothing() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    for format in ["mxfp4", "nvfp4"] {
        for transform in ["none", "hadamard"] {
            let run = |out: &str, block: &str| {
                let mut json = json(&[
                    "quantize",
                    &folder.arg("in"),
                    "-o",
                    &folder.arg(out),
                    "--format",
                    format,
                    "--transform",
                    transform,
                    "--memory",
                    block,
                    "--force",
                ]);
                json.as_object_mut().unwrap().remove("output");
                (fs::read(folder.at(out)).unwrap(), json)
            };
            let whole = run("whole", "1GB");
            for block in ["1", "4800", "8kib", "16392"] {
                assert_eq!(run("parts", block), whole, "{format} {transform} {block}");
            }
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes_and_report_on_any_number_of_threads() {
    let folder = Folder::new();
    let metadata: Vec<_> = ["k1", "k2", "k3", "k4", "k5", "k6"].map(|k| (k, "v")).into();
    fs::write(folder.at("file"), serialized(&model(), &metadata)).unwrap();
    sharded(&folder.at("folder"));
    for input in ["file", "folder"] {
        let run = |out: &str, threads, memory| {
            let (input, output) = (folder.arg(input), folder.arg(out));
            let args = ["quantize", &input, "-o", &output, "--format", "nvfp4", "--force"];
            let mut report =
                json(&[&args[..], &["--threads", threads, "--memory", memory]].concat());
            report.as_object_mut().unwrap().remove("output");
            match folder.at(out).is_dir() {
                true => (snapshot(&folder.at(out)), report),
                false => ([("".into(), Some(fs::read(folder.at(out)).unwrap()))].into(), report),
            }
        };
        let first = run(&format!("{input}1"), "1", "1GB");
        for (threads, memory) in [("2", "1GB"), ("3", "5kB"), ("4", "64kB"), ("1", "1")] {
            assert!(run(&format!("{input}2"), threads, memory) == first, "{threads} {memory}");
        }
    }
}

#[test]
fn every_backend_gives_the_same_bytes_and_is_named() {
    let folder = Folder::new();
    fs::write(folder.at("in"), serialized(&model(), &[])).unwrap();
    let input = folder.arg("in");
    for format in ["mxfp4", "nvfp4"] {
        let usual = folder.arg(format);
        ok(&["quantize", &input, "-o", &usual, "--format", format]);
        // In every build there is the reference; by default there is a faster one.
        let names = if cfg!(feature = "cpu-simd") {
            vec!["cpu-simd", "reference"]
        } else {
            vec!["reference"]
        };
        for name in names {
            let output = folder.arg(&format!("{format}-{name}"));
            let args = ["quantize", &input, "-o", &output, "--format", format, "--backend", name];
            assert_eq!(json(&args)["quantizers"], serde_json::json!([name]));
            assert_eq!(fs::read(&output).unwrap(), fs::read(&usual).unwrap());
        }
    }
}

#[test]
fn given_scales_are_written() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    for (name, format) in [("mxfp4", Format::MxFp4), ("nvfp4", Format::NvFp4)] {
        ok(&[
            "quantize",
            &folder.arg("in"),
            "-o",
            &folder.arg(name),
            "--format",
            name,
            "--global-scale",
            "0.25",
            "--activation-scale",
            "0.0625",
        ]);
        let options = DenseOptions {
            weight_global_scale: Some(0.25),
            activation_global_scale: Some(0.0625),
            ..DenseOptions::new(format)
        };
        let want = expected(&by_name(&model())["a.weight"], &options);
        assert_same_layer(&layer(&folder.at(name), "a"), &want);
    }
}

#[test]
fn the_usual_scales_of_weights_are_the_rules_and_of_activations_the_contracts() {
    let folder = Folder::new();
    let mut values = numbers(1, 4 * 64);
    values[7] = -26.88;
    write(&folder.at("in"), &[f32s("a.weight", &[4, 64], &values)]);
    for (name, weight, activation, ss) in
        [("mxfp4", 1.0f32, 1.0f32 / 3.0, 4.0f32), ("nvfp4", 26.88f32 / 2688.0, 0.1, 6.0)]
    {
        ok(&["quantize", &folder.arg("in"), "-o", &folder.arg(name), "--format", name]);
        let layer = layer(&folder.at(name), "a");
        assert_eq!(layer.weight_global_scale(), weight);
        assert_eq!(layer.activation_global_scale(), activation);
        assert_eq!(layer.activation_scale_scale(), ss);
    }
}

#[test]
fn every_scale_rule_writes_what_the_library_makes() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    let dense = by_name(&model());
    for rule in ScaleRule::ALL {
        for format in Format::ALL.into_iter().filter(|f| rule.is_for(f.scale_type())) {
            let out = format!("{format}-{rule}");
            let args = ["quantize", &folder.arg("in"), "-o", &folder.arg(&out), "--format"];
            let args = [&args[..], &[format.name(), "--scale-rule", rule.name()]].concat();
            let json = json(&args);
            assert_eq!(json["scale_rule"], rule.name());
            let options = DenseOptions { scale_rule: rule, ..DenseOptions::new(format) };
            for prefix in LINEAR {
                let want = expected(&dense[&format!("{prefix}.weight")], &options);
                assert_same_layer(&layer(&folder.at(&out), prefix), &want);
            }
            let bytes = fs::read(folder.at(&out)).unwrap();
            let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone();
            assert_eq!(metadata.unwrap()["exact_fp4.scale_rule"], rule.name());
        }
    }
    // Two formats, one thread and the reference: the same bytes.
    for format in ["mxfp4", "nvfp4"] {
        for (out, more) in [("one", ["--threads", "1"]), ("plain", ["--backend", "reference"])] {
            let args = ["quantize", &folder.arg("in"), "-o", &folder.arg(out), "--format", format];
            ok(&[&args[..], &["--force"], &more].concat());
            let written = fs::read(folder.at(&format!("{format}-search"))).unwrap();
            assert!(fs::read(folder.at(out)).unwrap() == written, "{format} {out}");
        }
    }
}

#[test]
fn a_scale_rule_of_the_other_format_is_an_error_that_lists_those_there_are() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    for (format, rule, instead) in
        [("nvfp4", "floor", "four-six-mse"), ("mxfp4", "four-six-mae", "rceil")]
    {
        let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", format];
        let args = [&args[..], &["--scale-rule", rule]].concat();
        fails(&args, &["--scale-rule", format, rule, "choose", instead]);
        assert!(!folder.at("out").exists());
    }
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"];
    fails(&[&args[..], &["--scale-rule", "best"]].concat(), &["best", "search", "mlx"]);
}

#[test]
fn a_weight_that_was_quantized_once_is_written_again_without_a_loss() {
    let folder = Folder::new();
    let values = numbers(5, 64 * 128);
    write(&folder.at("in"), &[f32s("a.weight", &[64, 128], &values)]);
    for (format, rule) in [("mxfp4", "nearest"), ("mxfp4", "floor"), ("nvfp4", "four-six-mse")] {
        let at = |name: &str| folder.arg(&format!("{format}-{rule}-{name}"));
        ok(&["quantize", &folder.arg("in"), "-o", &at("q"), "-f", format, "--scale-rule", rule]);
        ok(&["dequantize", &at("q"), "-o", &at("dense"), "--dtype", "f32"]);
        // Whatever the tiles, the same global scale is found.
        for memory in ["1GB", "64KiB"] {
            let args = ["quantize", &at("dense"), "-o", &at("again"), "-f", format, "--force"];
            let json = json(&[&args[..], &["--memory", memory]].concat());
            assert_eq!(json["tensors"][0]["relative_error"], 0.0, "{format} {rule} {memory}");
        }
    }
}

#[test]
fn zeros_nans_and_infinities_are_legal_and_reported() {
    let folder = Folder::new();
    let at = |index: usize, value: f32| {
        let mut values = numbers(3, 4 * 64);
        values[index] = value;
        values
    };
    for (name, values, warned, nan_groups) in [
        ("zero", vec![0f32; 4 * 64], "all weights are zero", 0),
        ("nan", at(70, f32::NAN), "NaN", 1),
        ("inf", at(70, f32::NEG_INFINITY), "infinite", 0),
    ] {
        let tensor = f32s("a.weight", &[4, 64], &values);
        write(&folder.at("in"), std::slice::from_ref(&tensor));
        for (format_name, format) in [("mxfp4", Format::MxFp4), ("nvfp4", Format::NvFp4)] {
            let out = format!("{name}-{format_name}");
            let args =
                ["quantize", &folder.arg("in"), "-o", &folder.arg(&out), "--format", format_name];
            let json = json(&args);
            let weight_global_scale = (format == Format::NvFp4).then_some(1.0);
            let options = DenseOptions { weight_global_scale, ..DenseOptions::new(format) };
            assert_same_layer(&layer(&folder.at(&out), "a"), &expected(&tensor, &options));
            let row = &json["tensors"][0];
            assert_eq!(row["nan_groups"], nan_groups, "{out}");
            assert_eq!(row["not_finite_weights"], u64::from(name != "zero"), "{out}");
            assert!(row["relative_error"].is_number(), "the finite weights have an error");
            let warnings = json["warnings"].to_string();
            if name != "zero" || format == Format::NvFp4 {
                assert!(warnings.contains(warned), "{out}: {warnings}");
            }
            if name == "zero" {
                assert_eq!(row["zero_groups"], row["groups"]);
                assert_eq!(row["relative_error"], 0.0);
                assert_eq!(row["sqnr_db"], Value::Null);
            }
        }
    }
}

#[test]
fn tiny_weights_get_the_contracts_scale_or_an_error_as_from_the_library() {
    let folder = Folder::new();
    let smallest = f32::from_bits(1);
    // Largest magnitude / 2688 is 0 in f32; not 0, but 0 times the activations' 0.1; neither.
    for (amax, scale, gs) in [
        (1e-43f32, "0.1", None),
        (1e-43, "4", Some(smallest)),
        (5e-42, "0.1", None),
        (5e-42, "4", Some(5e-42f32 / 2688.0)),
        (1e-40, "1e-20", None),
        (1e-36, "0.1", Some(1e-36f32 / 2688.0)),
    ] {
        let mut values = vec![0f32; 4 * 64];
        values[9] = -amax;
        write(&folder.at("in"), &[f32s("a.weight", &[4, 64], &values)]);
        let options = DenseOptions {
            activation_global_scale: Some(scale.parse().unwrap()),
            ..DenseOptions::new(Format::NvFp4)
        };
        let library = QuantLinear::from_dense(&values[..], 4, 64, &options);
        let (input, output) = (folder.arg("in"), folder.arg("out"));
        let args =
            ["quantize", &input, "-o", &output, "--format", "nvfp4", "--activation-scale", scale];
        let args = [&args[..], &["--force"]].concat();
        let Some(gs) = gs else {
            assert!(library.is_err());
            fails(&args, &["quantizing `a.weight`", "--activation-scale", "is 0 in f32"]);
            continue;
        };
        let json = json(&args);
        let layer = layer(&folder.at("out"), "a");
        assert_eq!(layer.weight_global_scale().to_bits(), gs.to_bits(), "{amax} {scale}");
        assert_same_layer(&layer, &library.unwrap());
        assert_eq!(json["warnings"], json!([]));
        assert_eq!(json["tensors"][0]["weight_global_scale"], f64::from(gs));
        layer.forward(&[1f32; 64], &[1, 64]).unwrap();
    }
}

#[test]
fn the_help_tells_what_becomes_of_a_bias_and_what_include_does() {
    let help = ok(&["quantize", "--help"]);
    for needle in ["`X.bias`", "Bias::Apply", "wildcards", "full name"] {
        assert!(help.contains(needle), "no `{needle}` in {help}");
    }
}

#[test]
fn zero_rows_and_zero_columns_are_legal() {
    let folder = Folder::new();
    let empty = [
        f32s("rows.weight", &[0, 64], &[]),
        f32s("cols.weight", &[4, 0], &[]),
        f32s("wide.weight", &[0, 1 << 60], &[]),
        f32s("tall.weight", &[1 << 16, 0], &[]),
        f32s("taller.weight", &[1 << 60, 0], &[]),
    ];
    write(&folder.at("in"), &empty);
    for format in ["mxfp4", "nvfp4"] {
        for transform in ["none", "hadamard"] {
            let json = json(&[
                "quantize",
                &folder.arg("in"),
                "-o",
                &folder.arg("out"),
                "--format",
                format,
                "--transform",
                transform,
                "--force",
            ]);
            assert_eq!(json["totals"]["tensors"], 4);
            // A layer that the library would not load is not written.
            assert_eq!(json["skipped"][0]["name"], "taller.weight");
            for (prefix, rows, k) in
                [("rows", 0, 64), ("cols", 4, 0), ("wide", 0, 1 << 60), ("tall", 1 << 16, 0)]
            {
                let layer = layer(&folder.at("out"), prefix);
                assert_eq!((layer.out_features(), layer.in_features()), (rows, k));
            }
            assert_eq!(json["warnings"], json!([]));
            ok(&["inspect", &folder.arg("out")]);
            ok(&["compare", &folder.arg("in"), &folder.arg("out")]);
        }
    }
}

#[test]
fn a_bare_weight_has_the_empty_prefix() {
    let folder = Folder::new();
    let tensor = random("weight", Dtype::F32, &[4, 64], 1);
    write(&folder.at("in"), std::slice::from_ref(&tensor));
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"]);
    let want = expected(&tensor, &options(Format::MxFp4, None));
    assert_same_layer(&layer(&folder.at("out"), ""), &want);
}

#[test]
fn the_summary_is_right_and_worst_first() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "nvfp4"];
    let json = json(&args);
    assert_eq!(json["command"], "quantize");
    assert_eq!(json["error_domain"], "weight");
    let rows = json["tensors"].as_array().unwrap();
    let errors: Vec<_> = rows.iter().map(|r| r["relative_error"].as_f64().unwrap()).collect();
    assert!(errors.is_sorted_by(|a, b| a >= b) && errors[0] > errors[2], "{errors:?}");
    let dense = by_name(&model());
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let (_, dtype, shape, bytes) = &dense[name];
        let prefix = name.strip_suffix(".weight").unwrap();
        assert_eq!(row["prefix"], prefix);
        // The error by the textbook, from the written file.
        let layer = layer(&folder.at("out"), prefix);
        let weight = layer.weight().unwrap();
        let packed = weight.view();
        let values = FloatVec::from_le_bytes(state::float_type(*dtype).unwrap(), bytes).unwrap();
        let (mut error, mut norm) = (0f64, 0f64);
        for i in 0..shape[0] {
            for k in 0..shape[1] {
                let scale = fp4_core::E4m3::from_bits(packed.row_scales(i)[k / 16]).to_f32();
                let d = scale * layer.weight_global_scale();
                let back = f64::from(packed.code(i, k).unwrap().to_f32() * d);
                let w = f64::from(values.as_slice().get_f32(i * shape[1] + k).unwrap());
                error += (w - back).powi(2);
                norm += w.powi(2);
            }
        }
        let relative = (error / norm).sqrt();
        assert!((row["relative_error"].as_f64().unwrap() / relative - 1.0).abs() < 1e-9);
        assert!((row["sqnr_db"].as_f64().unwrap() + 20.0 * relative.log10()).abs() < 1e-9);
        assert_eq!(row["bytes_before"], bytes.len());
        assert_eq!(row["bytes_after"], shape[0] * shape[1] / 2 + shape[0] * shape[1] / 16 + 12);
    }
    assert_eq!(json["totals"]["file_bytes_before"], fs::metadata(folder.at("in")).unwrap().len());
    assert_eq!(json["totals"]["file_bytes_after"], fs::metadata(folder.at("out")).unwrap().len());
    let text = ok(&[&args[..], &["--force"]].concat());
    let place = |name: &str| text.find(name).unwrap();
    for pair in rows.windows(2) {
        let [a, b] = [0, 1].map(|i| place(pair[i]["name"].as_str().unwrap()));
        assert!(a < b, "{text}");
    }
    assert!(text.contains("total of 3"), "{text}");
    let text = ok(&[&args[..], &["--force", "--transform", "hadamard"]].concat());
    assert!(text.contains("w being the transformed weight"), "{text}");
}
