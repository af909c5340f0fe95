//! The golden vectors notice what a mutant does wrong, and list what a backend does not do.

#[path = "../support/mod.rs"]
mod support;

use fp4_conformance::report::Counts;
use fp4_conformance::vectors::{Error, VectorFile, check_dir, check_file};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use support::{Scratch, reference, vectors};

use super::Fault;
use super::backend::Mutant;

#[test]
fn the_vectors_catch_mutants() {
    for (fault, file) in [
        (Fault::TiesDown, "b_rtn_nvfp4_gs_0p1_ss6"),
        (Fault::TiesDown, "a_f32_to_e2m1"),
        (Fault::LastByteUnwritten, "b_rtn_mxfp4_gs1_ss6_subset"),
        (Fault::LastByteUnwritten, "c_transform"),
        (Fault::NanScaleNegative, "b_rtn_nvfp4_gs_0p1_ss6"),
        (Fault::NanScaleNegative, "a_f32_to_e4m3"),
        (Fault::RoundedHalves, "e_matmul_mxfp4_subset"),
        (Fault::RoundedHalves, "e_matmul_nvfp4_subset"),
        (Fault::NanPayload, "e_matmul_nvfp4_subset"),
        (Fault::NanPayload, "a_decode_tables"),
        (Fault::LastColumnUnwritten, "e_matmul_mxfp4_subset"),
        (Fault::RowScaleAfterAlpha, "j_epilogue_mxfp4"),
        (Fault::RowScaleInOneProduct, "j_epilogue_nvfp4"),
        (Fault::RowScaleOfTile, "j_epilogue_nvfp4"),
        (Fault::ScaleOfRowAbove, "k_rows_nvfp4"),
        (Fault::RowScaleOfTensor, "k_rows_nvfp4"),
        (Fault::RowScaleSkipsInfinity, "k_rows_nvfp4"),
        (Fault::RowScaleUnderflowIsOne, "k_rows_nvfp4"),
        (Fault::BiasBeforeAlpha, "j_epilogue_mxfp4"),
        (Fault::BiasInOneFma, "j_epilogue_nvfp4"),
        (Fault::BiasAfterRounding, "j_epilogue_mxfp4"),
        (Fault::BiasOfTile, "j_epilogue_nvfp4"),
    ] {
        let file = VectorFile::open(vectors(), file).unwrap();
        let report = check_file(&file, &Backend::new(Mutant::of(fault))).unwrap();
        assert!(report.counts.differ > 0, "{}", file.name());
    }
}

#[test]
fn what_a_backend_does_not_support_is_listed_and_not_counted() {
    let check = |file: &str, backend: &Backend| {
        check_file(&VectorFile::open(vectors(), file).unwrap(), backend).unwrap()
    };
    let limited = Backend::new(Mutant::limited());
    let (b, e) = ("b_rtn_mxfp4_gs1_ss6_subset", "e_matmul_nvfp4_crafted");
    let (full, some) = (check(b, &reference()), check(b, &limited));
    assert_eq!((full.skipped.len(), some.skipped.len()), (0, 4 * 3 * 2));
    assert_eq!(some.counts.cases + some.skipped.len() as u64, full.counts.cases);
    assert!(some.to_string().contains("quantize ties up: ties to even only"), "{some}");
    let some = check(e, &limited);
    assert_eq!(some.skipped.len(), 2);
    assert_eq!(some.counts.differ, 0);

    // No matmul at all: every input is skipped, and the file alone is no pass for a folder.
    let quantizer_only = Backend::quantizer_only(Reference);
    let none = check(e, &quantizer_only);
    assert_eq!((none.counts, none.skipped.len()), (Counts::default(), 1));
    let scratch = Scratch::copy_of(e);
    assert!(matches!(check_dir(scratch.dir(), &quantizer_only), Err(Error::Nothing { .. })));
    let matmul_only = Backend::matmul_only(Reference);
    assert!(!check(b, &matmul_only).skipped.is_empty());
}
