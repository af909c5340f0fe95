//! Bad input to every command: a clear error, exit code 2, no panic, nothing half-written.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use safetensors::Dtype;
use serde_json::json;

/// Expects an error of `fp4 quantize` and that the folder is as it was.
fn refuses(folder: &Folder, args: &[&str], needles: &[&str]) {
    let before = folder.snapshot();
    fails(&[&["quantize"], args].concat(), needles);
    assert!(folder.snapshot() == before, "fp4 quantize {args:?} left something behind");
}

/// `quantize IN -o OUT --format mxfp4` in a folder, with more arguments.
fn refuses_in(folder: &Folder, input: &str, output: &str, more: &[&str], needles: &[&str]) {
    let (input, output) = (folder.arg(input), folder.arg(output));
    let args = [&[input.as_str(), "-o", &output, "--format", "mxfp4"], more].concat();
    refuses(folder, &args, needles);
}

fn good() -> Vec<Tensor> {
    vec![random("a.weight", Dtype::F32, &[4, 64], 1)]
}

/// A header of one F32 tensor with this shape and these offsets.
fn one(shape: &str, offsets: &str) -> String {
    format!(r#"{{"a.weight":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn hostile_files_are_errors_in_every_command() {
    let two = |first: &str, second: &str| {
        let tensor =
            |offsets: &str| format!(r#"{{"dtype":"F32","shape":[1,32],"data_offsets":{offsets}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, tensor(first), tensor(second))
    };
    let whole = serialized(&good(), &[]);
    let max = u64::MAX.to_string();
    let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
    let twice =
        format!(r#"{{{0},{0}}}"#, &one("[1,32]", "[0,128]")[1..one("[1,32]", "[0,128]").len() - 1]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "0 bytes"),
        ("seven bytes", vec![0; 7], "7 bytes"),
        ("a header of 2^64 - 1", [[0xFF; 8], [b'{'; 8]].concat(), "18446744073709551615"),
        ("a header past the end", [&100u64.to_le_bytes()[..], b"{}"].concat(), "100 bytes"),
        (
            "a header past 100 MB",
            {
                let mut bytes = 100_000_001u64.to_le_bytes().to_vec();
                bytes.resize(100_000_100, b' ');
                bytes
            },
            "100000001",
        ),
        ("not UTF-8", raw_bytes(&[0xFF, 0xFE]), "UTF-8"),
        ("not JSON", raw("hello", &[]), "not that of a safetensors file"),
        ("an array", raw("[]", &[]), "object"),
        ("nested deeply", raw(&deep, &[]), "not that of a safetensors file"),
        ("no header at all", raw("", &[]), "not that of a safetensors file"),
        ("no dtype", raw(r#"{"a":{"shape":[],"data_offsets":[0,4]}}"#, &[0; 4]), "dtype"),
        (
            "unknown dtype",
            raw(r#"{"a":{"dtype":"F99","shape":[],"data_offsets":[0,4]}}"#, &[0; 4]),
            "F99",
        ),
        ("negative shape", raw(&one("[-1]", "[0,4]"), &[0; 4]), "-1"),
        ("overlap", raw(&two("[0,128]", "[64,192]"), &[0; 192]), "offset"),
        ("gap", raw(&two("[0,128]", "[192,320]"), &[0; 320]), "offset"),
        ("the same bytes twice", raw(&two("[0,128]", "[0,128]"), &[0; 128]), "offset"),
        ("not from zero", raw(&one("[1,32]", "[8,136]"), &[0; 136]), "offset"),
        ("backwards", raw(&one("[1,32]", "[128,0]"), &[0; 128]), "offset"),
        ("out of range", raw(&one("[1,32]", "[0,128]"), &[0; 100]), "cut short"),
        ("offsets near 2^64", raw(&one("[1,32]", &format!("[0,{max}]")), &[0; 128]), "shape"),
        (
            "offsets past 2^64",
            raw(&one("[1,32]", &format!("[0,{max}0]")), &[0; 128]),
            "not that of",
        ),
        ("shape and offsets disagree", raw(&one("[1,33]", "[0,128]"), &[0; 128]), "shape"),
        ("shape overflow", raw(&one(&format!("[{max},{max}]"), "[0,128]"), &[0; 128]), "overflow"),
        ("bytes overflow", raw(&one(&format!("[1,{max}]"), "[0,128]"), &[0; 128]), "overflow"),
        ("a name twice", raw(&twice, &[0; 128]), "twice"),
        ("metadata of numbers", raw(r#"{"__metadata__":{"a":1}}"#, &[]), "not that of"),
        ("cut short", whole[..whole.len() - 1].to_vec(), "cut short"),
        ("cut in the header", whole[..30].to_vec(), "header"),
        ("bytes behind the end", [&whole[..], &[0]].concat(), "follow the last tensor"),
    ];
    let folder = Folder::new();
    write(&folder.at("good"), &good());
    for (what, bytes, needle) in &cases {
        println!("{what}");
        fs::write(folder.at("in"), bytes).unwrap();
        let path = folder.arg("in");
        refuses_in(&folder, "in", "out", &[], &["reading", &path, needle]);
        fails(&["inspect", &path], &[&path, needle]);
        fails(&["inspect", &path, "--json"], &[&path, needle]);
        fails(&["compare", &path, &folder.arg("good")], &[&path, needle]);
        fails(&["compare", &folder.arg("good"), &path, "--json"], &[&path, needle]);
    }
}

fn raw_bytes(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header].concat()
}

#[test]
fn missing_files_and_folders_without_a_model() {
    let folder = Folder::new();
    refuses_in(&folder, "none", "out", &[], &["none", "cannot be read", "give a"]);
    fails(&["inspect", &folder.arg("none")], &["none"]);
    fs::create_dir(folder.at("in")).unwrap();
    refuses_in(&folder, "in", "out", &[], &["holds no model.safetensors"]);
    write(&folder.at("in/a.safetensors"), &good());
    write(&folder.at("in/b.safetensors"), &good());
    refuses_in(
        &folder,
        "in",
        "out",
        &[],
        &["a.safetensors, b.safetensors", "give one of the files"],
    );
}

#[test]
fn an_index_that_disagrees_with_its_shards() {
    let folder = Folder::new();
    fs::create_dir(folder.at("in")).unwrap();
    write(&folder.at("in/1.safetensors"), &good());
    write(&folder.at("secret.safetensors"), &good());
    for (index, needles) in [
        (
            json!({ "weight_map": { "a.weight": "2.safetensors" } }).to_string(),
            ["2.safetensors", "names the shard"],
        ),
        (
            json!({ "weight_map": { "a.weight": "../secret.safetensors" } }).to_string(),
            ["without folders", "secret"],
        ),
        (
            json!({ "weight_map": { "a.weight": "1.safetensors", "b": "1.safetensors" } })
                .to_string(),
            ["`b`", "does not hold it"],
        ),
        (
            json!({ "weight_map": { "b": "1.safetensors" } }).to_string(),
            ["`a.weight`", "does not list"],
        ),
        (json!({ "weight_map": {} }).to_string(), ["weight_map", "empty"]),
        (json!({ "other": 1 }).to_string(), ["weight_map", "index"]),
        ("{".to_string(), ["index", "download"]),
    ] {
        fs::write(folder.at("in/model.safetensors.index.json"), index).unwrap();
        refuses_in(&folder, "in", "out", &[], &needles);
        fails(&["inspect", &folder.arg("in")], &needles);
    }
}

#[test]
fn what_include_names_must_be_quantizable() {
    let folder = Folder::new();
    write(
        &folder.at("in"),
        &[
            random("a.weight", Dtype::F32, &[4, 64], 1),
            random("k.weight", Dtype::F32, &[4, 48], 2),
            random("conv.weight", Dtype::F32, &[2, 2, 32], 3),
            random("a.bias", Dtype::F32, &[32], 4),
            ("double.weight".into(), Dtype::F64, vec![1, 32], vec![0; 256]),
        ],
    );
    for (glob, more, needles) in [
        ("k.weight", &[][..], ["`k.weight`", "K = 48 is not a multiple of the group of 32"]),
        (
            "a.weight",
            &["--transform", "hadamard", "--transform-block", "128"],
            ["`a.weight`", "block of 128"],
        ),
        ("conv.weight", &[], ["`conv.weight`", "two dimensions"]),
        ("a.bias", &[], ["`a.bias`", ".weight"]),
        ("double.weight", &[], ["`double.weight`", "F64"]),
        // Patterns choose among what can be quantized; only one that finds nothing is wrong.
        ("conv.*", &[], ["'conv.*'", "`conv.weight`: it has shape [2, 2, 32]"]),
        ("double*", &[], ["'double*'", "`double.weight`: it is F64"]),
        ("*bias", &[], ["'*bias'", "no tensor that can be quantized"]),
        ("nothing*", &[], ["nothing*", "matches no tensor"]),
        ("a[", &[], ["a[", "glob"]),
    ] {
        refuses_in(&folder, "in", "out", &[&["--include", glob], more].concat(), &needles);
    }
    // One good pattern does not excuse another.
    let two = ["--include", "a.*", "--include", "k*"];
    refuses_in(&folder, "in", "out", &two, &["'k*'", "K = 48"]);
    refuses_in(&folder, "in", "out", &["--exclude", "{"], &["glob"]);
    refuses_in(&folder, "in", "out", &["--exclude", "*"], &["nothing to quantize"]);
}

#[test]
fn scales_whose_product_is_no_scale_are_refused_before_writing() {
    let folder = Folder::new();
    write(&folder.at("in"), &good());
    for (format, weight, activation, needle) in [
        ("nvfp4", "1e-30", "1e-30", "is 0"),
        ("nvfp4", "1e30", "1e30", "is inf"),
        ("mxfp4", "1e-45", "0.25", "is 0"),
        ("mxfp4", "auto", "1e-45", "is 0"),
        ("nvfp4", "1e-45", "auto", "is 0"),
    ] {
        let (input, output) = (folder.arg("in"), folder.arg("out"));
        let mut args = vec!["quantize", &input, "-o", &output, "--format", format];
        args.extend(["--global-scale", weight]);
        if activation != "auto" {
            args.extend(["--activation-scale", activation]);
        }
        if (format, weight) == ("mxfp4", "auto") {
            args.extend(["--scale-rule", "nearest"]); // 1/3; of others it is 1
        }
        fails(&args, &["--global-scale", "--activation-scale", needle]);
        assert!(!folder.at("out").exists());
    }
    // An automatic scale is known later; nothing is left behind then either.
    write(&folder.at("in"), &[f32s("a.weight", &[1, 64], &[1e38; 64])]);
    let before = folder.snapshot();
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let args = ["quantize", &input, "-o", &output, "--format", "nvfp4"];
    fails(&[&args[..], &["--activation-scale", "1e10"]].concat(), &["`a.weight`", "is inf"]);
    assert!(folder.snapshot() == before, "something is left behind");
}

#[test]
fn files_without_linear_weights_and_files_quantized_already() {
    let folder = Folder::new();
    write(&folder.at("in"), &[]);
    refuses_in(&folder, "in", "out", &[], &["no linear weight", "--include"]);
    write(&folder.at("in"), &good());
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("q"), "--format", "mxfp4"]);
    refuses_in(&folder, "q", "out", &[], &["quantized already", "start from the dense"]);
    // A name of the new state that is taken, by any tensor.
    for name in ["e2m1", "scale_quant", "transform", "activation_scale_scale"] {
        write(&folder.at("in"), &[good().remove(0), f32s(&format!("a.{name}"), &[1], &[1.0])]);
        refuses_in(&folder, "in", "out", &[], &[&format!("`a.{name}`"), "quantized already"]);
    }
}

#[test]
fn an_output_that_is_the_input_or_overlaps_it() {
    let folder = Folder::new();
    write(&folder.at("file"), &good());
    for more in [&[][..], &["--force"]] {
        refuses_in(&folder, "file", "file", more, &["is the input"]);
        refuses_in(&folder, "file", "./file", more, &["is the input"]);
    }
    fs::create_dir_all(folder.at("outer/in/sub")).unwrap();
    write(&folder.at("outer/in/model.safetensors"), &good());
    for more in [&[][..], &["--force"]] {
        refuses_in(&folder, "outer/in", "outer/in", more, &["is the input"]);
        refuses_in(&folder, "outer/in", "outer/in/out", more, &["inside the input"]);
        refuses_in(&folder, "outer/in", "outer/in/sub/out", more, &["inside the input"]);
        refuses_in(&folder, "outer/in", "outer/in/sub", more, &["inside the input"]);
        refuses_in(&folder, "outer/in", "outer", more, &["inside the output"]);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("file", folder.at("link")).unwrap();
        fs::hard_link(folder.at("file"), folder.at("hard")).unwrap();
        symlink("outer/in", folder.at("inlink")).unwrap();
        symlink("outer/in/sub", folder.at("sublink")).unwrap();
        for more in [&[][..], &["--force"]] {
            refuses_in(&folder, "file", "link", more, &["is the input"]);
            refuses_in(&folder, "link", "file", more, &["is the input"]);
            refuses_in(&folder, "file", "hard", more, &["is the input"]);
            refuses_in(&folder, "outer/in", "inlink", more, &["is the input"]);
            refuses_in(&folder, "inlink", "outer/in/out", more, &["inside the input"]);
            refuses_in(&folder, "outer/in", "inlink/out", more, &["inside the input"]);
            refuses_in(&folder, "inlink", "outer", more, &["inside the output"]);
            refuses_in(&folder, "outer/in", "sublink", more, &["inside the input"]);
        }
    }
    // Places that cannot be.
    refuses_in(&folder, "file", "no/such/out", &[], &["create it first"]);
    refuses_in(&folder, "file", "..", &["--force"], &["names no file"]);
    refuses_in(&folder, "file", "outer", &["--force"], &["is a folder, and a file is to be"]);
    refuses_in(&folder, "outer/in", "file", &["--force"], &["is a file, and a folder is to be"]);
}

#[cfg(unix)]
#[test]
fn folders_that_cannot_be_copied() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    fs::create_dir_all(folder.at("in/sub")).unwrap();
    write(&folder.at("in/model.safetensors"), &good());
    symlink("..", folder.at("in/sub/up")).unwrap();
    refuses_in(&folder, "in", "out", &[], &["sub/up", "links back"]);
    fs::remove_file(folder.at("in/sub/up")).unwrap();
    symlink("nowhere", folder.at("in/broken")).unwrap();
    refuses_in(&folder, "in", "out", &[], &["broken", "remove it"]);
    fs::remove_file(folder.at("in/broken")).unwrap();
    // A named pipe as the input, or in it, must not be waited for.
    let pipe = |path: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    pipe(&folder.at("in/pipe"));
    refuses_in(&folder, "in", "out", &[], &["neither a file nor a folder"]);
    pipe(&folder.at("pipe"));
    refuses_in(&folder, "pipe", "out", &[], &["not a plain file"]);
}

#[test]
fn bad_arguments() {
    let folder = Folder::new();
    write(&folder.at("in"), &good());
    for (more, needle) in [
        (&["--global-scale", "0"][..], "above 0"),
        (&["--global-scale", "-1"], "above 0"),
        (&["--global-scale", "nan"], "above 0"),
        (&["--global-scale", "inf"], "above 0"),
        (&["--global-scale", "1e-60"], "above 0"),
        (&["--global-scale", "big"], "auto"),
        (&["--global-scale", "3"], "--global-scale"), // 3 * 2^127 is infinite
        (&["--activation-scale", "auto"], "above 0"),
        (&["--activation-scale", "3"], "--activation-scale"),
        (&["--transform", "hadamard", "--transform-block", "48"], "16, 32, 64 or 128"),
        (&["--transform-block", "32"], "without --transform"),
        (&["--transform", "fourier"], "hadamard"),
        (&["--threads", "0"], "threads"),
        (&["--backend", "no-such"], "--backend no-such is unknown; there are"),
        (&["--backend", ""], "reference"),
        (&["--no-such"], "--no-such"),
    ] {
        refuses_in(&folder, "in", "out", more, &[needle]);
    }
    refuses(&folder, &[&folder.arg("in"), "-o", &folder.arg("out")], &["--format"]);
    refuses(&folder, &[&folder.arg("in"), "--format", "mxfp4"], &["--output"]);
    fails(&["compare", &folder.arg("in")], &["<B>"]);
    fails(&["compare", &folder.arg("in"), &folder.arg("in"), "--tolerance", "-1"], &["tolerance"]);
    fails(&["nonsense"], &["nonsense"]);
}

/// A layer `a` of 4 x 64 in MXFP4, with the tensors that `change` leaves.
fn layer_file(folder: &Folder, change: &dyn Fn(&mut Vec<Tensor>)) {
    let scalar = |name: &str, value: f32| f32s(&format!("a.{name}"), &[], &[value]);
    let mut tensors = vec![
        ("a.e2m1".to_string(), Dtype::U8, vec![4, 32], vec![0x21; 128]),
        ("a.scale_quant".to_string(), Dtype::F8_E8M0, vec![4, 2], vec![127; 8]),
        scalar("weight_global_scale", 0.5),
        scalar("activation_global_scale", 0.5),
        scalar("activation_scale_scale", 4.0),
    ];
    change(&mut tensors);
    write(&folder.at("q"), &tensors);
}

#[test]
fn layers_that_are_not_whole() {
    type Change = Box<dyn Fn(&mut Vec<Tensor>)>;
    let drop_it = |i: usize| -> Change { Box::new(move |t| drop(t.remove(i))) };
    let set = |i: usize, dtype, shape: &[usize], bytes: usize| -> Change {
        let shape = shape.to_vec();
        Box::new(move |t| t[i] = (t[i].0.clone(), dtype, shape.clone(), vec![0; bytes]))
    };
    let scalar = |i: usize, value: f32| -> Change {
        Box::new(move |t| t[i] = f32s(&t[i].0.clone(), &[], &[value]))
    };
    let transform = |shape: &[usize]| -> Change {
        let shape = shape.to_vec();
        Box::new(move |t| {
            t.push(f32s("a.transform", &shape, &vec![0.5; shape.iter().product()]));
        })
    };
    let folder = Folder::new();
    write(&folder.at("dense"), &good());
    layer_file(&folder, &|_| {});
    ok(&["inspect", &folder.arg("q")]);
    let cases: Vec<(&str, Change, &[&str])> = vec![
        ("no codes", drop_it(0), &["`a.e2m1` is missing"]),
        ("no scales", drop_it(1), &["`a.scale_quant` is missing"]),
        ("no global scale", drop_it(2), &["`a.weight_global_scale` is missing"]),
        ("codes of F32", set(0, Dtype::F32, &[4, 8], 128), &["F32", "U8"]),
        ("scales of F32", set(1, Dtype::F32, &[4, 2], 32), &["F32", "F8_E8M0"]),
        ("scales of U8", set(1, Dtype::U8, &[4, 2], 8), &["--scale-type"]),
        ("rows differ", set(1, Dtype::F8_E8M0, &[2, 4], 8), &["[4, 32]", "[2, 4]"]),
        ("no group fits", set(1, Dtype::F8_E8M0, &[4, 3], 12), &["[4, 32]", "[4, 3]"]),
        ("no scales for codes", set(1, Dtype::F8_E8M0, &[4, 0], 0), &["[4, 0]"]),
        ("a group of 8", set(1, Dtype::F8_E8M0, &[4, 8], 32), &["16, 32, 64 or 128"]),
        ("a group of 64", set(1, Dtype::F8_E8M0, &[4, 1], 4), &["64"]),
        ("e4m3 in groups of 32", set(1, Dtype::F8_E4M3, &[4, 2], 8), &["e4m3", "32"]),
        ("codes of rank 3", set(0, Dtype::U8, &[4, 4, 8], 128), &["[4, 4, 8]"]),
        ("K not a multiple", set(0, Dtype::U8, &[4, 33], 132), &["[4, 33]"]),
        ("a zero scalar", scalar(2, 0.0), &["global scale"]),
        ("a NaN scalar", scalar(3, f32::NAN), &["global scale"]),
        ("a negative scale-scale", scalar(4, -4.0), &["scale-scale"]),
        ("a scalar of two", set(2, Dtype::F32, &[2], 8), &["weight_global_scale", "[2]"]),
        ("a scalar of many", set(2, Dtype::F32, &[99], 396), &["weight_global_scale", "[99]"]),
        ("an integer scalar", set(2, Dtype::I32, &[], 4), &["weight_global_scale", "I32"]),
        ("a transform of 24", transform(&[24, 24]), &["transform", "16, 32, 64 or 128"]),
        ("a transform of 128", transform(&[128, 128]), &["128", "64"]),
        ("3 blocks for 64 columns", transform(&[3, 16, 16]), &["3", "64"]),
        ("a transform not square", transform(&[16, 32]), &["transform"]),
    ];
    for (what, change, needles) in &cases {
        println!("{what}");
        layer_file(&folder, change);
        let needles: Vec<_> = [&["layer `a`"], *needles].concat();
        for args in [
            vec!["inspect", &folder.arg("q")],
            vec!["inspect", &folder.arg("q"), "--json"],
            vec!["compare", &folder.arg("dense"), &folder.arg("q")],
            vec!["compare", &folder.arg("q"), &folder.arg("dense"), "--json"],
        ] {
            // The report is printed all the same, and names the problem too.
            let (stdout, stderr) = code(&args, 2);
            for needle in &needles {
                assert!(stderr.contains(needle), "{args:?}: no `{needle}` in: {stderr}");
            }
            assert!(stdout.contains("layer `a`"), "{args:?}: {stdout}");
            if args.contains(&"--json") {
                serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
            }
        }
    }
    // With the type given, U8 scales are fine.
    layer_file(&folder, &set(1, Dtype::U8, &[4, 2], 8));
    let json = json(&["inspect", &folder.arg("q"), "--scale-type", "e8m0"]);
    assert_eq!(json["layers"][0]["format"], "mxfp4");
}
