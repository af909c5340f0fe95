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
    let commands: Vec<_> =
        include_str!("../README.md").lines().filter_map(|line| line.strip_prefix("fp4 ")).collect();
    let inputs: Vec<_> = model
        .iter()
        .filter(|tensor| tensor.2.len() == 2)
        .map(|(name, _, shape, _)| {
            let name = name.replace(".weight", ".input");
            random(&name, Dtype::F32, &[300, shape[1]], 17)
        })
        .collect();
    write(&folder.at("activations.safetensors"), &inputs);
    assert_eq!(commands.len(), 9, "{commands:?}");
    for command in commands {
        let (command, into) = command.split_once(" > ").unwrap_or((command, ""));
        let args: Vec<_> = command.split(' ').collect();
        let run = fp4(&args).current_dir(folder.path()).assert().success();
        if !into.is_empty() {
            std::fs::write(folder.at(into), &run.get_output().stdout).unwrap();
        }
    }
    assert!(folder.at("gained.html").is_file());
    assert!(folder.at("report.html").is_file());
    assert!(read(&folder.at("model-fp4.safetensors")).contains_key("a.e2m1"));
}
