//! What can be wrong with what a calibration is given.

/// What can be wrong with what a calibration is given. [`Error::Layer`](super::Error::Layer) and
/// [`Error::Weight`](super::Error::Weight) say of which layer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// A NaN or an infinity in what must be finite.
    #[error(
        "{what}: row {row}, column {column} is {value}, and finite values are expected; look for \
         what overflowed before this layer, or leave the sample out"
    )]
    NotFinite {
        /// Whose values.
        what: &'static str,
        /// Its row.
        row: u64,
        /// Its column.
        column: usize,
        /// The value.
        value: f64,
    },
    /// Values that are not whole rows.
    #[error("{what}: {got} values are no whole rows of {k}; pass row-major rows of that length")]
    Ragged {
        /// Whose values.
        what: &'static str,
        /// Values of a row.
        k: usize,
        /// Values given.
        got: usize,
    },
    /// Another number of rows than what goes with them.
    #[error("{what}: {got} rows, expected {expected}; pass the rows that belong together")]
    Rows {
        /// Whose rows.
        what: &'static str,
        /// Rows expected.
        expected: usize,
        /// Rows given.
        got: usize,
    },
    /// Another width than that of what goes with it.
    #[error("{what} is of {got} inputs, expected {expected}; pass the one of this layer")]
    Width {
        /// Whose width.
        what: &'static str,
        /// Inputs expected.
        expected: usize,
        /// Inputs found.
        got: usize,
    },
    /// Stored second moments of another length.
    #[error(
        "second moments of {k} inputs are a lower triangle of {expected} values, and {got} are \
         given; the file is cut short or of another layer"
    )]
    TriangleLen {
        /// Inputs.
        k: usize,
        /// Values expected.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// More samples than a count holds.
    #[error("more than 2^64 samples; the counts do not belong together")]
    TooManySamples,
    /// No samples where second moments are used.
    #[error("no samples of the activations of this layer; calibrate with text that reaches it")]
    NoSamples,
    /// Stored moments that no rows can have.
    #[error(
        "second moment of input {index} is {value}, and a sum of squares is expected; the file is \
         broken, calibrate again"
    )]
    NegativeMoment {
        /// The input.
        index: usize,
        /// Its moment.
        value: f64,
    },
    /// A width that is no whole number of blocks.
    #[error(
        "{k} inputs are no whole blocks of {block}; choose a block of 16, 32, 64 or 128 that \
         divides them"
    )]
    Blocks {
        /// Inputs.
        k: usize,
        /// Inputs of a block.
        block: usize,
    },
    /// A transform that cannot be undone.
    #[error(
        "block {block} of the transform has condition {condition:.1e} after rounding to bf16, and \
         at most {most:.1e} is taken: its product would not be kept; raise the damping (now \
         {damping}) or use the Hadamard transform"
    )]
    Singular {
        /// The block.
        block: usize,
        /// Its condition number in the 1-norm, infinite where it is singular.
        condition: f64,
        /// The largest taken.
        most: f64,
        /// The damping in use.
        damping: f64,
    },
    /// Eigenvalues that were not found.
    #[error(
        "the eigenvalues of block {block} do not converge; raise the damping (now {damping}) or \
         use the Hadamard transform"
    )]
    Eigenvalues {
        /// The block.
        block: usize,
        /// The damping in use.
        damping: f64,
    },
    /// A damping that is none.
    #[error("a damping of {got}; expected a finite share of the mean diagonal, 0 or more")]
    Damping {
        /// The value.
        got: f64,
    },
    /// Second moments that are not positive definite even with damping.
    #[error(
        "the second moments of {k} inputs are not positive definite with damping {damping}: pivot \
         {pivot} is not above zero; raise the damping (0.01 is usual), or calibrate on more samples"
    )]
    NotPositiveDefinite {
        /// Inputs.
        k: usize,
        /// The damping.
        damping: f64,
        /// The first pivot that is not above zero.
        pivot: usize,
    },
    /// A method that looks at second moments, and none given.
    #[error("{method} needs the second moments of the layer's input; calibrate first, or use rtn")]
    NoMoments {
        /// The method.
        method: &'static str,
    },
    /// Act-order where errors do not go everywhere.
    #[error(
        "act-order takes inputs from all blocks in one order, so errors cannot go by {inner} \
         inside a block and by {outer} across; use gptq or babai for both, or leave act-order out"
    )]
    Order {
        /// The method inside a block.
        inner: &'static str,
        /// The method across blocks.
        outer: &'static str,
    },
    /// Settings that quantize no weight.
    #[error(
        "a weight is quantized to e2m1 under one global scale, and these settings are for {got}; \
         pass the settings of a weight"
    )]
    NotForWeights {
        /// What the settings are for.
        got: &'static str,
    },
    /// Errors that grew beyond all bounds while they propagated.
    #[error(
        "row {row} of the weight grew to {value} at input {column} while errors propagated; raise \
         the damping (now {damping}) or calibrate on more samples"
    )]
    Diverged {
        /// The row.
        row: usize,
        /// The input.
        column: usize,
        /// What was to be quantized.
        value: f64,
        /// The damping.
        damping: f64,
    },
    /// A name that is none of those known.
    #[error("{what} `{}` is unknown; expected {expected}", crate::text::printable(.got))]
    Name {
        /// What it was to name.
        what: &'static str,
        /// The names known.
        expected: &'static str,
        /// The name.
        got: String,
    },
    /// Settings that look at a calibration, and none given.
    #[error("{what} needs a calibration; make one with `fp4 calibrate`, and give it with --calib")]
    NoCalibration {
        /// What needs it.
        what: &'static str,
    },
    /// Counts of a histogram that are not as many as it has.
    #[error("a histogram has {expected} counts, and {got} are given; the file is broken")]
    Counts {
        /// Counts expected.
        expected: usize,
        /// Counts given.
        got: usize,
    },
    /// A folder or file that is no calibration.
    #[error("{} is no calibration: {why}; `fp4 calibrate` writes one", .path.display())]
    NotCalibration {
        /// What was opened.
        path: std::path::PathBuf,
        /// What it lacks.
        why: String,
    },
    /// A layer that a calibration knows nothing of.
    #[error(
        "the calibration has no input of it, but of {layers} other layers ({}); calibrate with \
         this model, or exclude the layer",
        crate::text::printable(.examples)
    )]
    NoInput {
        /// Layers that it knows.
        layers: usize,
        /// Some of them.
        examples: String,
    },
    /// A run to go on with that was begun otherwise.
    #[error(
        "the calibration that is to be resumed was begun with another {setting}; give the same, or \
         leave --resume out to begin anew"
    )]
    OtherRun {
        /// What differs.
        setting: String,
    },
}
