//! Runs that are interrupted, killed, or get in each other's way: nothing is left behind, nothing
//! is lost, and nothing is replaced that was not to be.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use quant_linear::atomic::Kind;
use safetensors::Dtype;

/// A folder with the input `file` and the input folder `folder`, of `rows` rows of 1024.
fn inputs(rows: usize) -> Folder {
    let folder = Folder::new();
    write(&folder.at("file"), &[random("a.weight", Dtype::F32, &[rows, 1024], 1)]);
    fs::create_dir_all(folder.at("folder/sub")).unwrap();
    fs::copy(folder.at("file"), folder.at("folder/model.safetensors")).unwrap();
    fs::write(folder.at("folder/config.json"), "{}").unwrap();
    for i in 0..20 {
        fs::write(folder.at(&format!("folder/sub/{i}")), "text").unwrap();
    }
    folder
}

/// Starts `fp4 quantize` on one thread; signals do to it what they do by default, or nothing.
fn start(folder: &Folder, input: &str, output: &str, signals: &str, more: &[&str]) -> Child {
    Command::new("env")
        .args([signals, env!("CARGO_BIN_EXE_fp4"), "quantize", &folder.arg(input)])
        .args(["-o", &folder.arg(output), "--threads", "1", "--format", "nvfp4"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

const DEFAULT: &str = "--default-signal=INT,TERM,HUP";

fn signal(name: &str, child: &Child) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Names of what is being built in a folder.
fn unfinished(folder: &Folder) -> Vec<String> {
    let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    names.filter(|name| name.starts_with(".fp4-")).collect()
}

/// Waits until something is being built that is not in `but`, or the run has ended.
fn wait_until_begun(folder: &Folder, child: &mut Child, but: &[String]) {
    // With something in it: before, its lock may not be taken yet, and a sweep may remove it.
    let begun = |name: &String| !but.contains(name) && folder.at(name).join("new").exists();
    while !unfinished(folder).iter().any(begun) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The contents of a file or folder, if it is there.
fn contents(path: &Path) -> Option<Vec<(std::path::PathBuf, Option<Vec<u8>>)>> {
    let there = fs::symlink_metadata(path).ok()?;
    Some(match there.is_dir() {
        true => snapshot(path).into_iter().collect(),
        false => vec![(path.to_path_buf(), Some(fs::read(path).unwrap()))],
    })
}

#[test]
fn a_signal_leaves_nothing_behind_and_gives_its_exit_code() {
    let mut interrupted = 0;
    for input in ["file", "folder"] {
        let folder = inputs(1024);
        let out = folder.at("out");
        let begun = Instant::now();
        assert!(start(&folder, input, "out", DEFAULT, &[]).wait().unwrap().success());
        let length = begun.elapsed();
        let whole = contents(&out);
        for (i, (name, number)) in
            [("INT", 2), ("TERM", 15), ("HUP", 1)].into_iter().cycle().take(15).enumerate()
        {
            match input {
                "file" => fs::remove_file(&out).unwrap_or_default(),
                _ => fs::remove_dir_all(&out).unwrap_or_default(),
            }
            let mut child = start(&folder, input, "out", DEFAULT, &[]);
            wait_until_begun(&folder, &mut child, &[]);
            std::thread::sleep(length * i as u32 / 20);
            signal(name, &child);
            let status = child.wait().unwrap();
            assert!(unfinished(&folder).is_empty(), "{input} {name}: {:?}", unfinished(&folder));
            let there = contents(&out);
            assert!(there.is_none() || there == whole, "{input} {name}: half an output");
            if status.code() == Some(0) {
                assert_eq!(there, whole, "{input} {name}");
            } else {
                assert_eq!(status.code(), Some(128 + number), "{input} {name}: {status}");
                interrupted += 1;
            }
        }
    }
    assert!(interrupted >= 12, "only {interrupted} of 30 runs were interrupted");
}

#[test]
fn a_signal_that_is_ignored_from_the_start_stays_ignored() {
    let folder = inputs(2048);
    let mut child = start(&folder, "file", "out", "--ignore-signal=HUP", &[]);
    wait_until_begun(&folder, &mut child, &[]);
    signal("HUP", &child);
    assert!(child.wait().unwrap().success());
    assert!(folder.at("out").exists() && unfinished(&folder).is_empty());
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_and_what_a_live_one_builds_is_not() {
    // Long enough for a machine that is busy with other things.
    let folder = inputs(16_384);
    for input in ["file", "folder"] {
        let mut live = start(&folder, input, "live", DEFAULT, &["--force"]);
        wait_until_begun(&folder, &mut live, &[]);
        signal("STOP", &live);
        let building = unfinished(&folder);
        assert_eq!(building.len(), 1, "the run was too short");
        let mut killed = start(&folder, input, "killed", DEFAULT, &["--force"]);
        wait_until_begun(&folder, &mut killed, &building);
        killed.kill().unwrap();
        assert_eq!(killed.wait().unwrap().signal(), Some(9));
        let left = unfinished(&folder);
        assert_eq!(left.len(), 2, "{input}: {building:?}, then {left:?}");

        assert!(start(&folder, input, "killed", DEFAULT, &["--force"]).wait().unwrap().success());
        assert_eq!(unfinished(&folder), building, "the dead one's goes, the live one's stays");
        signal("CONT", &live);
        assert!(live.wait().unwrap().success());
        assert_eq!(unfinished(&folder), [""; 0]);
        for output in ["live", "killed"] {
            let out = folder.at(output);
            assert!(contents(&out).is_some());
            match input {
                "file" => fs::remove_file(out).unwrap(),
                _ => fs::remove_dir_all(out).unwrap(),
            }
        }
    }
}

#[test]
fn a_folder_being_replaced_is_always_there_and_whole_whenever_the_run_is_killed() {
    let folder = inputs(64);
    let out = folder.at("out");
    let begun = Instant::now();
    let both = ["none", "hadamard"].map(|transform| {
        let more = ["--force", "--transform", transform];
        assert!(start(&folder, "folder", "out", DEFAULT, &more).wait().unwrap().success());
        contents(&out)
    });
    let length = begun.elapsed() / 2;
    assert!(both[0] != both[1]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                assert!(fs::symlink_metadata(&out).is_ok(), "no name after {looks} looks");
                looks += 1;
            }
            looks
        });
        let mut replaced = 0;
        for i in 0..40 {
            let before = contents(&out);
            let transform = if before == both[0] { "hadamard" } else { "none" };
            let more = ["--force", "--transform", transform];
            let mut child = start(&folder, "folder", "out", DEFAULT, &more);
            // Most of the moments around the end, where it is replaced.
            std::thread::sleep(length / 2 + length * i / 50);
            let _ = child.kill();
            child.wait().unwrap();
            let there = contents(&out);
            assert!(both.contains(&there), "neither the old nor the new one");
            replaced += usize::from(there != before);
        }
        done.store(true, Ordering::Relaxed);
        let looks = watcher.join().unwrap();
        println!("replaced {replaced} times of 40, looked at {looks} times");
        assert!(looks > 100);
    });
    let more = ["--force"];
    assert!(start(&folder, "folder", "out", DEFAULT, &more).wait().unwrap().success());
    assert_eq!(unfinished(&folder), [""; 0]);
    assert!(contents(&out) == both[0]);
}

#[test]
fn what_someone_else_has_made_meanwhile_is_not_overwritten() {
    for input in ["file", "folder"] {
        let folder = inputs(2048);
        let mut child = start(&folder, input, "out", DEFAULT, &[]);
        wait_until_begun(&folder, &mut child, &[]);
        signal("STOP", &child);
        assert_eq!(unfinished(&folder).len(), 1, "the run was too short");
        match input {
            "file" => fs::write(folder.at("out"), "other").unwrap(),
            _ => {
                fs::create_dir(folder.at("out")).unwrap();
                fs::write(folder.at("out/other"), "other").unwrap();
            }
        }
        let other = contents(&folder.at("out"));
        signal("CONT", &child);
        assert_eq!(child.wait().unwrap().code(), Some(2), "{input}");
        assert_eq!(contents(&folder.at("out")), other, "{input}");
        assert!(unfinished(&folder).is_empty());
    }
}

#[test]
fn what_is_no_plain_file_or_folder_is_never_replaced() {
    let folder = inputs(16);
    assert!(Command::new("mkfifo").arg(folder.at("pipe")).status().unwrap().success());
    let _socket = UnixListener::bind(folder.at("socket")).unwrap();
    fs::write(folder.at("plain"), "old").unwrap();
    fs::create_dir(folder.at("place")).unwrap();
    symlink("plain", folder.at("link")).unwrap();
    symlink("nothing", folder.at("dangling")).unwrap();
    symlink("place", folder.at("folderlink")).unwrap();
    let all = || {
        let names = ["pipe", "socket", "plain", "link", "dangling", "place", "folderlink"];
        let kinds = names.map(|name| fs::symlink_metadata(folder.at(name)).unwrap().file_type());
        (kinds, fs::read(folder.at("plain")).unwrap(), unfinished(&folder))
    };
    let before = all();
    for (input, output, found) in [
        ("file", "pipe", "a named pipe"),
        ("file", "socket", "a socket"),
        ("file", "link", "a symbolic link"),
        ("file", "dangling", "a symbolic link"),
        ("file", "place", "a folder"),
        ("folder", "plain", "a file"),
        ("folder", "pipe", "a named pipe"),
        ("folder", "folderlink", "a symbolic link"),
    ] {
        let (input, output) = (folder.arg(input), folder.arg(output));
        for more in [&[][..], &["--force"]] {
            let args = [&["quantize", &input, "-o", &output, "--format", "mxfp4"], more].concat();
            fails(&args, &[&output, &format!("is {found}, and"), "give another path"]);
            assert_eq!(all(), before);
        }
    }
    // Asked without a command that would destroy them if it were wrong.
    for (kind, path, found) in [
        (Kind::File, "/dev/null", "a device"),
        (Kind::Folder, "/dev/null", "a device"),
        (Kind::Folder, "/proc", "a mount point"),
    ] {
        let error = kind.replaceable(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(&format!("{path} is {found}, and")), "{error}");
    }
}

#[test]
fn what_replaces_something_keeps_its_permissions() {
    let folder = inputs(16);
    let set = |name: &str, mode| {
        fs::set_permissions(folder.at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |name: &str| fs::metadata(folder.at(name)).unwrap().permissions().mode() & 0o777;
    for (input, output) in [("file", "out"), ("folder", "outs")] {
        assert!(start(&folder, input, output, DEFAULT, &[]).wait().unwrap().success());
    }
    let plain = mode("outs/sub");
    set("out", 0o600);
    set("outs", 0o700);
    set("outs/model.safetensors", 0o600);
    for (input, output) in [("file", "out"), ("folder", "outs")] {
        assert!(start(&folder, input, output, DEFAULT, &["--force"]).wait().unwrap().success());
    }
    let modes = ["out", "outs", "outs/model.safetensors", "outs/sub"].map(mode);
    assert_eq!(modes, [0o600, 0o700, 0o600, plain]);
}

#[test]
fn a_place_that_takes_nothing_is_an_error() {
    let folder = inputs(16);
    for input in ["file", "folder"] {
        let args = ["quantize", &folder.arg(input), "-o", "/proc/out", "--format", "mxfp4"];
        fails(&args, &["writing /proc/out", "choose another place"]);
    }
}
