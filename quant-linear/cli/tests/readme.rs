//! The commands of the crate's README run as they stand.

mod common;

use common::*;
use safetensors::Dtype;

#[test]
fn every_command_of_the_readme_succeeds_in_its_order() {
    let folder = Folder::new();
    let model = [
        random("a.weight", Dtype::F32, &[24, 128], 1),
        random("b.weight", Dtype::BF16, &[8, 384], 2),
        random("norm.weight", Dtype::F32, &[128], 3),
    ];
    write(&folder.at("model.safetensors"), &model);
    // Those of the first block; the others stand for paths of the reader's own.
    let block = include_str!("../README.md").split("```").nth(1).unwrap();
    let commands: Vec<_> = block.lines().filter_map(|line| line.strip_prefix("fp4 ")).collect();
    assert_eq!(commands.len(), 5, "{commands:?}");
    for command in commands {
        let args: Vec<_> = command.split(' ').collect();
        fp4(&args).current_dir(folder.path()).assert().success();
    }
    assert!(folder.at("report.html").is_file());
    assert!(read(&folder.at("model-fp4.safetensors")).contains_key("a.e2m1"));
}
