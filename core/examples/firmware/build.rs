//! Puts the board's memory map where the linker looks for it.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=memory");
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    let (board, script) = match target.split('-').next() {
        Some(arm @ ("thumbv6m" | "thumbv7em")) => (arm, "link.x"),
        Some(riscv @ "riscv32imac") => (riscv, "link.x"),
        // The host, for clippy and the like.
        _ => return,
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::copy(format!("memory/{board}.x"), out.join("memory.x")).expect("memory.x can be written");
    println!("cargo::rustc-link-search={}", out.display());
    if board == "riscv32imac" {
        println!("cargo::rustc-link-arg-bins=-Tmemory.x");
    }
    println!("cargo::rustc-link-arg-bins=-T{script}");
    println!("cargo::rustc-link-arg-bins=--nmagic");
}
