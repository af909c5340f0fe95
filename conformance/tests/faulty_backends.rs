//! The checker notices what a backend does wrong, and what it does not do.

mod support;

use std::ops::Range;

use fp4_conformance::report::Counts;
use fp4_conformance::vectors::{Error, VectorFile, check_dir, check_file};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::{Reference, ReferenceWeight};
use fp4_core::{
    Epilogue, FloatSliceMut, FloatType, Matmul, MatmulQuery, Named, Packed, PackedMut, PackedView,
    Partials, PartialsMut, Paths, PreparedWeight, QuantCounts, QuantizeInput, QuantizeQuery,
    Quantizer, TieMode, Unsupported,
};
use support::{Scratch, reference, vectors};

/// The reference with one thing wrong, or missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Quantizes with ties toward zero whatever was asked.
    TiesToZero,
    /// Leaves the last code byte unwritten.
    LastByteUnwritten,
    /// Writes the other e4m3 NaN.
    NegativeNanScale,
    /// Rounds the sums of two halves of K and adds them.
    AddsRoundedHalves,
    /// Writes NaNs with a payload.
    NanPayload,
    /// Forgets the last output.
    LastOutputUnwritten,
    /// Supports no f16 outputs, no tie mode but even, and no partial sums.
    Limited,
}

impl Named for Fault {
    fn name(&self) -> &str {
        "faulty"
    }
}

impl Quantizer for Fault {
    fn supports_quantize(&self, query: &QuantizeQuery) -> Result<(), Unsupported> {
        if *self == Fault::Limited && query.tie != TieMode::Even {
            return Err(Unsupported::Other("ties to even only"));
        }
        Ok(())
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, fp4_core::Error> {
        let before = out.as_view().codes().last().copied();
        let zero = input.spec().with_tie(TieMode::Zero);
        let mut changed =
            QuantizeInput::new(input.x(), input.shape().rows(), input.shape().k(), &zero)?
                .with_transform(input.transform().copied())?;
        if let Some(scales) = input.scales() {
            changed = changed.with_scales(scales)?;
        }
        let counts =
            Reference.quantize(if *self == Fault::TiesToZero { &changed } else { input }, out)?;
        let (codes, scales) = out.buffers();
        match self {
            Fault::LastByteUnwritten => {
                codes.last_mut().into_iter().zip(before).for_each(|(byte, old)| *byte = old);
            }
            Fault::NegativeNanScale => {
                for byte in scales {
                    *byte = if *byte == 0x7F { 0xFF } else { *byte };
                }
            }
            _ => {}
        }
        Ok(counts)
    }
}

impl Matmul for Fault {
    type Prepared<B: Packed> = ReferenceWeight<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        if *self == Fault::Limited && query.output == FloatType::F16 {
            return Err(Unsupported::OutputType(query.output));
        }
        Ok(())
    }

    fn supports_partial(&self, _query: &MatmulQuery) -> Result<(), Unsupported> {
        if *self == Fault::Limited { Err(Unsupported::Partials) } else { Ok(()) }
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, fp4_core::Error> {
        Reference.prepare(b)
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        mut out: FloatSliceMut<'_>,
    ) -> Result<Paths, fp4_core::Error> {
        let before = out.as_ref().get_f32(out.len() - 1);
        let paths = Reference.matmul(a, b, epilogue, out.reborrow())?;
        let FloatSliceMut::F32(out) = out else { return Ok(paths) };
        match self {
            Fault::AddsRoundedHalves => {
                let groups = a.shape().row_groups();
                let half = |range| {
                    let mut sums = vec![fp4_core::ExactSum::ZERO; out.len()];
                    Reference.partial(a, b, range, PartialsMut::Exact(&mut sums))?;
                    let mut rounded = vec![0f32; out.len()];
                    let shape = [a.shape().rows(), b.shape().rows()];
                    fp4_core::finish(
                        Partials::Exact(&sums),
                        shape,
                        1.0,
                        rounded.as_mut_slice().into(),
                    )?;
                    Ok::<_, fp4_core::Error>(rounded)
                };
                let (low, high) = (half(0..groups / 2)?, half(groups / 2..groups)?);
                for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                    *out = fp4_core::finish_one(low + high, epilogue.alpha, None);
                }
            }
            Fault::NanPayload => {
                for y in out.iter_mut().filter(|y| y.is_nan()) {
                    *y = f32::from_bits(0x7FC0_0001);
                }
            }
            Fault::LastOutputUnwritten => {
                out.last_mut().into_iter().zip(before).for_each(|(y, old)| *y = old);
            }
            _ => {}
        }
        Ok(paths)
    }

    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), fp4_core::Error> {
        Reference.export_weight(b, out)
    }

    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), fp4_core::Error> {
        Reference.partial(a, b, groups, out)
    }
}

#[test]
fn a_faulty_backend_is_caught() {
    for (fault, file) in [
        (Fault::TiesToZero, "b_rtn_nvfp4_gs_0p1_ss6"),
        (Fault::TiesToZero, "a_f32_to_e2m1"),
        (Fault::LastByteUnwritten, "b_rtn_mxfp4_gs1_ss6_subset"),
        (Fault::LastByteUnwritten, "c_transform"),
        (Fault::NegativeNanScale, "b_rtn_nvfp4_gs_0p1_ss6"),
        (Fault::NegativeNanScale, "a_f32_to_e4m3"),
        (Fault::AddsRoundedHalves, "e_matmul_mxfp4_subset"),
        (Fault::AddsRoundedHalves, "e_matmul_nvfp4_subset"),
        (Fault::NanPayload, "e_matmul_nvfp4_subset"),
        (Fault::NanPayload, "a_decode_tables"),
        (Fault::LastOutputUnwritten, "e_matmul_mxfp4_crafted"),
    ] {
        let file = VectorFile::open(vectors(), file).unwrap();
        let report = check_file(&file, &Backend::new(fault)).unwrap();
        assert!(report.counts.differ > 0, "{}", file.name());
    }
}

#[test]
fn what_a_backend_does_not_support_is_listed_and_not_counted() {
    let check = |file: &str, backend: &Backend| {
        check_file(&VectorFile::open(vectors(), file).unwrap(), backend).unwrap()
    };
    let limited = Backend::new(Fault::Limited);
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
