//! Which tensors are quantized: a default rule by name, globs to replace or narrow it, and what a
//! tensor must be like.
//!
//! ```text
//! candidate    named `*.weight`, rank 2
//! quantizable  a candidate in F32 / F16 / BF16, K whole groups and whole transform blocks
//!
//! nothing included                     candidates, but those kept by KEPT
//! an include with wildcards            candidates that match; all else that matches is copied
//! an include that is a full name       that tensor, whatever it is
//! then    exclude removes
//! then    quantizable, or else
//!             named in full: an error that names the tensor
//!             any other: copied as it is, and listed with the reason
//! ```
//!
//! A pattern that matches no tensor, or none that is quantizable, is an error.
//!
//! Worked example: including `l.*` on `l.weight` (8, 64), `l.bias` (8) and `l.norm.weight` (64)
//! quantizes the first and copies the others without a word; including `l.bias` is an error.

use crate::checkpoint::TensorInfo;
use crate::error::{ModelError, Reason};
use crate::layer::state::{self, Scalars};
use fp4_core::{FloatType, Format, PackedShape};
use globset::{Glob, GlobSet, GlobSetBuilder};

/// Names that the default rule keeps dense: embeddings and output heads.
pub const KEPT: [&str; 10] = [
    "*embed*",
    "*embd*",
    "*wte*",
    "*wpe*",
    "*lm_head*",
    "*output_projection*",
    "*classifier*",
    "cls.*",
    "output.weight",
    "score.weight",
];

/// The rule, compiled.
#[derive(Debug)]
pub struct Rule {
    include: Vec<Include>,
    exclude: GlobSet,
    kept: GlobSet,
    format: Format,
    block: Option<usize>,
}

/// One pattern to include.
#[derive(Debug)]
struct Include {
    text: String,
    matcher: GlobSet,
    /// A pattern, and not the full name of a tensor.
    wildcards: bool,
}

/// A tensor's name and header.
pub type NamedTensor<'a> = (&'a str, &'a TensorInfo);

/// How many tensors an error names as examples.
pub(super) const EXAMPLES: usize = 5;

/// What becomes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is quantized, and its layer's tensors are named under `prefix`.
    Quantize {
        /// The tensor's name without `.weight`.
        prefix: String,
        /// Out features.
        rows: usize,
        /// In features.
        k: usize,
        /// The type of its values.
        float_type: FloatType,
    },
    /// It looks like a linear weight and is copied as it is, for this reason.
    Skip(Reason),
    /// It is copied as it is.
    Copy,
}

impl Rule {
    /// Compiles the rule for a format and an optional transform block.
    ///
    /// # Errors
    /// A glob that does not parse.
    pub fn new(
        include: &[String],
        exclude: &[String],
        format: Format,
        block: Option<usize>,
    ) -> Result<Self, ModelError> {
        let include = include.iter().map(|text| {
            Ok(Include {
                text: text.clone(),
                matcher: globs(&[text])?,
                wildcards: text.contains(['*', '?', '[', '{']),
            })
        });
        Ok(Rule {
            include: include.collect::<Result<_, ModelError>>()?,
            exclude: globs(exclude)?,
            kept: globs(&KEPT)?,
            format,
            block,
        })
    }

    /// Decides about one tensor.
    ///
    /// # Errors
    /// A tensor that is included by its full name and that cannot be quantized.
    pub fn decide(&self, name: &str, info: &TensorInfo) -> Result<Fate, ModelError> {
        let mut matching = self.include.iter().filter(|i| i.matcher.is_match(name)).peekable();
        if !self.include.is_empty() && matching.peek().is_none() {
            return Ok(Fate::Copy);
        }
        let named = matching.any(|i| !i.wildcards);
        if !named && (prefix(name).is_none() || info.shape.len() != 2) {
            return Ok(Fate::Copy);
        }
        if self.exclude.is_match(name) {
            return Ok(Fate::Skip(Reason::Excluded));
        }
        if self.include.is_empty() && self.kept.is_match(name) {
            return Ok(Fate::Skip(Reason::Kept));
        }
        match self.quantizable(name, info) {
            Ok(fate) => Ok(fate),
            Err(reason) if named => Err(ModelError::Named { name: name.into(), reason }),
            Err(reason) => Ok(Fate::Skip(reason)),
        }
    }

    /// What the tensor becomes, or why it cannot be quantized.
    fn quantizable(&self, name: &str, info: &TensorInfo) -> Result<Fate, Reason> {
        let Some(prefix) = prefix(name) else {
            return Err(Reason::Name);
        };
        let Some(float_type) = state::float_type(info.dtype) else {
            return Err(Reason::Type(info.dtype));
        };
        let [rows, k] = *info.shape else {
            return Err(Reason::Rank(info.shape.clone()));
        };
        let group = self.format.group().get();
        for (what, size) in [("group", Some(group)), ("transform block", self.block)] {
            if let Some(size) = size
                && !k.is_multiple_of(size)
            {
                return Err(Reason::NotMultiple { k, what, size });
            }
        }
        if k == 0 {
            self.loadable(rows)?;
        }
        Ok(Fate::Quantize { prefix: prefix.into(), rows, k, float_type })
    }

    /// Would the library load a layer of so many rows and no columns? They cost no file bytes, so
    /// nothing else bounds them.
    fn loadable(&self, rows: usize) -> Result<(), Reason> {
        let scalars = Scalars {
            weight_global_scale: 1.0,
            activation_global_scale: None,
            activation_scale_scale: None,
        };
        let shape = PackedShape::of(self.format, rows, 0).map_err(crate::error::Error::from);
        let check = shape.and_then(|shape| state::check(shape, None, &scalars));
        check.map(drop).map_err(|e| Reason::Unloadable(e.to_string()))
    }

    /// Checks that every pattern to include finds something to quantize, before those to exclude
    /// have their say.
    ///
    /// # Errors
    /// A pattern that matches no tensor, or none that can be quantized.
    pub fn check_includes<'a>(
        &self,
        tensors: impl Iterator<Item = NamedTensor<'a>> + Clone,
    ) -> Result<(), ModelError> {
        for Include { text, matcher, wildcards } in &self.include {
            let matching: Vec<_> = tensors.clone().filter(|(n, _)| matcher.is_match(n)).collect();
            if matching.is_empty() {
                return Err(ModelError::NoMatch { glob: text.clone() });
            }
            let judged = matching.iter().map(|(name, info)| (name, self.quantizable(name, info)));
            if *wildcards && judged.clone().all(|(_, fate)| fate.is_err()) {
                let examples = judged
                    .take(EXAMPLES)
                    .filter_map(|(name, fate)| Some(((*name).to_string(), fate.err()?)));
                return Err(ModelError::NoneQuantizable {
                    glob: text.clone(),
                    examples: examples.collect(),
                    more: matching.len() > EXAMPLES,
                });
            }
        }
        Ok(())
    }
}

/// The layer's prefix: the name without `.weight`; a bare `weight` has the empty one.
fn prefix(name: &str) -> Option<&str> {
    if name == "weight" { Some("") } else { name.strip_suffix(".weight") }
}

/// How deep the braces of a pattern may nest, and how long it may be: past that the compiler of
/// patterns runs out of stack or memory.
const MAX_BRACES: usize = 16;
const MAX_PATTERN: usize = 4096;

fn glob(pattern: &str) -> Result<Glob, ModelError> {
    if pattern.len() > MAX_PATTERN {
        return Err(ModelError::GlobLen { len: pattern.len(), most: MAX_PATTERN });
    }
    let (mut depth, mut deepest) = (0usize, 0);
    for c in pattern.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_BRACES {
        return Err(ModelError::GlobBraces { deepest, most: MAX_BRACES });
    }
    Glob::new(pattern).map_err(|e| ModelError::Glob { glob: pattern.into(), reason: e.to_string() })
}

/// Patterns compiled together: unlike one alone, a set says so when it becomes too large.
fn globs<S: AsRef<str>>(patterns: &[S]) -> Result<GlobSet, ModelError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern.as_ref())?);
    }
    set.build().map_err(|e| ModelError::GlobSize(e.to_string()))
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    fn info(dtype: Dtype, shape: &[usize]) -> TensorInfo {
        TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (0, 0) }
    }

    fn rule(include: &[&str], exclude: &[&str]) -> Rule {
        let owned = |g: &[&str]| g.iter().map(|&g| g.to_string()).collect::<Vec<_>>();
        Rule::new(&owned(include), &owned(exclude), Format::MxFp4, Some(64)).unwrap()
    }

    fn decide(rule: &Rule, name: &str) -> Fate {
        rule.decide(name, &info(Dtype::F32, &[8, 128])).unwrap()
    }

    #[test]
    fn the_default_rule_keeps_embeddings_and_heads() {
        let rule = rule(&[], &[]);
        for name in
            ["a.b.weight", "weight", "h.0.attn.output.weight", "encoder.output.dense.weight"]
        {
            assert!(matches!(decide(&rule, name), Fate::Quantize { .. }), "{name}");
        }
        for name in [
            "embeddings.word_embeddings.weight",
            "model.embed_tokens.weight",
            "transformer.wte.weight",
            "transformer.wpe.weight",
            "lm_head.weight",
            "output.weight",
            "score.weight",
            "token_embd.weight",
            "cls.predictions.decoder.weight",
        ] {
            assert!(matches!(decide(&rule, name), Fate::Skip(_)), "{name}");
        }
        for name in ["a.bias", "a.weight_scale", "aweight"] {
            assert_eq!(decide(&rule, name), Fate::Copy, "{name}");
        }
    }

    #[test]
    fn rank_and_type_and_k() {
        let rule = rule(&[], &[]);
        let fate = |dtype, shape: &[usize]| rule.decide("a.weight", &info(dtype, shape)).unwrap();
        assert_eq!(fate(Dtype::F32, &[128]), Fate::Copy);
        assert_eq!(fate(Dtype::F32, &[1, 2, 128]), Fate::Copy);
        assert!(
            matches!(fate(Dtype::F64, &[8, 128]), Fate::Skip(r) if r.to_string().contains("F64"))
        );
        assert!(
            matches!(fate(Dtype::F32, &[8, 48]), Fate::Skip(r) if r.to_string().contains("group of 32"))
        );
        assert!(
            matches!(fate(Dtype::F32, &[8, 96]), Fate::Skip(r) if r.to_string().contains("block of 64"))
        );
        for shape in [[0, 128], [8, 0]] {
            assert!(matches!(fate(Dtype::BF16, &shape), Fate::Quantize { .. }), "{shape:?}");
        }
    }

    #[test]
    fn include_replaces_the_name_rule_and_exclude_removes() {
        let rule = rule(&["*wte*", "b.*"], &["b.c.*"]);
        assert!(matches!(decide(&rule, "wte.weight"), Fate::Quantize { .. }));
        assert!(matches!(decide(&rule, "b.weight"), Fate::Quantize { .. }));
        assert!(matches!(decide(&rule, "b.c.weight"), Fate::Skip(_)));
        assert_eq!(decide(&rule, "a.weight"), Fate::Copy);
        // What a pattern sweeps in and is no linear weight is left alone.
        assert_eq!(rule.decide("b.bias", &info(Dtype::F32, &[128])).unwrap(), Fate::Copy);
        assert_eq!(rule.decide("b.weight", &info(Dtype::F32, &[128])).unwrap(), Fate::Copy);
        let odd = rule.decide("b.weight", &info(Dtype::F64, &[8, 128])).unwrap();
        assert!(matches!(odd, Fate::Skip(reason) if reason.to_string().contains("F64")));
        let good = info(Dtype::F32, &[8, 128]);
        let check = |names: &[&'static str]| {
            let tensors: Vec<_> = names.iter().map(|name| (*name, &good)).collect();
            rule.check_includes(tensors.into_iter()).map_err(|e| e.to_string())
        };
        assert_eq!(check(&["b.weight", "wte.weight"]), Ok(()));
        let error = check(&["b.weight"]).unwrap_err();
        assert!(error.contains("`*wte*` matches no tensor;"), "{error}");
        let error = check(&["b.bias", "wte.weight"]).unwrap_err();
        assert!(error.contains("`b.*`") && error.contains("`b.bias`: its name"), "{error}");
    }

    #[test]
    fn a_full_name_is_taken_at_its_word() {
        let rule = rule(&["b.bias", "b.*"], &[]);
        let error = rule.decide("b.bias", &info(Dtype::F32, &[128])).unwrap_err().to_string();
        assert!(error.contains("`b.bias` is included by its name"), "{error}");
        assert_eq!(rule.decide("b.other", &info(Dtype::F32, &[128])).unwrap(), Fate::Copy);
    }

    #[test]
    fn a_bad_glob_is_an_error() {
        let bad = Rule::new(&["a[".into()], &[], Format::NvFp4, None).unwrap_err();
        assert!(bad.to_string().contains("`a[`"));
    }

    #[test]
    fn globs_that_nest_or_grow_too_much_are_errors_and_no_panic() {
        let compile = |glob: String| {
            let rules = [Rule::new(std::slice::from_ref(&glob), &[], Format::NvFp4, None), {
                Rule::new(&[], &[glob], Format::NvFp4, None)
            }];
            rules.map(|rule| rule.map(|_| ()).map_err(|e| e.to_string()))
        };
        let nested = |levels| format!("{}a{}", "{".repeat(levels), "}".repeat(levels));
        for result in compile(nested(16)) {
            assert_eq!(result, Ok(()));
        }
        for levels in [17, 124, 300, 2000] {
            for result in compile(nested(levels)) {
                assert!(result.unwrap_err().contains(&format!("{levels} deep")), "{levels}");
            }
        }
        for result in compile("*".repeat(5000)) {
            assert!(result.unwrap_err().contains("5000 bytes"));
        }
        // Within the bounds, and yet too much for the compiler or not: an answer, not a panic.
        for glob in ["{a,b,c,d}".repeat(400), "[\u{1}-\u{10ffff}]".repeat(200), "**/".repeat(1000)]
        {
            compile(glob).iter().flat_map(|r| r.as_ref().err()).for_each(|e| {
                assert!(e.contains("glob"), "{e}");
            });
        }
    }
}
