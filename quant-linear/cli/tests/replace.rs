//! What `fp4 quantize` does with what lies at the output's place, and the permissions of what it
//! puts there.

mod common;

use std::fs;

use common::*;

#[test]
fn force_replaces_files_and_folders() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    fs::write(folder.at("out"), "old").unwrap();
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"];
    fails(&args, &["exists already", "--force"]);
    assert_eq!(fs::read(folder.at("out")).unwrap(), b"old");
    ok(&[&args[..], &["--force"]].concat());
    layer(&folder.at("out"), "a");
    assert_eq!(folder.snapshot().len(), 2, "nothing else is left");

    let folder = Folder::new();
    sharded(&folder.at("in"));
    fs::create_dir(folder.at("out")).unwrap();
    fs::write(folder.at("out/old"), "old").unwrap();
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"];
    fails(&args, &["exists already", "--force"]);
    ok(&[&args[..], &["--force"]].concat());
    assert!(!folder.at("out/old").exists() && folder.at("out/config.json").exists());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn an_empty_folder_is_a_place_for_a_folder_and_not_for_a_file() {
    let folder = Folder::new();
    sharded(&folder.at("in"));
    fs::create_dir(folder.at("out")).unwrap();
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"]);
    assert!(folder.at("out/config.json").exists());
    write(&folder.at("file"), &model());
    fs::create_dir(folder.at("empty")).unwrap();
    let args = ["quantize", &folder.arg("file"), "-o", &folder.arg("empty"), "--format", "mxfp4"];
    fails(&args, &["is a folder, and a file is to be"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing else is left");
}

#[cfg(unix)]
#[test]
fn the_output_has_the_permissions_of_a_plain_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    sharded(&folder.at("in"));
    let mode = |name: &str| fs::metadata(folder.at(name)).unwrap().permissions().mode();
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"]);
    assert_eq!(mode("out"), mode("in"));
    let shard = "model-00001-of-00002.safetensors";
    assert_eq!(mode(&format!("out/{shard}")), mode(&format!("in/{shard}")));
    let file = folder.arg(&format!("in/{shard}"));
    ok(&["quantize", &file, "-o", &folder.arg("file"), "--format", "mxfp4"]);
    assert_eq!(mode("file"), mode(&format!("in/{shard}")));
}
