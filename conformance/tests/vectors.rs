//! The committed vectors pass; and the checker fails as it should on broken files, with the right
//! coordinate.

mod support;

use std::fs;
use std::process::Command;

use fp4_conformance::report::{Bits, Counts};
use fp4_conformance::vectors::{Error, Family, VectorFile, check_dir, check_file, write_subset};
use safetensors::Dtype;
use support::{Scratch, reference, vectors};

#[test]
fn the_committed_vectors_pass_and_every_family_compares_what_it_should() {
    let report = check_dir(vectors(), &reference()).unwrap();
    println!("{report}");
    assert_eq!(report.counts().differ, 0, "{report}");
    assert!(report.not_checked.is_empty() && report.files.iter().all(|f| f.skipped.is_empty()));
    // Exact, so that a check that stops comparing something is noticed.
    for (family, cases, values) in [
        (Family::Scalar, 37, 279_534),
        (Family::Quantize, 412, 1_163_852),
        (Family::Transform, 104, 63_344),
        (Family::Swizzle, 184, 835_608),
        (Family::Matmul, 336, 404_045),
        (Family::MxInt8, 276, 208_512),
        (Family::Epilogue, 756, 654_264),
        (Family::Rows, 12, 10_512),
    ] {
        let expected = Counts { cases, values, differ: 0 };
        assert_eq!(report.family(family), expected, "family {}", family.letter());
    }
    for file in &report.files {
        assert!(file.counts.cases > 0 && file.counts.values > 0, "{}", file.name);
    }
}

#[test]
fn the_committed_files_stay_small() {
    let mut total = 0;
    for entry in fs::read_dir(vectors()).unwrap() {
        let entry = entry.unwrap();
        let len = entry.metadata().unwrap().len();
        assert!(len <= 1 << 20, "{:?} has {len} bytes", entry.file_name());
        total += len;
    }
    assert!(total <= 7_000_000, "{total} bytes in all");
}

/// One flipped bit: where it is, and in which case it must show up.
struct Flip {
    file: &'static str,
    tensor: &'static str,
    at: &'static [usize],
    bit: u32,
    clause: &'static str,
    case: &'static str,
}

#[test]
#[expect(clippy::too_many_lines, reason = "a line for each tensor of each family")]
fn one_flipped_bit_is_reported_at_its_coordinate_in_every_family() {
    let flip = |file, tensor, at, bit, clause, case| Flip { file, tensor, at, bit, clause, case };
    let b = "b_rtn_nvfp4_gs_0p1_ss6";
    let e = "e_matmul_mxfp4_crafted";
    for flip in [
        flip("a_decode_tables", "e2m1.code", &[9], 0, "C1", "e2m1 codes in order"),
        flip(
            "a_decode_tables",
            "e4m3.f32bits.torch29",
            &[77],
            20,
            "C2",
            "decode e4m3.f32bits.torch29",
        ),
        flip("a_f32_to_e2m1", "out.ml_dtypes", &[20_001], 1, "C1", "E2m1::from_f32"),
        flip("a_f32_to_e4m3", "out.ml_dtypes_clamped", &[33_175], 7, "C2", "E4m3::from_f32"),
        flip("a_f32_to_e8m0", "out.torch27", &[100], 0, "C2", "E8m0::from_f32, out.torch27"),
        flip(b, "f32.gauss.scales", &[11, 31], 0, "C4.2", "f32.gauss quantize ties even"),
        flip(b, "bf16.tie.codes_even", &[3, 17], 4, "C4.3", "bf16.tie quantize ties even"),
        flip(b, "f32.tie.codes_zero", &[0, 0], 7, "C4.3", "f32.tie quantize ties zero"),
        flip(b, "f16.edge.codes_down", &[11, 127], 0, "C4.3", "f16.edge quantize ties down"),
        flip(b, "bf16.heavy.codes_up", &[5, 255], 3, "C4.3", "bf16.heavy quantize ties up"),
        flip(b, "f32.heavy.d", &[7, 2], 31, "C4.3", "f32.heavy units"),
        flip(b, "f16.gauss.dq", &[8, 511], 0, "C4.4", "f16.gauss dequantize"),
        flip("b_rtn_nvfp4_gs_amax_ss6", "f32.tie.gs", &[0], 0, "C4", "f32.tie global scale"),
        flip(
            "c_transform",
            "B32.f32.random.perblock.y_f32",
            &[5, 95],
            0,
            "C5",
            "B32.f32.random.perblock transform",
        ),
        flip(
            "c_transform",
            "B16.bf16.orthogonal.shared.codes_even",
            &[7, 39],
            2,
            "C4.3",
            "B16.bf16.orthogonal.shared quantize",
        ),
        flip(
            "c_transform",
            "B16.f16.random.shared.dq",
            &[0, 1],
            5,
            "C4.4",
            "B16.f16.random.shared dequantize",
        ),
        flip("d_swizzle", "r51_c65.in", &[50, 64], 0, "C7", "r51_c65 unswizzle"),
        flip("d_swizzle", "r385_c6.out", &[0], 7, "C7", "r385_c6 swizzle"),
        flip(e, "crafted.S32_bits", &[33, 8], 0, "C6", "crafted exact sums"),
        flip(e, "crafted.y32_bits", &[5, 0, 3], 31, "C6", "crafted matmul to f32"),
        flip(e, "crafted.y_bf16_bits", &[1, 20, 4], 0, "C6", "crafted matmul to bf16"),
        flip(
            "e_matmul_nvfp4_crafted",
            "crafted.y_f16_bits",
            &[6, 20, 5],
            9,
            "C6",
            "crafted matmul to f16",
        ),
        flip(
            "j_epilogue_mxfp4",
            "full_3x5x32-both.y_bf16_bits",
            &[5, 2, 4],
            0,
            "C6",
            "full_3x5x32-both matmul to bf16",
        ),
        flip(
            "j_epilogue_nvfp4",
            "nan_17x9x256-rows.y_f16_bits",
            &[1, 4, 0],
            3,
            "C6",
            "nan_17x9x256-rows matmul to f16",
        ),
        flip("i_mxint8_quantize", "f32_edge.scales", &[11, 3], 0, "C10", "f32_edge quantize"),
        flip("i_mxint8_quantize", "bf16_tie.codes", &[0, 31], 7, "C10", "bf16_tie quantize"),
        flip("i_mxint8_quantize", "f16_heavy.dq_bits", &[3, 1], 31, "C10", "f16_heavy dequantize"),
        flip(
            "i_mxint8_matmul_mxfp4_subset",
            "narrow_17x9x256.S32_bits",
            &[16, 8],
            0,
            "C6",
            "narrow_17x9x256 exact sums",
        ),
        flip(
            "i_mxint8_matmul_nvfp4_subset",
            "narrow_3x5x32.y_f16_bits",
            &[5, 2, 4],
            9,
            "C6",
            "narrow_3x5x32 matmul to f16",
        ),
        flip("k_rows_nvfp4", "f32_edge.row_scales", &[3], 0, "C4", "f32_edge quantize"),
        flip("k_rows_nvfp4", "bf16_gauss.codes", &[11, 63], 4, "C4.3", "bf16_gauss quantize"),
    ] {
        check_flip(&flip);
    }
}

fn check_flip(flip: &Flip) {
    let what = format!("{} {} {:?}", flip.file, flip.tensor, flip.at);
    let mut bits = None;
    let scratch = Scratch::edited(flip.file, |file| {
        let tensor = file.tensor(flip.tensor);
        assert_eq!(tensor.shape.len(), flip.at.len(), "{what}");
        assert!(tensor.shape.iter().zip(flip.at).all(|(dim, at)| at < dim), "{what}");
        let index = tensor.shape.iter().zip(flip.at).fold(0, |index, (dim, at)| index * dim + at);
        let size = tensor.dtype.bitsize() / 8;
        let value = &mut tensor.bytes[index * size..(index + 1) * size];
        let pattern =
            |value: &[u8]| value.iter().rev().fold(0, |p, &byte| p << 8 | u64::from(byte));
        let right = pattern(value);
        value[flip.bit as usize / 8] ^= 1 << (flip.bit % 8);
        bits = Some((right, pattern(value), 8 * size as u32));
    });
    let (right, wrong, width) = bits.unwrap();
    let report = check_dir(scratch.dir(), &reference()).unwrap();
    assert!(report.counts().differ > 0, "{what}");
    let found = report
        .differences()
        .find(|d| d.case == flip.case && d.tensor == flip.tensor)
        .unwrap_or_else(|| panic!("{what} not found in\n{report}"));
    assert_eq!(found.coordinate, flip.at, "{found}");
    assert_eq!(found.got, Bits { pattern: right, width }, "{found}");
    assert_eq!(found.expected, Bits { pattern: wrong, width }, "{found}");
    assert_eq!((found.clause, found.differ, found.file.as_str()), (flip.clause, 1, flip.file));
}

#[test]
fn a_flipped_bit_of_an_input_is_noticed_too() {
    for (file, tensor) in [
        ("a_f32_to_e4m3", "in_bits"),
        ("b_rtn_mxfp4_gs_third_ss4", "f16.gauss.x"),
        ("c_transform", "B16.f32.random.shared.T"),
        ("e_matmul_nvfp4_subset", "51x17x2080.normal.b"),
        ("e_matmul_mxfp4_subset", "16x64x4096.structured.a_scales"),
    ] {
        let scratch = Scratch::edited(file, |file| {
            let bytes = &mut file.tensor(tensor).bytes;
            // The top bit of the last value, code or scale.
            *bytes.last_mut().unwrap() ^= 0x80;
        });
        let report = check_dir(scratch.dir(), &reference()).unwrap();
        assert!(report.counts().differ > 0, "{file} {tensor}");
    }
}

#[test]
fn a_difference_reads_like_a_sentence() {
    let scratch = Scratch::edited("e_matmul_mxfp4_crafted", |file| {
        file.tensor("crafted.S32_bits").bytes[3] ^= 0x80;
    });
    let report = check_dir(scratch.dir(), &reference()).unwrap();
    let text = report.differences().next().unwrap().to_string();
    assert!(
        text.starts_with("[C6] crafted exact sums: crafted.S32_bits at (0, 0): got 0x"),
        "{text}"
    );
    assert!(text.ends_with("; 1 of 306 differ"), "{text}");
}

/// The error that checking a folder makes, and its text.
fn error_of(scratch: &Scratch) -> (Error, String) {
    let error = check_dir(scratch.dir(), &reference()).expect_err("the check should not pass");
    let text = error.to_string();
    (error, text)
}

#[test]
fn a_truncated_file_is_an_error() {
    let name = "e_matmul_mxfp4_crafted";
    for keep in [0, 7, 100, 27_599] {
        let scratch = Scratch::copy_of(name);
        let bytes = fs::read(scratch.path(name, "safetensors")).unwrap();
        fs::write(scratch.path(name, "safetensors"), &bytes[..keep]).unwrap();
        let (error, text) = error_of(&scratch);
        assert!(matches!(error, Error::Length { expected: 27_600, .. }), "{text}");

        // Even when the manifest says that it is meant to be so short.
        let json = fs::read_to_string(scratch.path(name, "json")).unwrap();
        let json = json.replace("\"bytes\": 27600", &format!("\"bytes\": {keep}"));
        fs::write(scratch.path(name, "json"), json).unwrap();
        let (error, text) = error_of(&scratch);
        assert!(matches!(error, Error::SafeTensors { .. }), "{text}");
        assert!(text.contains(name) && text.contains("copy the file again"), "{text}");
    }
}

#[test]
fn a_missing_half_of_a_pair_is_an_error() {
    let scratch = Scratch::copy_of("d_swizzle");
    fs::remove_file(scratch.path("d_swizzle", "json")).unwrap();
    let (error, text) = error_of(&scratch);
    assert!(matches!(error, Error::NoManifest { .. }), "{text}");
    assert!(text.contains("d_swizzle.json"), "{text}");

    let scratch = Scratch::copy_of("d_swizzle");
    fs::remove_file(scratch.path("d_swizzle", "safetensors")).unwrap();
    let (error, text) = error_of(&scratch);
    assert!(matches!(error, Error::Io { .. }), "{text}");
}

#[test]
fn a_missing_tensor_is_an_error() {
    for (name, tensor) in [
        ("a_decode_tables", "e2m1.code"),
        ("a_f32_to_e8m0", "in_bits"),
        ("b_rtn_mxfp4_gs1_ss6_subset", "f32.tie.codes_up"),
        ("c_transform", "B16.f32.random.shared.T"),
        ("d_swizzle", "r1_c1.out"),
        ("e_matmul_nvfp4_crafted", "crafted.y_f16_bits"),
    ] {
        // From the file alone, and from file and manifest.
        for both in [false, true] {
            let scratch = Scratch::edited(name, |file| {
                file.tensors.remove(tensor).unwrap();
                if both {
                    file.manifest["tensors"].as_object_mut().unwrap().remove(tensor).unwrap();
                }
            });
            let (error, text) = error_of(&scratch);
            assert!(matches!(error, Error::NoTensor { place: "file", .. }), "{text}");
            assert!(text.contains(name) && text.contains(tensor), "{text}");
        }
    }
}

#[test]
fn a_wrong_type_or_shape_is_an_error() {
    // (file, tensor, its type as the manifest spells it, another type of the same size)
    for (name, tensor, dtype, spelled) in [
        ("b_rtn_mxfp4_gs1_ss6_subset", "f32.tie.dq", Dtype::U32, "uint32"),
        ("b_rtn_mxfp4_gs1_ss6_subset", "f32.tie.x", Dtype::U32, "uint32"),
        ("e_matmul_mxfp4_crafted", "crafted.S32_bits", Dtype::F32, "float32"),
        ("e_matmul_mxfp4_crafted", "crafted.y_f16_bits", Dtype::F16, "float16"),
    ] {
        let scratch = Scratch::edited(name, |file| file.tensor(tensor).dtype = dtype);
        let (error, text) = error_of(&scratch);
        assert!(matches!(error, Error::Dtype { .. }), "{text}");

        let scratch = Scratch::edited(name, |file| {
            file.tensor(tensor).dtype = dtype;
            file.manifest["tensors"][tensor]["dtype"] = spelled.into();
        });
        let (error, text) = error_of(&scratch);
        assert!(matches!(error, Error::Dtype { .. }), "{text}");
        assert!(text.contains(tensor) && text.contains(&dtype.to_string()), "{text}");
    }

    let (name, tensor) = ("e_matmul_mxfp4_crafted", "crafted.a_scales");
    for manifest_too in [false, true] {
        let scratch = Scratch::edited(name, |file| {
            file.tensor(tensor).shape = vec![8, 34];
            if manifest_too {
                file.manifest["tensors"][tensor]["shape"] = vec![8, 34].into();
            }
        });
        let (error, text) = error_of(&scratch);
        assert!(matches!(error, Error::Shape { .. }), "{text}");
        assert!(text.contains("[8, 34]") && text.contains("[34, 8]"), "{text}");
    }
}

#[test]
fn a_tensor_outside_every_case_is_an_error() {
    // Listed nowhere.
    let scratch = Scratch::edited("d_swizzle", |file| {
        file.manifest["tensors"].as_object_mut().unwrap().remove("r1_c1.in").unwrap();
    });
    let (error, text) = error_of(&scratch);
    assert!(matches!(error, Error::NoTensor { place: "manifest", .. }), "{text}");
    // Listed, but in no case: it would pass unchecked.
    let scratch = Scratch::edited("c_transform", |file| {
        let cases = file.manifest["cases"].as_object_mut().unwrap();
        cases.remove("B16.f32.random.shared").unwrap();
    });
    let (error, text) = error_of(&scratch);
    assert!(matches!(error, Error::Unread { .. }), "{text}");
    assert!(text.contains("B16.f32.random.shared"), "{text}");
}

#[test]
fn nothing_compared_is_an_error() {
    let (error, text) = error_of(&Scratch::empty());
    assert!(matches!(error, Error::Nothing { .. }), "{text}");

    let others = Scratch::empty();
    for file in ["f_ct_mxfp4.safetensors", "f_ct_mxfp4.json", "g_peers_nvfp4.safetensors"] {
        fs::write(others.dir().join(file), "not looked into").unwrap();
    }
    fs::write(others.dir().join("f_ct_mxfp4.config.json"), "{}").unwrap();
    let (error, text) = error_of(&others);
    assert!(matches!(error, Error::Nothing { .. }), "{text}");
    assert!(text.contains("not checked: f_ct_mxfp4, g_peers_nvfp4"), "{text}");

    // A file with no cases, and no tensors either.
    let scratch = Scratch::edited("e_matmul_mxfp4_crafted", |file| {
        file.tensors.clear();
        file.manifest["tensors"] = serde_json::json!({});
        file.manifest["cases"] = serde_json::json!({});
    });
    let (error, text) = error_of(&scratch);
    assert!(matches!(error, Error::Nothing { .. }), "{text}");

    let scratch = Scratch::empty();
    let absent = scratch.dir().join("absent");
    assert!(matches!(check_dir(&absent, &reference()), Err(Error::Io { .. })));
}

#[test]
fn files_of_other_families_are_listed_and_do_not_count() {
    let scratch = Scratch::copy_of("e_matmul_nvfp4_crafted");
    for file in ["f_torchao.safetensors", "f_torchao.json", "zebra.safetensors", "notes.txt"] {
        fs::write(scratch.dir().join(file), "not looked into").unwrap();
    }
    let report = check_dir(scratch.dir(), &reference()).unwrap();
    assert_eq!(report.not_checked, ["f_torchao", "zebra"]);
    assert_eq!(report.files.len(), 1);
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    type Edit = fn(&mut serde_json::Value);
    let b = "b_rtn_mxfp4_gs1_ss6_subset";
    let e = "e_matmul_mxfp4_crafted";
    let cases: [(&str, Edit); 10] = [
        (b, |m| m["config"]["G"] = 7.into()),
        (b, |m| m["config"]["G"] = 16.into()),
        (b, |m| m["config"]["scale_dtype"] = "e5m2".into()),
        (b, |m| m["config"]["ss"] = 0.into()),
        (b, |m| *m = serde_json::json!({"name": m["name"], "tensors": m["tensors"]})),
        ("c_transform", |m| {
            m["cases"]["B16.f32.random.shared"]["config"] = "fp4".into();
        }),
        (e, |m| m["G"] = 64.into()),
        (e, |m| m["cases"]["crafted"]["K"] = 255.into()),
        (e, |m| m["cases"]["crafted"]["M"] = u64::MAX.into()),
        (e, |m| m["name"] = "e_matmul_mxfp4".into()),
    ];
    for (index, (name, edit)) in cases.into_iter().enumerate() {
        let scratch = Scratch::edited(name, |file| edit(&mut file.manifest));
        let (_, text) = error_of(&scratch);
        println!("{index}: {text}");
        assert!(text.contains(name), "{index}: {text}");
    }
    let scratch = Scratch::copy_of(e);
    fs::write(scratch.path(e, "json"), "{\"name\": ").unwrap();
    assert!(matches!(error_of(&scratch).0, Error::Manifest { .. }));
}

#[test]
fn corrupted_bytes_never_panic() {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    let (mut refused, mut checked) = (0, 0);
    for name in ["a_decode_tables", "e_matmul_nvfp4_crafted", "e_matmul_mxfp4_crafted"] {
        let scratch = Scratch::copy_of(name);
        let json = fs::read(scratch.path(name, "json")).unwrap();
        let bytes = fs::read(scratch.path(name, "safetensors")).unwrap();
        let header = usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) + 8;
        for _ in 0..400 {
            let (mut json, mut bytes) = (json.clone(), bytes.clone());
            for _ in 0..=random(3) {
                let (buffer, limit) = match random(3) {
                    0 => (&mut json, usize::MAX),
                    1 => (&mut bytes, header),
                    _ => (&mut bytes, usize::MAX),
                };
                let at = random(buffer.len().min(limit));
                // Digits stay digits, so that shapes and settings change.
                buffer[at] = match buffer[at] {
                    b'0'..=b'9' => b'0' + random(10) as u8,
                    _ => random(256) as u8,
                };
            }
            let result = VectorFile::parse(name, &json, &bytes)
                .and_then(|file| check_file(&file, &reference()));
            match result {
                Ok(_) => checked += 1,
                Err(_) => refused += 1,
            }
        }
    }
    println!("{checked} corrupted files checked, {refused} refused");
    assert!(checked > 100 && refused > 100);
}

#[test]
fn a_subset_is_a_vector_file_again() {
    let scratch = Scratch::empty();
    let source = vectors().join("e_matmul_nvfp4_subset");
    let target = scratch.dir().join("e_matmul_nvfp4_two");
    let cases = ["1x1x32.nan", "3x5x64.wide"].map(str::to_owned);
    write_subset(&source, &target, &cases, &[]).unwrap();
    let report = check_dir(scratch.dir(), &reference()).unwrap();
    assert_eq!((report.files.len(), report.counts().cases, report.counts().differ), (1, 24, 0));

    let again = write_subset(&source, &target, &cases, &[]).unwrap_err();
    assert!(again.to_string().contains("is there already"), "{again}");
    let target = scratch.dir().join("e_matmul_nvfp4_none");
    let unknown = write_subset(&source, &target, &["3x5x64".to_owned()], &[]).unwrap_err();
    assert!(unknown.to_string().contains("3x5x64.wide"), "{unknown}");
    let unknown = write_subset(&source, &target, &cases, &["S".to_owned()]).unwrap_err();
    assert!(unknown.to_string().contains("S32_bits"), "{unknown}");
    let listless = write_subset(&vectors().join("d_swizzle"), &target, &cases, &[]).unwrap_err();
    assert!(matches!(listless, Error::Subset { .. }), "{listless}");
}

#[test]
fn the_command_exits_0_1_or_2() {
    let run = |dir: &std::path::Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_fp4-conformance"))
            .args(["vectors", "check", "--backend", "reference"])
            .arg(dir)
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), stdout, String::from_utf8(output.stderr).unwrap())
    };
    let good = Scratch::copy_of("e_matmul_nvfp4_crafted");
    let (code, out, _) = run(good.dir());
    assert_eq!(code, Some(0));
    assert_eq!(
        out,
        "e_matmul_nvfp4_crafted: 12 cases, 21168 values compared, 0 differ\n\
         vectors: 12 cases, 21168 values compared, 0 differ\n"
    );
    let bad = Scratch::edited("e_matmul_nvfp4_crafted", |file| {
        file.tensor("crafted.y_f16_bits").bytes[0] ^= 1;
    });
    let (code, out, _) = run(bad.dir());
    assert_eq!(code, Some(1));
    assert!(out.contains("crafted.y_f16_bits at (0, 0, 0): got 0x"), "{out}");
    assert!(out.ends_with(" values compared, 7 differ\n"), "{out}");
    let (code, _, err) = run(Scratch::empty().dir());
    assert_eq!(code, Some(2));
    assert!(err.contains("nothing was compared"), "{err}");
}
