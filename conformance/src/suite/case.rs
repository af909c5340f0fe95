//! Cases: one request each, with a stable id from which everything else follows.
//!
//! ```text
//! quantize/e4m3.g16/bf16/even/nvfp4/shared-32/computed/3x96/tie-code
//! matmul/mxfp4/15x17x2080/spread:41/alpha-usual/f16/split-3
//! grouped/mixed/0+1+2+17/33x160/nan/both/f32
//! grouped/nvfp4/one-17/33x160/near/alpha/bf16
//! sharded/mxint8-nvfp4/5x17x544/near/both/bf16/5-uneven/tree/chosen
//! pair/nvfp4/f32-bf16/blocks-16/3x17x160/outlier
//! pair/mxint8-nvfp4/f32-bf16/none/3x17x160/outlier
//! quantize/mxint8/f32/none/3x96/tie-code
//! core/swizzle/129x5
//! environment/daz/matmul/mxfp4
//! ```
//!
//! A grouped case has products of so many rows each, `+` between them, or three products of one A
//! (`one-17`). `/rows`, `/bias` or `/both` is appended where a matmul has row scales, a bias, or
//! both, and `/threads-N` where the thread count is set. The data of a case are drawn from a
//! generator seeded with the id, so an id means the same inputs in every profile and on every
//! machine.

use fp4_core::{Encoding, FloatType, Format, PackedMatrix, QuantSpec};

use crate::data::operands::operands;
use crate::data::values::{OwnedTransform, Setting, given_scales, transform, values};
use crate::oracle::rules::Rules;
use crate::random::Random;
use crate::tensor::Values;

/// A clause of the contract, such as `C4.3`.
pub type Clause = &'static str;

/// The clauses of the contract that cases must check.
pub const CLAUSES: [Clause; 10] = ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10"];

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// The stable id.
    pub id: String,
    /// The clauses that it checks.
    pub clauses: Vec<Clause>,
    /// What is asked.
    pub kind: Kind,
}

/// What a case asks.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Quantize one matrix.
    Quantize(QuantizeCase),
    /// Multiply two packed matrices.
    Matmul(MatmulCase),
    /// Several products in one call.
    Grouped(GroupedCase),
    /// A product whose K is split over ranks.
    Sharded(ShardedCase),
    /// Quantize two matrices and multiply them.
    Pair(PairCase),
    /// A function of the core that backends do not have.
    Core(CoreCase),
    /// A call in a changed floating-point environment.
    Environment(EnvironmentCase),
}

/// A transform's kind: block size, and whether each block of K has its own matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformKind {
    /// Rows and columns.
    pub block: usize,
    /// One matrix for each block of K.
    pub per_block: bool,
}

/// Quantize a (rows, k) matrix.
#[derive(Debug, Clone)]
pub struct QuantizeCase {
    /// Settings.
    pub spec: QuantSpec,
    /// Type of the values.
    pub input: FloatType,
    /// The transform, if any.
    pub transform: Option<TransformKind>,
    /// Scale bytes are given.
    pub given: bool,
    /// Rows and K.
    pub shape: [usize; 2],
    /// Data family.
    pub data: String,
    /// Thread count; 0 is the backend as it was registered.
    pub threads: usize,
}

/// The inputs of a quantization.
#[derive(Debug, Clone)]
pub struct QuantizeData {
    /// The values.
    pub x: Values,
    /// The transform.
    pub transform: Option<OwnedTransform>,
    /// Given scale bytes.
    pub given: Option<Vec<u8>>,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One call.
    Whole,
    /// K padded to a multiple of 128 (C8).
    Padded,
    /// Rows of A in three calls.
    Rows,
    /// Partial sums over ranges of K, each from zero, merged in another order.
    Split(usize),
    /// Partial sums over ranges of K, added into the same sums.
    Into(usize),
}

/// Multiply two packed matrices.
#[derive(Debug, Clone)]
pub struct MatmulCase {
    /// How A is encoded.
    pub a: Encoding,
    /// B's format.
    pub format: Format,
    /// M, N and K.
    pub shape: [usize; 3],
    /// Data family.
    pub data: String,
    /// Output multiplier.
    pub alpha: f32,
    /// Type of the output.
    pub output: FloatType,
    /// How.
    pub way: Way,
    /// There are scales for the rows of A.
    pub row_scales: bool,
    /// There is a bias.
    pub bias: bool,
    /// Thread count; 0 is the backend as it was registered.
    pub threads: usize,
}

/// Several products in one call.
#[derive(Debug, Clone)]
pub struct GroupedCase {
    /// Each of them, [`Way::Whole`]; its data are those of the case's id with `/` and its index.
    pub products: Vec<MatmulCase>,
    /// All of them have the A of the first.
    pub one_input: bool,
    /// Thread count; 0 is the backend as it was registered.
    pub threads: usize,
}

/// A product whose K is split over ranks, their partial sums reduced as integers.
#[derive(Debug, Clone)]
pub struct ShardedCase {
    /// The product, [`Way::Whole`].
    pub product: MatmulCase,
    /// Number of ranks.
    pub ranks: usize,
    /// The ranks have shards of very different lengths, empty ones among them.
    pub uneven: bool,
    /// In which order their words are added.
    pub order: Order,
    /// Every row is sent in the wide form.
    pub wide: bool,
}

/// How a simulated communicator adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Rank after rank.
    Chain,
    /// From the last rank to the first.
    Reverse,
    /// Pairs of ranks, then pairs of pairs.
    Tree,
    /// Each part of the words from another rank on, as in a ring.
    Ring,
}

/// Quantize two matrices and multiply them.
#[derive(Debug, Clone)]
pub struct PairCase {
    /// How A is encoded.
    pub a: Encoding,
    /// True if the rows of A have scales of their own.
    pub row_scales: bool,
    /// B's format.
    pub format: Format,
    /// Type of the values.
    pub input: FloatType,
    /// Type of the output.
    pub output: FloatType,
    /// The transform, if any.
    pub transform: Option<TransformKind>,
    /// M, N and K.
    pub shape: [usize; 3],
    /// Data family of both matrices.
    pub data: String,
}

/// A call in a changed floating-point environment, which must be refused.
#[derive(Debug, Clone)]
pub struct EnvironmentCase {
    /// What is changed: `ftz`, `daz`, `down`, `up`, `toward-zero`.
    pub change: String,
    /// What is called.
    pub call: Call,
    /// Format of the operands.
    pub format: Format,
}

/// Entry points that compute in floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A quantizer.
    Quantize,
    /// A matmul.
    Matmul,
    /// Partial sums.
    Partial,
    /// A forward of a backend with operands of its own.
    Forward,
    /// Every function of the core that checks.
    Core,
}

/// A function of the core.
#[derive(Debug, Clone)]
pub struct CoreCase {
    /// Which.
    pub check: CoreCheck,
    /// Rows and columns.
    pub shape: [usize; 2],
}

/// Functions of the core that backends share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreCheck {
    /// The 128x4 scale layout, both directions.
    Swizzle,
    /// Padding of K.
    Pad,
    /// Packing and unpacking of codes.
    Pack,
    /// f32 to codes and scale bytes, around every midpoint.
    Encode,
    /// Every code and scale byte.
    Decode,
    /// The fused multiply-add.
    Fma,
    /// Packed matrices to values.
    Dequantize,
    /// Scales and elements of MXINT8, at every exponent.
    Int8,
}

/// What registered backends declare about themselves: shapes and spreads to test around.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Tile sizes in M.
    pub m: Vec<usize>,
    /// Tile sizes in N.
    pub n: Vec<usize>,
    /// Joint exponent spreads up to which a kernel is exact.
    pub spreads: Vec<u32>,
}

impl QuantizeCase {
    /// The inputs.
    ///
    /// # Errors
    /// What the core says to a shape that makes no sense.
    pub fn data(&self, id: &str, rules: &Rules) -> Result<QuantizeData, fp4_core::Error> {
        let mut random = Random::of(id);
        let shape = self.spec.shape(self.shape[0], self.shape[1])?;
        let given = (self.given)
            .then(|| given_scales(&mut random, self.spec.scale_type(), shape.scales_len()));
        let setting = Setting {
            rules,
            shape: self.shape,
            ty: self.input,
            spec: &self.spec,
            given: given.as_deref(),
        };
        let mut x = values(&self.data, &mut random, &setting);
        let transform = self.transform.map(|kind| {
            let blocks = kind.per_block.then_some(self.shape[1] / kind.block);
            transform(&self.data, &mut random, &setting, kind.block, blocks, &mut x)
        });
        Ok(QuantizeData { x, transform, given })
    }
}

impl MatmulCase {
    /// The operands A (M, K) and B (N, K).
    ///
    /// # Errors
    /// What the core says to a shape that makes no sense.
    pub fn data(&self, id: &str) -> Result<[PackedMatrix; 2], fp4_core::Error> {
        operands(&self.data, &mut Random::of(id), (self.a, self.format), self.shape)
    }

    /// Row scales and bias, as far as there are, for a product whose sums are `sums`, row-major.
    /// Most are of a size at which they and the order of the steps change the output.
    pub fn epilogue(&self, id: &str, sums: &[f64]) -> [Option<Vec<f32>>; 2] {
        let mut random = Random::of(&format!("{id}/epilogue"));
        let [m, n, _] = self.shape;
        let special = |random: &mut Random| {
            let tiny = f32::from_bits(1 + random.below(1 << 20) as u32);
            let [nan, inf] = [f32::from_bits(0x7F80_0001), f32::INFINITY];
            random.pick(&[0.0, -0.0, tiny, -tiny, 3e38, -3e38, inf, -inf, nan])
        };
        let row_scales: Option<Vec<f32>> = self.row_scales.then(|| {
            let usual = |random: &mut Random| random.unit() as f32 * 2f32.powi(random.range(-4, 4));
            let one = |random: &mut Random| match random.one_in(12) {
                true => special(random),
                false => usual(random),
            };
            (0..m).map(|_| one(&mut random)).collect()
        });
        let bias = self.bias.then(|| {
            let mut usual = |j: usize| {
                let i = if m == 0 { 0 } else { random.below(m) };
                let scale = row_scales.as_ref().map_or(1.0, |r| r.get(i).copied().unwrap_or(1.0));
                let y = sums.get(i * n + j).copied().unwrap_or(0.0) as f32 * (self.alpha * scale);
                match (random.below(12), y.is_finite() && y != 0.0) {
                    (0, _) => special(&mut random),
                    // What cancels the product in one row but for its rounding.
                    (1, true) => -y,
                    (_, true) => y * random.gauss(),
                    (_, false) => random.gauss(),
                }
            };
            (0..n).map(&mut usual).collect()
        });
        [row_scales, bias]
    }
}

impl PairCase {
    /// The quantizations of A and B.
    pub fn sides(&self) -> [QuantizeCase; 2] {
        let [m, n, k] = self.shape;
        let spec = |encoding| {
            let spec = QuantSpec::of(encoding);
            // Of A alone, and of NVFP4, which has them.
            spec.with_row_scales().ok().filter(|_| self.row_scales).unwrap_or(spec)
        };
        let a = (spec(self.a), m);
        [a, (QuantSpec::of(self.format.into()), n)].map(|(spec, rows)| QuantizeCase {
            spec,
            input: self.input,
            transform: self.transform,
            given: false,
            shape: [rows, k],
            data: self.data.clone(),
            threads: 0,
        })
    }
}
