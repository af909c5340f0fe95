//! No wrong backend slips through: profile `quick` catches every mutant, and names the case.

#![allow(missing_docs)]

mod backend;
mod matmul;
mod quantizer;
mod vectors;

use backend::Mutant;
use fp4_conformance::registry::changed_environment;
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::backend::erased::Backend;

macro_rules! faults {
    ($($fault:ident: $name:literal,)*) => {
        /// What a mutant does wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Fault { $($fault,)* }

        impl Fault {
            const ALL: &[Fault] = &[$(Fault::$fault,)*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Fault::$fault => $name,)* }
            }
        }
    };
}

faults! {
    TiesDown: "ties down whatever the mode",
    TiesAway: "ties away from zero",
    TieModeIgnored: "ties to even whatever the mode",
    LostSignedZero: "a zero code loses its sign",
    NanIsZero: "NaN encodes as zero",
    InfinityWraps: "infinity encodes as zero",
    NibblesSwapped: "high nibble first",
    Reciprocal: "multiplies by the reciprocal of the unit",
    ReciprocalBesideTies: "trusts a product by the reciprocal one ulp beside a midpoint",
    ReciprocalOfLast: "multiplies by a reciprocal in two parts, under the largest significand too",
    ReciprocalNegative: "the lower part of a reciprocal may be negative, and takes the sign of -0",
    ReciprocalSubnormal: "multiplies by a reciprocal that is infinite",
    ScaleByTwoDivisions: "divides by ss, then by gs",
    AmaxSkipsNan: "a NaN does not reach the scale",
    GlobalScaleIgnored: "the unit lacks the global scale",
    GivenScalesIgnored: "computes scales that are given",
    ScaleOfRowAbove: "a row is quantized under the scale of the row above it",
    RowScaleOfTensor: "every row has the scale of the whole tensor",
    RowScaleBeforeTransform: "the scale of a row is that of the row before its transform",
    RowScaleSkipsInfinity: "a row with an infinity has the largest scale instead of 1",
    RowScaleUnderflowIsOne: "a row scale that underflows is 1",
    E8m0TiesToEven: "e8m0 ties to even instead of up",
    E8m0Floor: "e8m0 rounds down",
    E4m3TiesUp: "e4m3 ties up instead of to even",
    E4m3SubnormalsFlushed: "e4m3 subnormals are encoded as zero",
    E4m3OverflowIsNan: "e4m3 overflow is NaN instead of 448",
    NanScaleNegative: "the other e4m3 NaN",
    TransformTransposed: "the transform is transposed",
    FirstBlockForAll: "the first matrix serves every block",
    TransformNotRounded: "T keeps its stored type",
    NoRoundingAfterTransform: "y is not rounded to the type of x",
    MultiplyThenAdd: "the chain rounds each product",
    FmaThroughF64: "fma is f64 arithmetic rounded to f32",
    DescendingChain: "the chain runs backwards",
    ChainInF64: "the chain accumulates in f64",
    ChainWithoutZero: "the chain starts with a product instead of +0",
    DotSaturates: "a group's dot saturates at 12 bits",
    TailDropped: "the last odd group of K is dropped",
    ZeroGroupsSkipped: "groups of zero codes are skipped before their scales are looked at",
    NegativeScaleIgnored: "the sign of a scale is lost",
    ScaleSubnormalsFlushed: "e4m3 subnormals decode as zero",
    NanScaleIgnored: "a NaN scale counts as zero",
    WrongFallbackBound: "the narrow path one past its exponent spread",
    WindowOfDeadGroup: "the window of a row begins at the scale of a group of zeros",
    WindowDropsOctave: "a row one octave past one window is taken for one in it",
    F32Accumulation: "accumulates in f32",
    F64Accumulation: "accumulates in f64",
    RoundedHalves: "adds two rounded halves of K",
    ThreadDependentSplit: "splits K by the number of threads and adds rounded parts",
    DoubleRounding: "rounds the sum to f64, then to f32",
    NegativeZeroSum: "an empty or cancelled sum is -0",
    UnderflowLosesSign: "a sum that underflows loses its sign",
    SubnormalSumsFlushed: "subnormal sums are flushed",
    OverflowSaturates: "overflow saturates instead of infinity",
    AlphaInF64: "one rounding from f64 instead of two steps in f32",
    AlphaAfterRounding: "rounds to bf16 before alpha",
    RowScaleAfterAlpha: "multiplies by alpha, then by the row scale",
    RowScaleInOneProduct: "sum, alpha and row scale in one product, rounded once",
    RowScaleOfTile: "row scales start over with each tile of rows",
    BiasBeforeAlpha: "adds the bias before alpha",
    BiasInOneFma: "multiplies and adds with one rounding",
    BiasAfterRounding: "adds the bias after the rounding to the output's type",
    BiasOfTile: "columns past the last whole tile take the bias of a padded one",
    LastColumnUnwritten: "the last column past a tile is not written",
    RowOffByOne: "row 16 repeats row 15",
    PartialRangeIgnored: "partial sums run over all of K",
    PartialOverwrites: "partial sums overwrite instead of adding",
    OneRankRounds: "of the ranks that share a product some round their partial sums to f32",
    ScaledUnitsShift: "units of a sum whose base is another rank's are those of its own",
    LastByteUnwritten: "the last byte of codes is not written",
    NanPayload: "a NaN output has a payload",
    Int8TiesAway: "MXINT8 elements tie away from zero",
    Int8ScaleTooSmall: "an MXINT8 scale is one too small where amax is past 127 / 64",
    Int8MultiplierOverflows: "MXINT8 elements by an f32 multiplier, infinite under small scales",
    Int8NanElements: "MXINT8 elements beside a NaN are not zeroed",
    Int8MinusLost: "an MXINT8 element of -128 counts as -127",
    Int8MinusIsPlus: "an MXINT8 element of -128 counts as 128",
    Int8CorrectionLost: "the correction for biased weights is lost on the last odd group",
    Int8NibbleSigned: "the low nibble plane of an MXINT8 element has a sign",
    Int8ScaleOfHalf: "two NVFP4 groups take two scales of an MXINT8 row",
    GroupedRowsOfNext: "a grouped product takes its last row from the product after it",
    GroupedEmptyShifts: "a product without rows shifts the weights and alphas of those after it",
    GroupedAlphaOfFirst: "all products of a call have the alpha of the first",
    GroupedBiasOfLast: "products with a bias have that of the last one as wide",
    GroupedWritesFirst: "a grouped call writes before all its operands are checked",
    EnvironmentIgnored: "computes under flush-to-zero and changed rounding",
}

fn registered(fault: Option<Fault>) -> Registered {
    let mutant = move |threads| Backend::new(Mutant { fault, threads, limited: false });
    Registered::new(mutant(1)).threads(mutant)
}

#[test]
fn quick_catches_every_mutant() {
    let mutants = Fault::ALL;
    let suite = mutants
        .iter()
        .fold(Suite::new(Profile::quick()), |suite, &fault| suite.with(registered(Some(fault))));
    let report = suite.environment(changed_environment).stop_early().run();
    let mut caught = 0;
    for (index, fault) in mutants.iter().enumerate() {
        match report.first_failure(index) {
            Some(failure) => {
                println!("{fault:?} ({}): {} {}", fault.name(), failure.case, failure.message);
                caught += 1;
            }
            None => println!("{fault:?} ({}): NOT CAUGHT", fault.name()),
        }
    }
    println!("mutants: {caught} of {} caught", mutants.len());
    assert!(mutants.len() >= 25);
    assert_eq!(caught, mutants.len());
}

/// What the mutants differ in is their fault, and nothing else.
#[test]
fn without_a_fault_nothing_is_caught() {
    let suite = Suite::new(Profile::quick()).environment(changed_environment);
    let report = suite.with(registered(None)).run();
    assert!(report.passed(), "{report}");
}

/// What `--grade bounded` is for: accumulation in f32 is within the bound, and wrong sums are not.
#[test]
fn f32_accumulation_is_bounded_and_wrong_sums_are_not() {
    let graded = |fault| {
        let suite = Suite::new(Profile::quick()).matching("matmul/*").unwrap().bounded();
        suite.with(registered(Some(fault))).run()
    };
    let report = graded(Fault::F32Accumulation);
    assert!(report.passed(), "{report}");
    for wrong in [Fault::TailDropped, Fault::NegativeScaleIgnored, Fault::NanScaleIgnored] {
        assert!(!graded(wrong).passed(), "{wrong:?}");
    }
}

/// The planted fault of machines: where some ranks round what they send, other outputs come out.
#[test]
fn sharded_products_alone_catch_a_rank_that_rounds() {
    for fault in [Fault::OneRankRounds, Fault::ScaledUnitsShift] {
        let run = |fault| {
            let suite = Suite::new(Profile::quick()).matching("sharded/*").unwrap();
            suite.with(registered(fault)).run()
        };
        let (right, wrong) = (run(None), run(Some(fault)));
        assert!(right.passed(), "{right}");
        let failure = wrong.first_failure(0).expect("a failure");
        println!("{fault:?}: {} {}", failure.case, failure.message);
    }
}
