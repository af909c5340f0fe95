//! Quantization by several ranks: the bytes of one process, and a run that goes on after a kill.

#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `mpirun -n RANKS fp4-mpi quantize ARGUMENTS`.
fn quantize(ranks: usize, input: &Path, output: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["-n", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"]);
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
    ] {
        command.env(name, value);
    }
    command.args([env!("CARGO_BIN_EXE_fp4-mpi"), "quantize"]).arg(input).arg("-o").arg(output);
    command.args(["--threads", "1"]).args(arguments);
    command
}

/// A folder of `shards` files, each with weights of `rows` x 512 of different sizes and a norm.
fn model(folder: &Path, shards: usize, rows: usize) -> u64 {
    fs::create_dir_all(folder).unwrap();
    let (mut map, mut total) = (serde_json::Map::new(), 0);
    for shard in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        let tensors = [
            ("mlp.up_proj.weight", vec![rows * (1 + shard % 3), 512]),
            ("mlp.down_proj.weight", vec![rows, 512]),
            ("norm.weight", vec![512]),
        ];
        for (name, shape) in tensors {
            let name = format!("model.layers.{shard}.{name}");
            let len: usize = shape.iter().product();
            let start = data.len();
            let value = |i: usize| ((i * 37 + shard * 11) as f32 * 0.173).sin() * 0.1;
            data.extend((0..len).flat_map(|i| value(i).to_le_bytes()));
            let offsets = [start, data.len()];
            let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
            header.insert(name.clone(), info);
            map.insert(name, file.clone().into());
        }
        total += data.len() as u64;
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(data);
        fs::write(folder.join(file), bytes).unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(folder.join("config.json"), r#"{"model_type": "test"}"#).unwrap();
    total
}

/// The files of a folder and their bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect()
}

fn succeed(mut command: Command) {
    let output = command.output().expect("mpirun is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn one_two_and_four_ranks_write_the_same_files() {
    let root = tempfile::tempdir().unwrap();
    let input = root.path().join("model");
    model(&input, 3, 96);
    // `fp4 quantize` itself is this with no team.
    let alone = root.path().join("alone");
    let args = ["fp4-mpi", input.to_str().unwrap(), "-o", alone.to_str().unwrap()];
    let args = args.into_iter().chain(["--format", "nvfp4", "--json"]);
    let args = <Alone as clap::Parser>::parse_from(args);
    fp4_cli::quantize::run_over(&args.quantize, None).unwrap();
    let expected = files(&alone);
    assert!(expected.len() == 5, "{:?}", expected.keys());
    let mut compared = 0;
    for ranks in [1, 2, 4] {
        let output = root.path().join(format!("of-{ranks}"));
        succeed(quantize(ranks, &input, &output, &["--format", "nvfp4", "--json"]));
        let got = files(&output);
        assert!(got.keys().eq(expected.keys()));
        for (name, bytes) in &got {
            assert!(bytes == &expected[name], "{} of {ranks} ranks differs", name.display());
            compared += bytes.len();
        }
    }
    println!("quantize: {compared} bytes of 1, 2 and 4 ranks compared, 0 differ");
}

/// One file with one tensor of so many rows of 1024 values, and a norm.
fn one_large(path: &Path, rows: usize) {
    let value = |i: usize| ((i * 37) as f32 * 0.0173).sin() * 0.1 + (i / 1024) as f32 * 1e-6;
    let data: Vec<u8> = (0..rows * 1024 + 1024).flat_map(|i| value(i).to_le_bytes()).collect();
    let cut = rows * 4096;
    let header = serde_json::json!({
        "lm_head.weight": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, cut]},
        "norm.weight": {"dtype": "F32", "shape": [1024], "data_offsets": [cut, data.len()]},
    });
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_large_tensor_is_cut_by_rows_and_the_files_are_those_of_one_process() {
    let root = tempfile::tempdir().unwrap();
    let input = root.path().join("model.safetensors");
    // 70 MB: three parts, of which no two have as many rows.
    one_large(&input, 17_003);
    // The global scale comes of all rows.
    let options = ["--format", "nvfp4", "--transform", "hadamard", "--include", "*head*", "--json"];
    let alone = root.path().join("alone.safetensors");
    let args = ["fp4-mpi", input.to_str().unwrap(), "-o", alone.to_str().unwrap()];
    let args = <Alone as clap::Parser>::parse_from(args.into_iter().chain(options));
    fp4_cli::quantize::run_over(&args.quantize, None).unwrap();
    let expected = fs::read(&alone).unwrap();
    for ranks in [2, 3] {
        let output = root.path().join(format!("of-{ranks}.safetensors"));
        let mut command = quantize(ranks, &input, &output, &options);
        let ended = command.env("RUST_LOG", "quant_linear=info").output().unwrap();
        let text = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{text}");
        assert!(fs::read(&output).unwrap() == expected, "the file of {ranks} ranks differs");
        // Three parts and the norm; every rank has one of the parts.
        for rank in 0..ranks {
            let line = format!("rank {rank} has ");
            let has = text.lines().find_map(|l| l.split_once(&line)).map(|(_, has)| has);
            let has = has.unwrap_or_else(|| panic!("{text}"));
            let bytes = has.split(", ").nth(1).and_then(|b| b.split(' ').next()?.parse().ok());
            assert!(has.contains(" of 4 pieces of work"), "{text}");
            assert!(bytes.is_some_and(|bytes: u64| bytes > 20 << 20), "{text}");
        }
    }
    println!("quantize: one tensor in 3 parts over 2 and 3 ranks, {} bytes equal", expected.len());
}

#[derive(clap::Parser)]
struct Alone {
    #[command(flatten)]
    quantize: fp4_cli::quantize::Args,
}

/// The processes that another one started.
fn children(of: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |id: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    numbers.filter(|id| parent(*id) == Some(of)).collect()
}

fn wait(mut child: Child) -> bool {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("the other ranks went on for a minute without one of them");
}

#[test]
fn a_run_with_a_rank_killed_ends_and_is_continued_by_any_number_of_ranks() {
    // Whole tensors; and tensors of 41 MB, each of two parts, of which some are done.
    killed_and_continued(8, 2048);
    killed_and_continued(1, 20_000);
}

fn killed_and_continued(shards: usize, rows: usize) {
    let root = tempfile::tempdir().unwrap();
    let (input, output) = (root.path().join("model"), root.path().join("out"));
    model(&input, shards, rows);
    let options = ["--format", "nvfp4", "--resume", "--json"];
    let mut command = quantize(3, &input, &output, &options);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let partial = root.path().join(".out.fp4-partial");
    let noted = || {
        let entries = fs::read_dir(&partial).into_iter().flatten().flatten();
        let journals = entries.filter(|e| e.file_name().to_string_lossy().starts_with("journal-"));
        journals.filter_map(|e| fs::read_to_string(e.path()).ok()).any(|s| s.lines().count() > 1)
    };
    let until = Instant::now() + Duration::from_secs(60);
    while !noted() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(noted(), "nothing was noted, or all was done before it could be stopped");
    let ranks = children(child.id());
    let victim = ranks.last().expect("mpirun's ranks").to_string();
    assert!(Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    assert!(!wait(child), "the run ended well without one of its ranks");
    assert!(!output.exists() && partial.exists());

    succeed(quantize(2, &input, &output, &options));
    assert!(!partial.exists());
    let whole = root.path().join("whole");
    succeed(quantize(1, &input, &whole, &["--format", "nvfp4", "--json"]));
    let (got, expected) = (files(&output), files(&whole));
    assert_eq!(expected.len(), shards + 2);
    assert!(got == expected, "the continued output differs");
    println!("quantize: killed, continued by 2 ranks, {} files equal", got.len());
}

#[test]
fn ranks_with_other_options_say_which_and_write_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (input, output) = (root.path().join("model"), root.path().join("out"));
    model(&input, 1, 64);
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none", "-n", "1"]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let one = |command: &mut Command, options: &[&str]| {
        command
            .args([env!("CARGO_BIN_EXE_fp4-mpi"), "quantize"])
            .arg(&input)
            .arg("-o")
            .arg(&output);
        command.args(["--json", "--format", "nvfp4"]).args(options);
    };
    // No header has it, and nothing is to be continued.
    one(&mut command, &["--global-scale", "0.001"]);
    command.args([":", "-n", "1"]);
    one(&mut command, &["--global-scale", "0.002"]);
    let ended = command.output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && !output.exists(), "{text}");
    assert!(text.contains("rank 1 does not do what rank 0 does"), "{text}");
    assert!(text.contains("--global-scale was"), "{text}");
}
