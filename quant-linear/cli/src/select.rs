//! Which tensors are quantized: a default rule by name, globs to replace or narrow it, and what a
//! tensor must be like.
//!
//! ```text
//! name    --include given: matches one of them; else `*.weight` of rank 2 and not kept by KEPT
//! then    --exclude removes
//! then    F32 / F16 / BF16, rank 2, K whole groups and whole transform blocks; else
//!             matched by --include: an error that names the tensor
//!             by the default rule: copied as it is, and listed with the reason
//! ```

use anyhow::{Context, Result, bail};
use fp4_core::{FloatType, Format};
use globset::{Glob, GlobSet, GlobSetBuilder};
use quant_linear::state;
use safetensors::tensor::TensorInfo;

/// Names that the default rule keeps dense: embeddings and output heads.
pub(crate) const KEPT: [&str; 10] = [
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
pub(crate) struct Rule {
    include: Option<GlobSet>,
    include_globs: Vec<(Glob, String)>,
    exclude: GlobSet,
    kept: GlobSet,
    group: usize,
    block: Option<usize>,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
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
    Skip(String),
    /// It is copied as it is.
    Copy,
}

impl Rule {
    /// Compiles the rule for a format and an optional transform block.
    ///
    /// # Errors
    /// A glob that does not parse.
    pub(crate) fn new(
        include: &[String],
        exclude: &[String],
        format: Format,
        block: Option<usize>,
    ) -> Result<Self> {
        let include_globs: Vec<_> =
            include.iter().map(|g| Ok((glob(g)?, g.clone()))).collect::<Result<_>>()?;
        Ok(Rule {
            include: (!include.is_empty()).then(|| globs(include)).transpose()?,
            include_globs,
            exclude: globs(exclude)?,
            kept: globs(&KEPT)?,
            group: format.group().get(),
            block,
        })
    }

    /// Decides about one tensor.
    ///
    /// # Errors
    /// A tensor named by `--include` that cannot be quantized.
    pub(crate) fn decide(&self, name: &str, info: &TensorInfo) -> Result<Fate> {
        let explicit = match &self.include {
            Some(include) if !include.is_match(name) => return Ok(Fate::Copy),
            Some(_) => true,
            None if prefix(name).is_none() || info.shape.len() != 2 => return Ok(Fate::Copy),
            None => false,
        };
        if self.exclude.is_match(name) {
            return Ok(Fate::Skip("matches --exclude".into()));
        }
        if !explicit && self.kept.is_match(name) {
            return Ok(Fate::Skip(
                "an embedding or output head by its name; --include quantizes it".into(),
            ));
        }
        match self.quantizable(name, info) {
            Ok(fate) => Ok(fate),
            Err(reason) if explicit => bail!(
                "tensor `{name}` matches --include and cannot be quantized: {reason}; make the \
                 pattern narrower, or leave it out with --exclude '{name}'"
            ),
            Err(reason) => Ok(Fate::Skip(reason)),
        }
    }

    /// What the tensor becomes, or why it cannot be quantized.
    fn quantizable(&self, name: &str, info: &TensorInfo) -> Result<Fate, String> {
        let Some(prefix) = prefix(name) else {
            return Err("its name does not end in `.weight`".into());
        };
        let Some(float_type) = state::float_type(info.dtype) else {
            return Err(format!("it is {}, expected F32, F16 or BF16", info.dtype));
        };
        let [rows, k] = *info.shape else {
            return Err(format!("it has shape {:?}, expected two dimensions", info.shape));
        };
        for (what, size) in [("group", Some(self.group)), ("transform block", self.block)] {
            if let Some(size) = size
                && !k.is_multiple_of(size)
            {
                return Err(format!("K = {k} is not a multiple of the {what} of {size}"));
            }
        }
        Ok(Fate::Quantize { prefix: prefix.into(), rows, k, float_type })
    }

    /// The include patterns that match none of `names`.
    pub(crate) fn unmatched<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Vec<&str> {
        let matches_none = |g: &Glob| !names.clone().any(|name| g.compile_matcher().is_match(name));
        let unmatched = self.include_globs.iter().filter(|(g, _)| matches_none(g));
        unmatched.map(|(_, text)| text.as_str()).collect()
    }
}

/// The layer's prefix: the name without `.weight`; a bare `weight` has the empty one.
fn prefix(name: &str) -> Option<&str> {
    if name == "weight" { Some("") } else { name.strip_suffix(".weight") }
}

fn glob(pattern: &str) -> Result<Glob> {
    Glob::new(pattern).with_context(|| {
        format!("`{pattern}` is not a glob; use `*`, `?`, `[abc]` and `{{a,b}}` on tensor names")
    })
}

fn globs<S: AsRef<str>>(patterns: &[S]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern.as_ref())?);
    }
    set.build().context("the patterns together are too large")
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;

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
        assert!(matches!(fate(Dtype::F64, &[8, 128]), Fate::Skip(r) if r.contains("F64")));
        assert!(matches!(fate(Dtype::F32, &[8, 48]), Fate::Skip(r) if r.contains("group of 32")));
        assert!(matches!(fate(Dtype::F32, &[8, 96]), Fate::Skip(r) if r.contains("block of 64")));
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
        let error = rule.decide("b.bias", &info(Dtype::F32, &[128])).unwrap_err().to_string();
        assert!(error.contains("`b.bias`") && error.contains("--exclude"), "{error}");
        assert_eq!(rule.unmatched(["b.weight"].into_iter()), ["*wte*"]);
    }

    #[test]
    fn a_bad_glob_is_an_error() {
        let bad = Rule::new(&["a[".into()], &[], Format::NvFp4, None).unwrap_err();
        assert!(format!("{bad:#}").contains("`a[`"));
    }
}
