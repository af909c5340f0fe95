//! What the suite does with a backend that fails, or does not do everything.

#![allow(missing_docs)]

use std::collections::BTreeSet;

use fp4_conformance::suite::run_report::Subject;
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use fp4_core::{
    Error, Named, PackedMut, QuantCounts, QuantizeInput, QuantizeQuery, Quantizer, Unsupported,
};

/// The reference quantizer with one code flipped, and no transforms.
struct Flipped;

impl Named for Flipped {
    fn name(&self) -> &str {
        "flipped"
    }
}

impl Quantizer for Flipped {
    fn supports_quantize(&self, query: &QuantizeQuery) -> Result<(), Unsupported> {
        if query.transform.is_some() { Err(Unsupported::Transform) } else { Ok(()) }
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        self.supports_quantize(&input.query())?;
        let counts = Reference.quantize(input, out)?;
        if let Some(byte) = out.buffers().0.get_mut(9) {
            *byte ^= 0x10;
        }
        Ok(counts)
    }
}

fn flipped() -> Registered {
    Registered::new(Backend::quantizer_only(Flipped))
}

/// 2 rows of 96, Gaussian, and no transform or any.
const CASES: &str = "quantize/*/2x96/gauss";

fn suite() -> Suite {
    Suite::new(Profile::named("full").unwrap()).matching(CASES).unwrap()
}

#[test]
fn a_failure_names_clause_case_coordinate_both_values_and_the_replay() {
    let report = suite().with(flipped()).run();
    assert!(!report.passed());
    let failure = &report.failures()[0];
    let mismatch = failure.mismatch.as_ref().unwrap();
    assert_eq!((mismatch.clause, mismatch.tensor.as_str()), ("C4.3", "codes"));
    assert_eq!((mismatch.coordinate, mismatch.differ, mismatch.compared), ([0, 9], 1, 96));
    assert_ne!(mismatch.got, mismatch.expected);
    let replay =
        format!("fp4-conformance run --profile full --backend flipped --filter '{}'", failure.case);
    assert_eq!(failure.replay, replay);
    let again = Suite::new(Profile::named("full").unwrap()).matching(&failure.case).unwrap();
    let again = again.with(flipped()).run();
    assert_eq!(again.failures().len(), 1);
    assert_eq!(again.failures()[0].message, failure.message);
    for text in [report.to_string(), report.to_json().to_string(), report.to_junit()] {
        assert!(text.contains(&failure.case), "{text}");
    }
}

#[test]
fn unsupported_is_counted_and_named_and_no_pass() {
    let report = suite().with(flipped()).run();
    let tally = report.tallies()[&Subject::Quantizer(0)];
    assert!(tally.unsupported > 0 && tally.passed == 0 && tally.failed > 0, "{tally:?}");
    let reason = ("flipped".to_owned(), "a block transform".to_owned());
    assert_eq!(report.unsupported()[&reason], tally.unsupported);
    assert!(report.to_string().contains("unsupported on flipped: a block transform"));
}

#[test]
fn an_expected_failure_fails_when_it_passes() {
    let known = flipped().expect_failure("quantize/*", "flips a code").unwrap();
    let report = suite().with(known).run();
    assert!(report.failures().is_empty(), "{report}");
    assert!(report.to_string().contains("expected failure on flipped: flips a code"));
    let reference = Registered::new(Backend::new(Reference));
    let fixed = reference.expect_failure("quantize/*", "flips a code").unwrap();
    let report = suite().with(fixed).run();
    assert!(!report.passed());
    assert!(report.failures()[0].message.contains("remove the expectation"), "{report}");
}

#[test]
fn nothing_compared_is_no_pass() {
    let none = Suite::new(Profile::quick()).matching("no-such-case").unwrap();
    let report = none.with(Registered::new(Backend::new(Reference))).run();
    assert_eq!(report.counts().cases, 0);
    assert!(!report.passed());
}

#[test]
fn bounded_says_bounded_and_never_exact() {
    let suite = Suite::new(Profile::quick()).matching("matmul/*").unwrap().bounded();
    let report = suite.with(Registered::new(Backend::new(Reference))).run();
    let tally = report.tallies()[&Subject::Matmul(0)];
    assert!(report.passed(), "{report}");
    assert!(tally.bounded > 0 && tally.passed == 0, "{tally:?}");
    assert!(report.to_string().contains("bounded, not exact"), "{report}");
}

/// A replay names one or two backends; the ids that all of them met must still be there.
#[test]
fn what_backends_declare_adds_cases_and_takes_none_away() {
    let ids = |suite: Suite| suite.cases().into_iter().map(|c| c.id).collect::<BTreeSet<_>>();
    let alone = ids(Suite::new(Profile::quick()));
    let declaring = flipped().tiles(&[5, 31], &[12]).spreads(&[17]);
    let declared = ids(Suite::new(Profile::quick()).with(declaring));
    assert!(declared.is_superset(&alone));
    for family in ["/spread:17/", "/spread:18/", "/32x", "x13x"] {
        assert!(declared.iter().any(|id| id.contains(family)), "{family}");
    }
}
