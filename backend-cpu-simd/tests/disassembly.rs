//! The hot loops hold the intended instructions: a compiler may turn a `vpdpwssd` into two others,
//! and a loop that it does not unroll keeps its sums in memory.
//!
//! Disassembles this program with `objdump`; where there is none, it says so and checks nothing.
#![cfg(target_arch = "x86_64")]

use std::process::Command;

use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::{Format, Matmul, PackedMatrix, PackedShape};

/// Of the functions whose name has `name`: how many of `instruction` one has at most, and how many
/// vectors are on the stack of one that has at least `least` of them.
fn most(listing: &str, name: &str, instruction: &str, least: usize) -> (usize, usize) {
    let functions = listing.split("\n\n").filter(|f| {
        f.lines().next().is_some_and(|head| head.contains(name) && head.ends_with(">:"))
    });
    let count = |f: &str| {
        let lines = || f.lines().filter(|line| line.contains("zmm") || line.contains("ymm"));
        let found = lines().filter(|line| line.contains(instruction)).count();
        (found, lines().filter(|line| line.contains("(%rsp")).count())
    };
    functions.map(count).fold((0, 0), |most, (found, stacked)| {
        (most.0.max(found), if found >= least { most.1.max(stacked) } else { most.1 })
    })
}

#[test]
#[cfg_attr(debug_assertions, ignore = "of optimized code: cargo test --release")]
fn the_hot_loops_hold_the_intended_instructions() {
    // The kernels are linked in because they are used.
    let zeros = PackedMatrix::zeros(PackedShape::of(Format::NvFp4, 3, 64).unwrap());
    let backend = CpuSimd::new();
    let weight = backend.prepare(zeros.view()).unwrap();
    backend.matmul(zeros.view(), &weight, 1.0.into(), (&mut [0f32; 9][..]).into()).unwrap();

    let program = std::env::current_exe().unwrap();
    let output = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(program).output();
    let Ok(output) = output else {
        println!("not checked: there is no objdump");
        return;
    };
    let listing = String::from_utf8_lossy(&output.stdout);
    // AVX-512: two steps of 24 rows; a step of 14 rows and two panels; a chunk of 16 rows.
    // AVX-VNNI: a chunk of 8 rows; a step of 6 rows; two rows and one. AVX2: four rows and one.
    let expected = [
        ("avx5126matmul9fold_rows", "vpdpbusd", 48),
        ("avx5126matmul9pair_rows", "vpdpbusd", 28),
        ("avx5126matmul10group_rows", "vpdpbusd", 128),
        ("avx5126matmul10group_rows", "vpdpwssd", 16),
        ("avx_vnni6matmul9fold_half", "vpdpbusd", 64),
        ("avx_vnni6matmul10panel_rows", "vpdpbusd", 12),
        ("avx_vnni6matmul10group_rows", "vpdpbusd", 24),
        ("avx_vnni6matmul10group_rows", "vpdpwssd", 3),
        ("avx26matmul11group_steps", "vpmaddubsw", 16),
        ("avx26matmul11group_steps", "vpmaddwd", 4),
    ];
    for (function, instruction, expected) in expected {
        let (found, on_the_stack) = most(&listing, function, instruction, expected);
        println!("{function}: {found} {instruction}, {on_the_stack} vectors on the stack");
        assert!(found >= expected, "{function}: {found} {instruction}, expected {expected}");
        assert_eq!(on_the_stack, 0, "{function} spills");
    }
    println!("disassembly: {} counts of instructions checked", expected.len());
}
