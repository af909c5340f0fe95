//! Files made to harm: names that steer a terminal, names that nothing bounds, and things in a
//! file's place that are none.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use safetensors::Dtype;
use serde_json::json;

/// Escape sequences, C1, NUL, a forged row, bidirectional controls, invisible characters.
const HOSTILE: &str = "x\u{1b}[2J\u{1b}]0;t\u{7}\u{9b}31m\0\r\n| forged |\t\u{7f}\u{202e}\u{2066}\
                       \u{200b}\u{ad}\u{feff}\u{e0041}\u{2028}y";

/// Of what the command says, nothing is hidden but its own newlines.
fn clean(what: &str, output: &std::process::Output) -> String {
    let mut all = String::new();
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let hidden = text.chars().find(|&c| c != '\n' && quant_linear::text::is_hidden(c));
        assert_eq!(hidden, None, "{what}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("| forged")), "{what}: {text}");
        all += &text;
    }
    assert!(!all.contains("panicked"), "{what}: {all}");
    all
}

/// Runs with and without `--json`, with all log lines, and expects nothing hidden.
fn runs_clean(args: &[&str], code: i32) {
    for more in [&[][..], &["--json"]] {
        let args = [args, more].concat();
        let output = fp4(&args).env("RUST_LOG", "trace").output().unwrap();
        let said = clean(&format!("{args:?}"), &output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        // Some place in it is hostile.
        assert!(said.contains("1b") || said.contains("202e"), "{args:?}: {said}");
    }
}

/// A quantized layer under a hostile prefix, its scalars as `change` leaves them.
fn hostile_layer(change: impl FnOnce(&mut Vec<Tensor>)) -> Vec<Tensor> {
    let prefix = format!("l{HOSTILE}");
    let scalar = |name: &str| f32s(&format!("{prefix}.{name}"), &[], &[0.5]);
    let mut tensors = vec![
        (format!("{prefix}.e2m1"), Dtype::U8, vec![4, 32], vec![0x21; 128]),
        (format!("{prefix}.scale_quant"), Dtype::F8_E8M0, vec![4, 2], vec![127; 8]),
        scalar("weight_global_scale"),
        scalar("activation_global_scale"),
        scalar("activation_scale_scale"),
    ];
    change(&mut tensors);
    tensors
}

#[test]
fn no_hidden_character_of_a_file_reaches_the_terminal() {
    let folder = Folder::new();
    let dense = vec![
        random(&format!("l{HOSTILE}.weight"), Dtype::F32, &[4, 64], 1),
        random(&format!("k{HOSTILE}.weight"), Dtype::F32, &[4, 48], 2),
        f32s(&format!("nan{HOSTILE}.weight"), &[1, 64], &[f32::NAN; 64]),
        random(&format!("a{HOSTILE}.bias"), Dtype::F32, &[32], 4),
    ];
    let metadata = [(HOSTILE, HOSTILE), ("b", HOSTILE)];
    fs::write(folder.at("dense"), serialized(&dense, &metadata)).unwrap();
    let other: Vec<_> = dense.iter().map(|(name, ..)| f32s(name, &[1], &[2.0])).collect();
    fs::write(folder.at("other"), serialized(&other[2..], &metadata)).unwrap();
    let at = |name: &str| folder.arg(name);
    for command in [
        vec!["inspect", &at("dense")],
        vec!["compare", &at("dense"), &at("other")],
        vec!["quantize", &at("dense"), "-o", &at("q"), "-f", "nvfp4", "--force"],
        vec!["inspect", &at("q")],
        vec!["compare", &at("dense"), &at("q")],
    ] {
        // Only the pair of different shapes cannot be compared.
        runs_clean(&command, if command.last() == Some(&&*at("other")) { 2 } else { 0 });
    }
    // Layers that are not whole, in every way that names something.
    let prefix = format!("l{HOSTILE}");
    let of = |name: &str, dtype, shape: &[usize], len| -> Tensor {
        (format!("{prefix}.{name}"), dtype, shape.to_vec(), vec![0; len])
    };
    type Change<'a> = Box<dyn Fn(&mut Vec<Tensor>) + 'a>;
    let broken: Vec<Change<'_>> = vec![
        Box::new(|t| drop(t.remove(0))),
        Box::new(|t| drop(t.remove(1))),
        Box::new(|t| drop(t.remove(2))),
        Box::new(|t| t[0] = of("e2m1", Dtype::F32, &[4, 8], 128)),
        Box::new(|t| t[1] = of("scale_quant", Dtype::U8, &[4, 2], 8)),
        Box::new(|t| t[1] = of("scale_quant", Dtype::F8_E8M0, &[2, 4], 8)),
        Box::new(|t| t[2] = of("weight_global_scale", Dtype::F32, &[2], 8)),
        Box::new(|t| t[2] = of("weight_global_scale", Dtype::I32, &[], 4)),
        Box::new(|t| t.push(of("transform", Dtype::F32, &[24, 24], 4 * 24 * 24))),
    ];
    for change in broken {
        write(&folder.at("bad"), &hostile_layer(|tensors| change(tensors)));
        runs_clean(&["inspect", &at("bad")], 2);
        runs_clean(&["compare", &at("bad"), &at("dense")], 2);
    }
    // The library's own errors.
    let options = quant_linear::LoadOptions::default();
    let mut biased = hostile_layer(|_| {});
    biased.push(f32s(&format!("{prefix}.bias"), &[4], &[1.0; 4]));
    write(&folder.at("biased"), &biased);
    for (path, prefix) in [("bad", &prefix[..]), ("biased", &prefix), ("biased", HOSTILE)] {
        let error = quant_linear::QuantLinear::load(&folder.at(path), prefix, &options);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("1b"), "{error}");
        assert!(!error.contains(quant_linear::text::is_hidden), "{error:?}");
    }
    // Headers that are wrong, arguments, globs, and places that cannot be.
    let twice = format!(r#"{{{0}:{{}},{0}:{{}}}}"#, json!(HOSTILE));
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#;
    for header in
        [twice, format!("{{{}:{entry}}}", json!(HOSTILE)), format!("{{{}", json!(HOSTILE))]
    {
        fs::write(folder.at("header"), raw(&header, &[0; 8])).unwrap();
        let output = fp4(&["inspect", &at("header")]).output().unwrap();
        clean(&header, &output);
        assert_eq!(output.status.code(), Some(2));
    }
    let raw_name = HOSTILE.replace('\0', "");
    let named = format!("l{raw_name}*");
    let quantize = ["quantize", &at("dense"), "-o", &at("out"), "-f", "mxfp4"].map(String::from);
    for more in [["--include", &named], ["--exclude", &raw_name], ["--backend", &raw_name]] {
        let args: Vec<_> = quantize.iter().map(String::as_str).chain(more).collect();
        clean("arguments", &fp4(&args).output().unwrap());
    }
    runs_clean(&["inspect", &raw_name], 2);
    runs_clean(&["inspect", &at("dense"), "--scale-type", &raw_name], 2);
    runs_clean(&["compare", &at(&raw_name), &at("dense")], 2);
}

#[cfg(unix)]
#[test]
fn no_hidden_character_of_a_folder_reaches_the_terminal() {
    let folder = Folder::new();
    let name = HOSTILE.replace(['\0', '|', '/'], "");
    let shard = format!("{name}.safetensors");
    fs::create_dir_all(folder.at("in").join(&name)).unwrap();
    let in_folder = folder.at("in");
    write(&in_folder.join(&shard), &[random("a.weight", Dtype::F32, &[4, 64], 1)]);
    write(&in_folder.join(format!("stray{shard}")), &[]);
    fs::write(in_folder.join(&name).join("file"), "x").unwrap();
    let index = |tensor: &str, shard: &str| {
        let index = json!({ "weight_map": { tensor: shard }, HOSTILE: [HOSTILE] }).to_string();
        fs::write(in_folder.join("model.safetensors.index.json"), index).unwrap();
    };
    let [input, output] = [folder.arg("in"), folder.arg("out")];
    let quantize = ["quantize", &input, "-o", &output, "-f", "mxfp4", "--force"];
    index("a.weight", &shard);
    runs_clean(&quantize, 0);
    runs_clean(&["inspect", &output], 0);
    for (tensor, shard) in
        [(HOSTILE, &shard[..]), ("a.weight", HOSTILE), ("a.weight", "../x\u{202e}"), (HOSTILE, "")]
    {
        index(tensor, shard);
        runs_clean(&["inspect", &input], 2);
        runs_clean(&quantize, 2);
    }
    index("a.weight", &shard);
    std::os::unix::fs::symlink(format!("nowhere{name}"), in_folder.join("link")).unwrap();
    fs::write(folder.at(&name), "x").unwrap();
    fs::remove_file(in_folder.join("link")).unwrap();
    std::os::unix::fs::symlink(folder.at(&name), in_folder.join("link")).unwrap();
    runs_clean(&quantize, 2);
}

/// What the command writes to stdout, which may be much.
fn stdout_len(args: &[&str]) -> usize {
    let output = fp4(args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", String::from_utf8_lossy(&output.stderr));
    output.stdout.len()
}

/// A file of empty U8 tensors with these names.
fn names(path: &Path, names: impl Iterator<Item = String>) -> usize {
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let header: Vec<_> = names.map(|name| format!("{}:{entry}", json!(name))).collect();
    let bytes = raw(&format!("{{{}}}", header.join(",")), &[]);
    fs::write(path, &bytes).unwrap();
    bytes.len()
}

#[test]
fn one_long_name_does_not_widen_every_row() {
    let folder = Folder::new();
    let long = ["n".repeat(70_000), format!("\u{202e}{}", "ж".repeat(70_000))];
    let many = (0..5000).map(|i| format!("t{i}"));
    let len = names(&folder.at("a"), many.clone().chain(long));
    names(&folder.at("b"), many.map(|name| name + "b").chain(["n".repeat(70_000)]));
    let [a, b] = [folder.arg("a"), folder.arg("b")];
    // Before, the first of these was 350 MB.
    for args in [&["inspect", &a][..], &["inspect", &a, "--json"], &["compare", &a, &b]] {
        let out = stdout_len(args);
        assert!(out < 4 * len, "{args:?}: {out} bytes of output for {len} bytes of input");
    }
    let text = ok(&["inspect", &a]);
    assert!(text.lines().all(|line| line.chars().count() < 150), "a line is too long");
    assert!(text.contains(&format!("| {}...{} |", "n".repeat(60), "n".repeat(37))));
}

#[test]
fn more_dimensions_than_any_tensor_has_are_an_error() {
    let folder = Folder::new();
    for (rank, code) in [(64, 0), (65, 2), (100_000, 2)] {
        let shape = vec!["1"; rank].join(",");
        let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}"#);
        fs::write(folder.at("in"), raw(&header, &[0])).unwrap();
        let (_, stderr) = common::code(&["inspect", &folder.arg("in")], code);
        assert_eq!(stderr.contains("more than 64 dimensions"), code == 2, "{rank}: {stderr}");
    }
}

#[test]
fn names_and_keys_that_are_there_twice_are_errors() {
    let folder = Folder::new();
    let tensor = r#""a.weight":{"dtype":"F32","shape":[1,32],"data_offsets":[0,128]}"#;
    for metadata in [
        r#""__metadata__":{"k":"1","k":"2"}"#,
        r#""__metadata__":{"k":"1"},"__metadata__":{"j":"1"}"#,
    ] {
        fs::write(folder.at("in"), raw(&format!("{{{metadata},{tensor}}}"), &[0; 128])).unwrap();
        for args in [
            vec!["inspect", &folder.arg("in")],
            vec!["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "-f", "mxfp4"],
        ] {
            fails(&args, &["is there twice"]);
        }
    }
    fs::create_dir(folder.at("sharded")).unwrap();
    write(&folder.at("sharded/1.safetensors"), &[random("a.weight", Dtype::F32, &[4, 64], 1)]);
    let map = r#""weight_map":{"a.weight":"1.safetensors"}"#;
    for index in [
        format!("{{{map},{map}}}"),
        r#"{"weight_map":{"a.weight":"2.safetensors","a.weight":"1.safetensors"}}"#.into(),
        format!(r#"{{"metadata":{{"total_size":1,"total_size":2}},{map}}}"#),
    ] {
        fs::write(folder.at("sharded/model.safetensors.index.json"), &index).unwrap();
        fails(&["inspect", &folder.arg("sharded")], &["is there twice", "index"]);
    }
}

#[test]
fn a_file_of_another_kind_is_named() {
    let folder = Folder::new();
    let cases: [(&[u8], &str); 13] = [
        (b"PK\x03\x04\x14\0\0\0\0\0", "PyTorch"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"\x80\x04\x95\0\0\0\0\0\0\0\0", "pickle"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "HDF5"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "NumPy"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
        (b"\x28\xb5\x2f\xfd\x24\x0c\x61\0\0", "zstd"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "ONNX"),
        (b"{\"metadata\": {}, \"weight_map\": {}}", "JSON"),
        (b"{}", "JSON"),
        (b"  [1, 2, 3, 4]", "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ];
    for (bytes, needle) in cases {
        // Short, and long enough that its first bytes may be the length of a header.
        for len in [bytes.len(), 1 << 20] {
            let mut file = bytes.to_vec();
            file.resize(len, 0xFF);
            fs::write(folder.at("in"), &file).unwrap();
            fails(&["inspect", &folder.arg("in")], &["no safetensors file but", needle]);
        }
    }
    // A header whose length has the first bytes of another kind is a header all the same.
    let header = format!("{{{}}}", " ".repeat(0x8b1f - 2));
    assert_eq!(raw(&header, &[])[..2], [0x1f, 0x8b]);
    fs::write(folder.at("in"), raw(&header, &[])).unwrap();
    ok(&["inspect", &folder.arg("in")]);
}

#[test]
fn too_many_threads_and_globs_that_nest_too_deep_are_errors() {
    let folder = Folder::new();
    write(&folder.at("in"), &[random("a.weight", Dtype::F32, &[4, 64], 1)]);
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let quantize = |more: [&str; 2], needles: &[&str]| {
        let args = [&["quantize", &input, "-o", &output, "-f", "mxfp4"][..], &more].concat();
        fails(&args, needles);
    };
    for threads in ["1025", "65535", "65536", "0"] {
        quantize(["--threads", threads], &["--threads", "1..=1024"]);
    }
    for levels in [124, 1000, 20_000] {
        let glob = format!("{}a{}", "{".repeat(levels), "}".repeat(levels));
        for option in ["--include", "--exclude"] {
            quantize([option, &glob], &["glob", "at most"]);
        }
    }
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    fn pipe(path: &Path) {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[test]
    fn what_is_no_plain_file_is_neither_waited_for_nor_read_without_end() {
        for place in ["model.safetensors.index.json", "model.safetensors", "config.json"] {
            let folder = Folder::new();
            let model = folder.at("in");
            fs::create_dir(&model).unwrap();
            write(&model.join("model.safetensors"), &[random("a.weight", Dtype::F32, &[4, 64], 1)]);
            let at = model.join(place);
            let (input, output) = (folder.arg("in"), folder.arg("out"));
            let check = || {
                let before = folder.snapshot();
                let quantize = ["quantize", &input, "-o", &output, "-f", "mxfp4"];
                fails(&quantize, &[place]);
                if place != "config.json" {
                    fails(&["inspect", &input], &[place]);
                    fails(&["compare", &input, &input, "--json"], &[place]);
                }
                assert!(folder.snapshot() == before, "{place}: something is left behind");
                fs::remove_file(&at).unwrap_or_else(|_| fs::remove_dir(&at).unwrap());
            };
            let _ = fs::remove_file(&at);
            pipe(&at);
            check();
            for device in ["/dev/zero", "/dev/stdin", "/dev/tty"] {
                symlink(device, &at).unwrap();
                check();
            }
            if place != "config.json" {
                fs::create_dir(&at).unwrap();
                check();
            }
        }
        for device in ["/dev/zero", "/dev/null"] {
            fails(&["inspect", device], &["not a plain file", "a device"]);
        }
    }

    #[test]
    fn an_index_that_is_too_long_is_not_read() {
        let folder = Folder::new();
        fs::create_dir(folder.at("in")).unwrap();
        let index = fs::File::create(folder.at("in/model.safetensors.index.json")).unwrap();
        index.set_len(1 << 40).unwrap();
        fails(&["inspect", &folder.arg("in")], &["1099511627776 bytes", "index.json"]);
    }

    #[test]
    fn links_that_lead_out_of_a_folder_are_refused_and_those_of_a_cache_followed() {
        let folder = Folder::new();
        let tensors = [random("a.weight", Dtype::F32, &[4, 64], 1)];
        fs::write(folder.at("secret"), "key").unwrap();
        write(&folder.at("other.safetensors"), &tensors);
        fs::create_dir(folder.at("private")).unwrap();
        fs::write(folder.at("private/file"), "key").unwrap();
        let (input, output) = (folder.arg("in"), folder.arg("out"));
        let quantize = ["quantize", &input, "-o", &output, "-f", "mxfp4"];
        for (name, to) in [
            ("notes.txt", "../secret"),
            ("sub", "../private"),
            ("model.safetensors", "../other.safetensors"),
            ("model.safetensors.index.json", "../secret"),
        ] {
            fs::create_dir(folder.at("in")).unwrap();
            if name != "model.safetensors" {
                write(&folder.at("in/model.safetensors"), &tensors);
            }
            symlink(to, folder.at("in").join(name)).unwrap();
            fails(&quantize, &[name, "is a link out of its folder"]);
            assert!(!folder.at("out").exists());
            fs::remove_dir_all(folder.at("in")).unwrap();
        }
        // A Hugging Face cache, and a link inside the folder.
        fs::create_dir_all(folder.at("models--x/blobs")).unwrap();
        fs::create_dir_all(folder.at("models--x/snapshots/1/sub")).unwrap();
        write(&folder.at("models--x/blobs/1"), &tensors);
        fs::write(folder.at("models--x/blobs/2"), "{}").unwrap();
        let snapshot = folder.at("models--x/snapshots/1");
        symlink("../../blobs/1", snapshot.join("model.safetensors")).unwrap();
        symlink("../../../blobs/2", snapshot.join("sub/config.json")).unwrap();
        symlink("sub/config.json", snapshot.join("config.json")).unwrap();
        let input = snapshot.to_str().unwrap();
        ok(&["quantize", input, "-o", &output, "-f", "mxfp4"]);
        for copied in ["out/config.json", "out/sub/config.json"] {
            assert!(fs::symlink_metadata(folder.at(copied)).unwrap().is_file());
            assert_eq!(fs::read_to_string(folder.at(copied)).unwrap(), "{}");
        }
    }

    #[test]
    fn more_shards_than_files_that_may_be_open() {
        let folder = Folder::new();
        fs::create_dir(folder.at("in")).unwrap();
        let mut map = serde_json::Map::new();
        for i in 0..300 {
            let (name, shard) = (format!("l{i}.weight"), format!("{i}.safetensors"));
            write(&folder.at("in").join(&shard), &[random(&name, Dtype::F32, &[1, 32], i)]);
            map.insert(name, shard.into());
        }
        let index = json!({ "weight_map": map }).to_string();
        fs::write(folder.at("in/model.safetensors.index.json"), index).unwrap();
        let (input, output) = (folder.arg("in"), folder.arg("out"));
        for args in [
            vec!["quantize", &input, "-o", &output, "-f", "mxfp4"],
            vec!["inspect", &output, "--json"],
            vec!["compare", &input, &output, "--json"],
        ] {
            let output = Command::new("bash")
                .args(["-c", r#"ulimit -n 40; exec "$@""#, "bash", env!("CARGO_BIN_EXE_fp4")])
                .args(&args)
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        }
    }
}
