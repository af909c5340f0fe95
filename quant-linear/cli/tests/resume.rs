//! `fp4 quantize --resume`: killed at any point, a run goes on and gives the bytes and the report
//! of one that was not; what differs is refused, and so is a second run with the same output.

#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use safetensors::Dtype;
use serde_json::Value;

const SHARDS: usize = 6;

/// The input folder `in` of six shards, and the input file `file`.
fn inputs() -> Folder {
    let folder = Folder::new();
    let root = folder.at("in");
    fs::create_dir_all(root.join("sub")).unwrap();
    let mut map = BTreeMap::new();
    for shard in 0..SHARDS {
        let name = format!("model-{shard}.safetensors");
        let tensors: Vec<_> = (0..3)
            .map(|i| {
                let seed = (3 * shard + i) as u64;
                random(&format!("l{shard}.{i}.weight"), Dtype::F32, &[160, 1024], seed)
            })
            .chain([random(&format!("l{shard}.bias"), Dtype::F32, &[1000], 99)])
            .collect();
        map.extend(tensors.iter().map(|t| (t.0.clone(), name.clone())));
        write(&root.join(&name), &tensors);
        if shard == 0 {
            let all: Vec<_> = (0..9)
                .map(|i| random(&format!("f{i}.weight"), Dtype::F32, &[192, 1024], 40 + i))
                .collect();
            write(&folder.at("file"), &all);
        }
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(root.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(root.join("config.json"), "{}").unwrap();
    fs::write(root.join("sub/vocab"), "words").unwrap();
    folder
}

const SIGNALS: &str = "--default-signal=INT,TERM,HUP";

/// Starts `fp4 quantize IN -o out` on a thread.
fn start(folder: &Folder, input: &str, more: &[&str]) -> Child {
    Command::new("env")
        .args([SIGNALS, env!("CARGO_BIN_EXE_fp4"), "quantize", &folder.arg(input)])
        .args(["-o", &folder.arg("out"), "--threads", "1", "--format", "nvfp4", "--json"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The exit code, stdout as JSON if there is any, and stderr.
fn end(child: Child) -> (Option<i32>, Value, String) {
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), stderr)
}

fn signal(name: &str, child: &Child) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

fn contents(path: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    match path.is_dir() {
        true => snapshot(path),
        false => [(PathBuf::new(), Some(fs::read(path).unwrap()))].into(),
    }
}

fn remove(path: &Path) {
    match path.is_dir() {
        true => fs::remove_dir_all(path).unwrap(),
        false => fs::remove_file(path).unwrap_or_default(),
    }
}

/// Lines of the journal of what is kept.
fn noted(folder: &Folder) -> usize {
    let journal = fs::read_to_string(folder.at(".out.fp4-partial/journal"));
    journal.map_or(0, |text| text.lines().count())
}

/// Waits until the journal has `lines` lines, or the run has ended.
fn wait_until_noted(folder: &Folder, child: &mut Child, lines: usize) {
    while noted(folder) < lines && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Names in the folder that are hidden.
fn hidden(folder: &Folder) -> Vec<String> {
    let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn killed_at_any_point_a_run_goes_on_to_the_same_bytes_and_report() {
    let folder = inputs();
    let out = folder.at("out");
    let (mut killed, mut with_work_done, mut in_place) = (0, 0, 0);
    for input in ["in", "file"] {
        let begun = Instant::now();
        let (code, report, stderr) = end(start(&folder, input, &[]));
        assert_eq!(code, Some(0), "{stderr}");
        let length = begun.elapsed();
        let whole = contents(&out);
        for point in 0..12 {
            remove(&out);
            let mut deaths = 0;
            // Each run is killed a bit later than the one before it.
            let (code, resumed, stderr) = loop {
                let mut child = start(&folder, input, &["--resume"]);
                let wait = length * (point + 12 * deaths) / 12;
                // Some as soon as a shard is done, however slow the machine is.
                match deaths == 0 && point % 2 == 1 && input == "in" {
                    true => wait_until_noted(&folder, &mut child, 2 + point as usize),
                    false => std::thread::sleep(wait),
                }
                deaths += 1;
                let alive = child.try_wait().unwrap().is_none();
                let _ = child.kill();
                let ended = end(child);
                if !alive || ended.0.is_some() {
                    break ended;
                }
                killed += 1;
                with_work_done += usize::from(noted(&folder) > 1);
                assert!(deaths < 20, "no run came to its end");
            };
            match out.exists() && stderr.contains("exists already") {
                // The last one was killed when the output was in its place.
                true => in_place += 1,
                false => {
                    assert_eq!(code, Some(0), "{input} {point}: {stderr}");
                    assert_eq!(resumed, report, "{input} {point}");
                }
            }
            assert!(contents(&out) == whole, "{input} {point}: other bytes");
            assert_eq!(hidden(&folder), [""; 0]);
        }
        remove(&out);
    }
    println!("killed {killed} times, {with_work_done} with work done, {in_place} when in place");
    assert!(
        killed >= 12 && with_work_done >= 4,
        "killed {killed}, {with_work_done} with work done"
    );
}

#[test]
fn what_is_done_is_not_done_again() {
    let folder = inputs();
    let mut child = start(&folder, "in", &["--resume"]);
    wait_until_noted(&folder, &mut child, 6);
    child.kill().unwrap();
    child.wait().unwrap();
    let lines = noted(&folder);
    assert!((6..=1 + 4 * SHARDS).contains(&lines), "killed too late or too early: {lines} lines");
    // Whoever wrote this byte again would write another.
    let shard = folder.at(".out.fp4-partial/new/model-0.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x55;
    fs::write(&shard, &bytes).unwrap();
    assert_eq!(end(start(&folder, "in", &["--resume"])).0, Some(0));
    assert!(fs::read(folder.at("out/model-0.safetensors")).unwrap() == bytes, "done again");
}

#[test]
fn other_settings_or_another_input_are_refused_and_what_is_kept_stays() {
    let folder = inputs();
    let expected = {
        assert_eq!(end(start(&folder, "in", &[])).0, Some(0));
        let expected = contents(&folder.at("out"));
        remove(&folder.at("out"));
        expected
    };
    let mut child = start(&folder, "in", &["--resume"]);
    wait_until_noted(&folder, &mut child, 6);
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = folder.snapshot();
    let refused = |input: &str, more: &[&str], said: &str| {
        let (code, _, stderr) = end(start(&folder, input, &[more, &["--resume"]].concat()));
        assert_eq!(code, Some(2), "{stderr}");
        for needle in [said, ".out.fp4-partial was begun with other input", "remove that folder"] {
            assert!(stderr.contains(needle), "no `{needle}` in: {stderr}");
        }
        assert!(folder.snapshot() == kept, "{said}: something has changed");
    };
    refused("in", &["--transform", "hadamard"], "--transform was `none` and is `hadamard 32` now");
    refused("in", &["--scale-rule", "nearest"], "--scale-rule was `search` and is `nearest` now");
    refused("in", &["--activation-scale", "0.5"], "--activation-scale was `default` and is `5e-1`");
    refused("in", &["--exclude", "l0.1.*"], "output model-0.safetensors was");
    // A file of the same bytes that was written later: nobody can tell without reading it.
    let shard = folder.at("in/model-3.safetensors");
    let modified = fs::metadata(&shard).unwrap().modified().unwrap();
    let touch = |time| fs::File::options().write(true).open(&shard).unwrap().set_modified(time);
    touch(modified + Duration::from_secs(1)).unwrap();
    refused("in", &[], "input model-3.safetensors was");
    touch(modified).unwrap();
    // Neither the threads nor the memory decide any byte.
    let (code, _, stderr) = end(start(&folder, "in", &["--resume", "--memory", "100kB"]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(contents(&folder.at("out")) == expected);
}

#[test]
fn of_two_runs_with_one_output_the_second_is_refused_at_once() {
    let folder = inputs();
    for (first, second) in [
        (&[][..], &[][..]),
        (&["--resume"], &["--resume"]),
        (&["--resume"], &[]),
        (&[], &["--resume"]),
    ] {
        let mut child = start(&folder, "in", first);
        while hidden(&folder)
            .iter()
            .all(|name| !folder.at(name).join("new/model-0.safetensors").exists())
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_micros(200));
        }
        signal("STOP", &child);
        assert_eq!(hidden(&folder).len(), 1, "the run was too short");
        let (code, _, stderr) = end(start(&folder, "in", second));
        assert_eq!(code, Some(2), "{first:?} {second:?}: {stderr}");
        let said = format!("another run is writing {}; wait", folder.arg("out"));
        assert!(stderr.contains(&said), "{first:?} {second:?}: {stderr}");
        assert!(!folder.at("out").exists());
        signal("CONT", &child);
        assert_eq!(end(child).0, Some(0), "{first:?} {second:?}");
        assert_eq!(hidden(&folder), [""; 0]);
        remove(&folder.at("out"));
    }
}

#[test]
fn an_interrupted_run_is_kept_and_another_output_beside_it_leaves_it_alone() {
    let folder = inputs();
    let mut child = start(&folder, "in", &["--resume"]);
    wait_until_noted(&folder, &mut child, 6);
    signal("INT", &child);
    assert_eq!(end(child).0, Some(130));
    let kept = snapshot(&folder.at(".out.fp4-partial"));
    ok(&["quantize", &folder.arg("file"), "-o", &folder.arg("other"), "--format", "mxfp4"]);
    assert!(snapshot(&folder.at(".out.fp4-partial")) == kept);
    // So does the same output without the option, and says so.
    let (code, report, _) = end(start(&folder, "in", &[]));
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(code == Some(0) && warning.contains("go on with it by --resume"), "{warning}");
    assert!(snapshot(&folder.at(".out.fp4-partial")) == kept);
    remove(&folder.at("out"));
    assert_eq!(end(start(&folder, "in", &["--resume"])).0, Some(0));
    assert_eq!(hidden(&folder), [""; 0]);
}

#[test]
fn a_run_killed_while_it_was_put_in_its_place_is_begun_anew() {
    let folder = inputs();
    assert_eq!(end(start(&folder, "in", &[])).0, Some(0));
    let whole = contents(&folder.at("out"));
    // As such a run leaves it: `new` is what was replaced, or was about to be put in its place.
    let partial = folder.at(".out.fp4-partial");
    fs::create_dir_all(partial.join("new")).unwrap();
    fs::write(partial.join("new/old"), "what was there before").unwrap();
    fs::write(partial.join("sealed"), "[]\n").unwrap();
    let left = snapshot(&partial);
    assert_eq!(end(start(&folder, "in", &["--resume", "--force"])).0, Some(0));
    assert!(contents(&folder.at("out")) == whole);
    assert_eq!(hidden(&folder), [""; 0]);
    // Nobody can go on with it: it goes when anything is written beside it.
    for (path, bytes) in left {
        match bytes {
            Some(bytes) => fs::write(partial.join(path), bytes).unwrap(),
            None => fs::create_dir_all(partial.join(path)).unwrap(),
        }
    }
    ok(&["quantize", &folder.arg("file"), "-o", &folder.arg("other"), "--format", "mxfp4"]);
    assert_eq!(hidden(&folder), [""; 0]);
}

#[test]
fn what_someone_else_put_where_it_is_kept_is_left_alone() {
    let folder = inputs();
    let partial = folder.at(".out.fp4-partial");
    let refused = |said: &str| {
        let before = folder.snapshot();
        let (code, _, stderr) = end(start(&folder, "in", &["--resume"]));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(".out.fp4-partial") && stderr.contains(said), "{stderr}");
        assert!(folder.snapshot() == before);
    };
    fs::write(&partial, "a file").unwrap();
    refused("it is no folder; rename or remove it");
    fs::remove_file(&partial).unwrap();
    fs::create_dir(folder.at("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &partial).unwrap();
    refused("it is no folder; rename or remove it");
    fs::remove_file(&partial).unwrap();
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("mine"), "precious").unwrap();
    refused("it holds what fp4 did not put there");
}

#[test]
fn a_full_disk_keeps_what_is_done() {
    let folder = inputs();
    assert_eq!(end(start(&folder, "in", &[])).0, Some(0));
    let whole = contents(&folder.at("out"));
    remove(&folder.at("out"));
    // A last shard that is larger than all others, and than a file may be.
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "nvfp4"];
    let args = [&args[..], &["--resume", "--threads", "1"]].concat();
    fs::write(folder.at("in/zz.bin"), vec![7; 1 << 20]).unwrap();
    let output = Command::new("bash")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 900; exec "$@""#, "bash"])
        .arg(env!("CARGO_BIN_EXE_fp4"))
        .args(&args)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("what is done is kept, and the same command goes on"), "{stderr}");
    assert_eq!(noted(&folder), 1 + 4 * SHARDS);
    ok(&args);
    let mut there = contents(&folder.at("out"));
    there.remove(Path::new("zz.bin")).unwrap();
    assert!(there == whole);
    assert_eq!(hidden(&folder), [""; 0]);
}

#[test]
fn a_shard_that_changes_while_it_is_read_is_an_error() {
    let folder = inputs();
    for more in [&[][..], &["--resume"]] {
        let mut child = start(&folder, "in", more);
        while hidden(&folder)
            .iter()
            .all(|name| !folder.at(name).join("new/model-1.safetensors").exists())
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_micros(200));
        }
        signal("STOP", &child);
        // One that has been read already, and is not looked at again until the end.
        let shard = folder.at("in/model-0.safetensors");
        let bytes = fs::read(&shard).unwrap();
        fs::write(&shard, bytes).unwrap();
        signal("CONT", &child);
        let (code, _, stderr) = end(child);
        assert_eq!(code, Some(2), "{more:?}: {stderr}");
        assert!(stderr.contains("model-0.safetensors: it is not the file whose"), "{stderr}");
        assert!(!folder.at("out").exists());
    }
}
