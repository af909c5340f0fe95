//! Scale rules: how a group's scale byte is found from its values.
//!
//! The contract's own is *nearest* ([C4.2]); activations use no other. The others are for weights:
//! a scale byte is stored beside the codes, so any rule that writes one makes a legal operand. They
//! are named here; [`reference::group_scale`](crate::reference::group_scale) computes them.
//!
//! In every rule `amax` is the group's largest magnitude, `gs` the global scale, every step one f32
//! operation, `up(s)` the least power of two that is at least s, `down(s)` the greatest that is at
//! most s, the result clamped as [C2] clamps. Only *nearest* reads `ss`; the others have their own.
//!
//! ```text
//!                      e8m0 (MXFP4)                       e4m3 (NVFP4)
//! nearest              encode(amax / (ss * gs))           encode(amax / (ss * gs))
//! floor                down(amax / gs) / 4                -
//! rceil                up((amax / 6) / gs)                -
//! even                 as floor; twice that where the     -
//!                      mantissa of amax / gs >= 1.75
//! search               that of least squared error of     that of least squared error of all
//!                      floor's, the one below and above   bytes 0x00 to 0x7E
//! four-six-mse         -                                  s = encode(amax / (6 * gs)), or
//! four-six-mse-448                                        encode(1.5 * amax / (6 * gs)) if its
//!                                                         squared error is less
//! four-six-mae         -                                  the same by the sum of |error|
//! four-six-mae-448
//! modelopt             2^ceil(log2((amax / 6) / gs))      encode(amax / (6 * gs)), 2^-9 or more;
//!                                                         1 where that is 0
//! compressed-tensors   as even                            encode((1 / gs) * (amax / 6)); 0.125
//!                                                         where that is 0
//! ggml                 2^(floor(log2(amax / gs)) - 2)     half-up((amax / 6) / gs)
//! mlx                  up((amax / 6) / gs); 1 where       encode((amax / 6) / gs)
//!                      that is 0
//! ```
//!
//! Logarithms are rounded to f32, as those libraries compute them. Exponents are clamped last. The
//! codes that go with a rule ([`ScaleRule::tie`]) have ties toward zero for `ggml`, `mlx` and the
//! MXFP4 of `modelopt`, and to even for all others.
//!
//! The *global scale* that goes with a rule ([`ScaleRule::global_scale`]), for a tensor of largest
//! magnitude A: MXFP4 1/3 for `nearest` and 1 for all others; NVFP4 1 for `ggml` and `mlx`, which
//! have none, 1 / (2688 * (1 / A)) for `compressed-tensors`, which divides by what it stores, A /
//! 1536 (256 * 6) for `four-six-mse` and `four-six-mae`, and A / 2688 (448 * 6) for the rest.
//!
//! An *error* is that of the group as it would be dequantized: |x| - v * d in f32, where v is the
//! nearest magnitude of e2m1, ties to even, of |x| / d and d = decode(byte) * gs. Sums of errors
//! are in f64, in four lanes (element i in lane i mod 4), then (0 + 1) + (2 + 3). Of equal errors
//! the least byte is taken, in `four-six` that of 6. A group with NaN or infinite values has no
//! error: it gets the byte of *nearest* with the usual ss.
//!
//! *Half-up*, of ggml: to the nearest e4m3, of two equals the larger; 0 below 2^-10; 448 from 256
//! on.
//!
//! Sources. `floor`: OCP Microscaling Formats (MX) v1.0, section 6.3. `rceil`: the block
//! quantization of NVIDIA cuBLAS ("1D block scaling") and torchao 0.18 `_to_mx_rceil`. `even`:
//! torchao 0.18 `ScaleCalculationMode.EVEN`. `four-six`: J. Cook et al., "Four Over Six", arXiv
//! 2512.02010, and its reference quantizer (mit-han-lab/fouroversix), which selects in f32.
//! `modelopt`: NVIDIA ModelOpt 0.47 `MXFP4QTensor` and `NVFP4QTensor`. `compressed-tensors`: 0.20
//! `calculate_qparams`, `generate_mx_scales`, `generate_gparam`. `ggml`: 0.21, as gguf 0.19 and
//! `quantize_row_nvfp4_ref` have it. `mlx`: 0.32.4 `mx.quantize` on the CPU. What bytes of these
//! libraries differ all the same is counted in the tests of quant-linear.
//!
//! Worked example, MXFP4, gs = 1, a group whose largest magnitude is 7 (1.75 * 4): `floor` takes 4
//! / 4 = 1 (7 is clipped to 6), `even` 2, `rceil` up(7 / 6) = 2, `nearest` with ss = 4 encode(1.75)
//! = 2. With largest magnitude 6: 1, 1, 1 and encode(1.5) = 2: a tie that goes up, so that
//! *nearest* loses half the codes of a group that is in the format already.
//!
//! [C2]: crate::contract#c2
//! [C4.2]: crate::contract#c4.2

use crate::e2m1::TieMode;
use crate::error::Error;
use crate::format::{Format, ScaleType};

/// How a group's scale byte is found from its values (C4.2): the table is in the module's text,
/// and below, each rule in words.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScaleRule {
    /// `encode(amax / (ss * gs))`: the contract's rule, nearest by C2.
    #[default]
    Nearest,
    /// e8m0: the power of two below amax, over 4, that below the largest element; amax up to 7.99
    /// units is clipped to 6. OCP MX v1.0, section 6.3.
    Floor,
    /// e8m0: the least power of two under which amax is not clipped.
    Rceil,
    /// e8m0: as floor, but one more where the mantissa of amax is 1.75 or more, where 8 would be
    /// nearer than 6.
    Even,
    /// The byte of the least squared error: of three (e8m0), of all (e4m3).
    Search,
    /// e4m3: the byte that takes amax to 6, or that which takes it to 4, by squared error; global
    /// scale A / 1536, so that the largest group has both. arXiv 2512.02010.
    FourSixMse,
    /// The same by the mean of the errors' magnitudes.
    FourSixMae,
    /// As four-six-mse, under the global scale A / 2688.
    FourSixMse448,
    /// As four-six-mae, under the global scale A / 2688.
    FourSixMae448,
    /// As NVIDIA ModelOpt 0.47.
    ModelOpt,
    /// As compressed-tensors 0.20, which llm-compressor uses.
    CompressedTensors,
    /// As ggml 0.21, which llama.cpp uses.
    Ggml,
    /// As MLX 0.32: the MXFP4 of rceil.
    Mlx,
}

impl ScaleRule {
    /// All rules.
    pub const ALL: [ScaleRule; 13] = [
        ScaleRule::Nearest,
        ScaleRule::Floor,
        ScaleRule::Rceil,
        ScaleRule::Even,
        ScaleRule::Search,
        ScaleRule::FourSixMse,
        ScaleRule::FourSixMae,
        ScaleRule::FourSixMse448,
        ScaleRule::FourSixMae448,
        ScaleRule::ModelOpt,
        ScaleRule::CompressedTensors,
        ScaleRule::Ggml,
        ScaleRule::Mlx,
    ];

    /// True if the rule writes scale bytes of this type.
    pub const fn is_for(self, scale: ScaleType) -> bool {
        match self {
            ScaleRule::Nearest
            | ScaleRule::Search
            | ScaleRule::ModelOpt
            | ScaleRule::CompressedTensors
            | ScaleRule::Ggml
            | ScaleRule::Mlx => true,
            ScaleRule::Floor | ScaleRule::Rceil | ScaleRule::Even => {
                matches!(scale, ScaleType::E8M0)
            }
            ScaleRule::FourSixMse
            | ScaleRule::FourSixMae
            | ScaleRule::FourSixMse448
            | ScaleRule::FourSixMae448 => matches!(scale, ScaleType::E4M3),
        }
    }

    /// The rule in a few words, for people.
    pub const fn about(self) -> &'static str {
        match self {
            ScaleRule::Nearest => "the contract's: nearest to amax / (ss * gs)",
            ScaleRule::Floor => "OCP MX v1.0: the power of two below amax, over 4",
            ScaleRule::Rceil => "the least power of two under which amax is not clipped",
            ScaleRule::Even => "as floor, one more from a mantissa of 1.75 up",
            ScaleRule::Search => "the byte of the least squared error",
            ScaleRule::FourSixMse => "amax to 6 or to 4, by squared error",
            ScaleRule::FourSixMae => "amax to 6 or to 4, by mean error",
            ScaleRule::FourSixMse448 => "four-six-mse under the usual global scale",
            ScaleRule::FourSixMae448 => "four-six-mae under the usual global scale",
            ScaleRule::ModelOpt => "as NVIDIA ModelOpt writes",
            ScaleRule::CompressedTensors => "as compressed-tensors (llm-compressor) writes",
            ScaleRule::Ggml => "as ggml (llama.cpp) writes",
            ScaleRule::Mlx => "as MLX writes",
        }
    }

    /// Checks that the rule writes scale bytes of this type.
    ///
    /// # Errors
    /// [`Error::ScaleRule`].
    pub const fn expect_for(self, scale: ScaleType) -> Result<(), Error> {
        match self.is_for(scale) {
            true => Ok(()),
            false => Err(Error::ScaleRule { rule: self, scale }),
        }
    }

    /// The tie mode of the codes that goes with the rule.
    pub const fn tie(self, scale: ScaleType) -> TieMode {
        match (self, scale) {
            (ScaleRule::Ggml | ScaleRule::Mlx, _) | (ScaleRule::ModelOpt, ScaleType::E8M0) => {
                TieMode::Zero
            }
            _ => TieMode::Even,
        }
    }

    /// True if the global scale that goes with the rule is derived from the largest magnitude of
    /// the tensor.
    pub const fn needs_amax(self, format: Format) -> bool {
        matches!(format, Format::NvFp4) && !matches!(self, ScaleRule::Ggml | ScaleRule::Mlx)
    }
}
