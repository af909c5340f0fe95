//! Profiles: which cases there are, as data files (`conformance/profiles/*.json`).
//!
//! A profile is a list of *sets*. A set names its axes and how many cases to draw; without a number
//! it means the whole product of the axes. Drawing is deterministic, and in every stretch of cases
//! as long as an axis every value of the axis occurs once, so that no value is left to chance:
//!
//! ```text
//! case i takes from an axis of length L the value permutation[i / L][i % L]
//! ```
//!
//! A drawn combination that makes no sense (a global scale too large for the scale type) is left
//! out, and so is a repeated id.

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// Which cases to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The profile's name.
    pub name: String,
    /// Sets of quantizations.
    pub quantize: Vec<QuantizeSet>,
    /// Sets of matmuls.
    pub matmul: Vec<MatmulSet>,
    /// Sets of products in one call.
    #[serde(default)]
    pub grouped: Vec<GroupedSet>,
    /// Sets of products split over ranks.
    #[serde(default)]
    pub sharded: Vec<ShardedSet>,
    /// Sets of quantizations followed by a matmul.
    pub pair: Vec<PairSet>,
    /// Sets of layouts and conversions that have one home, in the core.
    pub core: Vec<CoreSet>,
    /// Sets of calls in a changed floating-point environment.
    pub environment: Vec<EnvironmentSet>,
}

/// Axes of quantization cases.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeSet {
    /// Number of cases to draw; absent: all.
    pub sample: Option<usize>,
    /// `e8m0`, `e4m3`; or `mxint8`, for which groups, ties, settings and scales do not count.
    pub scale_types: Vec<String>,
    /// 16, 32, 64, 128.
    pub groups: Vec<usize>,
    /// `f32`, `f16`, `bf16`.
    pub inputs: Vec<String>,
    /// `even`, `zero`, `down`, `up`.
    pub ties: Vec<String>,
    /// Named global scales and scale-scales; `rows` and `rows-5` are row scales, of NVFP4 alone.
    pub settings: Vec<String>,
    /// `none`, `shared-BLOCK`, `blocks-BLOCK`.
    pub transforms: Vec<String>,
    /// `computed`, `given`.
    pub scales: Vec<String>,
    /// Rows.
    pub rows: Vec<usize>,
    /// K, rounded up to whole groups and blocks.
    pub ks: Vec<usize>,
    /// Data families.
    pub data: Vec<String>,
    /// Thread counts; 0 is the backend as it was registered.
    pub threads: Vec<usize>,
}

/// Axes of matmul cases.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulSet {
    /// Number of cases to draw; absent: all.
    pub sample: Option<usize>,
    /// `mxfp4`, `nvfp4`, `mxint8-mxfp4`, `mxint8-nvfp4`.
    pub formats: Vec<String>,
    /// M; `tile-1`, `tile` and `tile+1` are one less than, exactly and one more than each declared
    /// tile.
    pub ms: Vec<String>,
    /// N, in the same way.
    pub ns: Vec<String>,
    /// K, rounded up to whole groups.
    pub ks: Vec<usize>,
    /// Data families; `spread:bounds` is every declared bound, and one past it.
    pub data: Vec<String>,
    /// Named alphas.
    pub alphas: Vec<String>,
    /// `f32`, `f16`, `bf16`.
    pub outputs: Vec<String>,
    /// `whole`, `pad`, `rows`, `split-N`, `into-N`.
    pub ways: Vec<String>,
    /// `alpha` (alone, the default), `rows`, `bias`, `both`: what there is besides alpha.
    #[serde(default = "alpha_alone")]
    pub epilogues: Vec<String>,
    /// Thread counts; 0 is the backend as it was registered.
    pub threads: Vec<usize>,
}

/// Axes of cases of several products in one call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupedSet {
    /// Number of cases to draw; absent: all.
    pub sample: Option<usize>,
    /// `mxfp4`, `nvfp4`, `mxint8-mxfp4`, `mxint8-nvfp4`, or `mixed`, which takes turns with them
    /// and with shapes.
    pub formats: Vec<String>,
    /// Rows of each product, such as `0+1+17`; or `one-M`: three products of one A of M rows.
    pub rows: Vec<String>,
    /// N; `mixed` and `one-M` have some larger ones too.
    pub ns: Vec<usize>,
    /// K, rounded up to whole groups; `mixed` has larger ones too.
    pub ks: Vec<usize>,
    /// Data families.
    pub data: Vec<String>,
    /// `alpha` (alone), `rows`, `bias`, `both`: what most products have besides alpha.
    pub epilogues: Vec<String>,
    /// `f32`, `f16`, `bf16`, or `mixed`.
    pub outputs: Vec<String>,
    /// Thread counts; 0 is the backend as it was registered.
    pub threads: Vec<usize>,
}

/// Axes of cases whose K is split over ranks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardedSet {
    /// Number of cases to draw; absent: all.
    pub sample: Option<usize>,
    /// `mxfp4`, `nvfp4`, `mxint8-mxfp4`, `mxint8-nvfp4`.
    pub formats: Vec<String>,
    /// M.
    pub ms: Vec<usize>,
    /// N.
    pub ns: Vec<usize>,
    /// K, rounded up to whole groups.
    pub ks: Vec<usize>,
    /// Data families.
    pub data: Vec<String>,
    /// `alpha` (alone), `rows`, `bias`, `both`.
    pub epilogues: Vec<String>,
    /// `f32`, `f16`, `bf16`.
    pub outputs: Vec<String>,
    /// Number of ranks, with `-uneven` for shards of very different lengths: `3`, `5-uneven`.
    pub ranks: Vec<String>,
    /// In which order words are added: `chain`, `reverse`, `tree`, `ring`.
    pub orders: Vec<String>,
    /// `chosen`, or `wide` for every row.
    pub forms: Vec<String>,
}

/// Axes of cases that quantize two matrices and multiply them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSet {
    /// Number of cases to draw; absent: all.
    pub sample: Option<usize>,
    /// `mxfp4`, `nvfp4`, `mxint8-mxfp4`, `mxint8-nvfp4`; `nvfp4-rows` is with row scales.
    pub formats: Vec<String>,
    /// `f32`, `f16`, `bf16`.
    pub inputs: Vec<String>,
    /// `f32`, `f16`, `bf16`.
    pub outputs: Vec<String>,
    /// `none`, `shared-BLOCK`, `blocks-BLOCK`.
    pub transforms: Vec<String>,
    /// M.
    pub ms: Vec<usize>,
    /// N.
    pub ns: Vec<usize>,
    /// K, rounded up to whole groups and blocks.
    pub ks: Vec<usize>,
    /// Data families of values.
    pub data: Vec<String>,
}

/// Axes of cases of the core's own functions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreSet {
    /// `swizzle`, `pad`, `pack`, `encode`, `decode`, `fma`, `dequantize`, `int8`.
    pub checks: Vec<String>,
    /// Rows.
    pub rows: Vec<usize>,
    /// Columns (of scales, codes or elements).
    pub cols: Vec<usize>,
}

/// Axes of calls in a changed floating-point environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSet {
    /// `ftz`, `daz`, `down`, `up`, `toward-zero`.
    pub changes: Vec<String>,
    /// `quantize`, `matmul`, `partial`, `forward`, `core`.
    pub calls: Vec<String>,
    /// `mxfp4`, `nvfp4`.
    pub formats: Vec<String>,
}

fn alpha_alone() -> Vec<String> {
    vec!["alpha".to_owned()]
}

impl Profile {
    /// The profiles that come with the suite, by name.
    pub const NAMES: [&str; 3] = ["quick", "full", "exhaustive"];

    /// A profile that comes with the suite.
    pub fn named(name: &str) -> Option<Profile> {
        let json = match name {
            "quick" => include_str!("../../profiles/quick.json"),
            "full" => include_str!("../../profiles/full.json"),
            "exhaustive" => include_str!("../../profiles/exhaustive.json"),
            _ => return None,
        };
        serde_json::from_str(json).ok()
    }

    /// The profile that takes seconds.
    ///
    /// # Panics
    /// Never: a test reads every profile.
    pub fn quick() -> Profile {
        Profile::named("quick").expect("profiles/quick.json is a profile")
    }

    /// The same with one in `share` of its drawn cases: for slow hardware, and for emulators. Sets
    /// that are not drawn stay whole.
    #[must_use]
    pub fn one_in(mut self, share: usize) -> Profile {
        let quantize = self.quantize.iter_mut().map(|set| &mut set.sample);
        let matmul = self.matmul.iter_mut().map(|set| &mut set.sample);
        let grouped = self.grouped.iter_mut().map(|set| &mut set.sample);
        let sharded = self.sharded.iter_mut().map(|set| &mut set.sample);
        let pair = self.pair.iter_mut().map(|set| &mut set.sample);
        for sample in quantize.chain(matmul).chain(grouped).chain(sharded).chain(pair).flatten() {
            *sample = sample.div_ceil(share.max(1));
        }
        self
    }
}

/// Draws combinations: for each, one index into each axis.
pub(super) fn draw(seed: &str, lens: &[usize], sample: Option<usize>) -> Vec<Vec<usize>> {
    if lens.contains(&0) {
        return Vec::new();
    }
    let all = lens.iter().try_fold(1usize, |all, &len| all.checked_mul(len)).unwrap_or(usize::MAX);
    match sample {
        Some(sample) if sample < all => {
            let mut rows = vec![Vec::with_capacity(lens.len()); sample];
            for (axis, &len) in lens.iter().enumerate() {
                let mut random = Random::of(&format!("{seed}/{axis}"));
                for stretch in rows.chunks_mut(len) {
                    let order = random.order(len);
                    stretch.iter_mut().zip(order).for_each(|(row, value)| row.push(value));
                }
            }
            rows
        }
        _ => (0..all)
            .map(|mut i| {
                let digit = |&len: &usize| {
                    let digit = i % len;
                    i /= len;
                    digit
                };
                lens.iter().map(digit).collect()
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_readable() {
        for name in Profile::NAMES {
            assert_eq!(Profile::named(name).map(|p| p.name).as_deref(), Some(name));
        }
    }

    #[test]
    fn every_value_of_every_axis_is_drawn() {
        let lens = [2, 3, 7, 5];
        let rows = draw("test", &lens, Some(7));
        for (axis, &len) in lens.iter().enumerate() {
            for value in 0..len {
                assert!(rows.iter().any(|row| row[axis] == value), "{axis} {value}");
            }
        }
        assert_eq!(draw("test", &lens, None).len(), 210);
        assert!(draw("test", &[2, 0], Some(3)).is_empty());
    }
}
