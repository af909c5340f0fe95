//! Which tensors are quantized: a default by role, globs to replace or narrow it, a recipe, and
//! what a tensor must be like.
//!
//! ```text
//! candidate    named `*.weight`, rank 2; or one matrix for each expert, rank 3
//! quantizable  a candidate in F32 / F16 / BF16, or in F8_E4M3 with scales, K whole groups and
//!              whole transform blocks
//!
//! exclude                              never
//! a rule of the recipe                 its format and settings, or dense; the first that matches
//! nothing included                     candidates, but those that `roles` keeps
//! an include with wildcards            candidates that match; all else is copied
//! an include that is a full name       that tensor, whatever it is
//! then    quantizable, or else
//!             named in full: an error that names the tensor
//!             any other: copied as it is, and listed with the reason
//! ```
//!
//! Every tensor of two or more dimensions is either quantized or skipped with a reason. A pattern
//! that matches no tensor, or none that is quantizable, is an error; one that only keeps tensors
//! dense may match none, unless the request is strict, and is told of. Expert matrices of which
//! nothing tells whether they are (out, in) or (in, out) are an error, whatever chose them.
//!
//! Worked example: including `l.*` on `l.weight` (8, 64), `l.bias` (8) and `l.norm.weight` (64)
//! quantizes the first and copies the others without a word; including `l.bias` is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use fp4_core::PackedShape;
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{Tensor, TensorInfo};
use crate::error::{Error, ModelError, Reason};
use crate::layer::state::{self, Scalars};
use crate::layer::{ActivationEncoding, DenseOptions, StoredTransform};
use crate::model::dense::DenseSource;
use crate::model::pipeline::Pipeline;
use crate::model::recipe::{Recipe, Wanted};
use crate::model::roles::{Facts, Roles};
use crate::model::ties::Tie;

/// How a matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orientation {
    /// (out, in), as a linear layer: K is last.
    OutIn,
    /// (in, out), as `x @ W` reads it.
    InOut,
}

impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Orientation::OutIn => "(out, in)",
            Orientation::InOut => "(in, out)",
        })
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// How weights are quantized that no recipe says otherwise of.
    pub options: DenseOptions,
    /// Globs that replace the default choice.
    pub include: Vec<String>,
    /// Globs that narrow any choice.
    pub exclude: Vec<String>,
    /// Formats and settings by name.
    pub recipe: Option<Recipe>,
    /// Weights that share a global scale.
    pub ties: Vec<Tie>,
    /// How expert matrices are stored, whatever config.json says.
    pub experts: Option<Orientation>,
    /// How a calibration is used; `None`: weights are rounded to nearest.
    pub pipeline: Option<Arc<Pipeline>>,
    /// Is a chosen weight that cannot be quantized an error, and a pattern that matches nothing?
    pub strict: bool,
}

impl Request {
    /// The default choice, quantized with these options.
    pub fn new(options: DenseOptions) -> Self {
        let (include, exclude, ties) = (vec![], vec![], vec![]);
        Request {
            options,
            include,
            exclude,
            recipe: None,
            ties,
            experts: None,
            pipeline: None,
            strict: false,
        }
    }
}

/// The rule for the tensors of one checkpoint, compiled.
#[derive(Debug)]
pub struct Rule<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    roles: Roles,
    include: Vec<Include>,
    exclude: Vec<(String, GlobSet)>,
    recipe: Vec<Wanted>,
    options: Arc<DenseOptions>,
    pipeline: Option<Arc<Pipeline>>,
    experts: Option<Orientation>,
    recorded: BTreeMap<String, Orientation>,
}

/// One pattern to include.
#[derive(Debug)]
struct Include {
    text: String,
    matcher: GlobSet,
    /// A pattern, and not the full name of a tensor.
    wildcards: bool,
}

/// How many tensors an error names as examples.
pub(super) const EXAMPLES: usize = 5;

/// What becomes of a tensor.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is quantized.
    Quantize(Box<Chosen>),
    /// It has two or more dimensions and is copied as it is, for this reason.
    Skip(Reason),
    /// It is copied as it is.
    Copy,
}

/// A tensor to be quantized.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Its name without `.weight`. The layer's tensors are named under it, or under its numbers
    /// if it holds one matrix for each expert.
    pub prefix: String,
    /// Its values; the first matrix of several.
    pub(crate) source: DenseSource,
    /// Does it hold one matrix for each expert?
    pub experts: bool,
    /// How it is quantized.
    pub options: Arc<DenseOptions>,
    /// How a calibration is used.
    pub pipeline: Option<Arc<Pipeline>>,
}

impl Chosen {
    /// Number of matrices, their rows (out features) and columns (in features).
    pub fn shape(&self) -> [usize; 3] {
        [self.source.matrices(), self.source.rows(), self.source.k()]
    }

    /// True if the tensor holds (in, out).
    pub fn is_transposed(&self) -> bool {
        self.source.is_transposed()
    }
}

impl<'a> Rule<'a> {
    /// Compiles the rule for a request, a checkpoint's tensors and its config.json.
    ///
    /// # Errors
    /// Globs that do not parse, a recipe that cannot be followed.
    pub fn new(
        request: &Request,
        tensors: &'a BTreeMap<String, Tensor>,
        config: Option<&Value>,
    ) -> Result<Self, Error> {
        let include = request.include.iter().map(|text| {
            Ok(Include {
                text: text.clone(),
                matcher: globs(&[text])?,
                wildcards: text.contains(['*', '?', '[', '{']),
            })
        });
        let include = include.collect::<Result<_, ModelError>>()?;
        let exclude = request.exclude.iter().map(|text| Ok((text.clone(), globs(&[text])?)));
        let options = Arc::new(request.options.clone());
        let recipe = request.recipe.as_ref().map(|recipe| recipe.compile(&options)).transpose()?;
        let made = request.pipeline.as_ref().and_then(|pipeline| pipeline.transform_block());
        let mut own = recipe.iter().flatten().filter_map(|wanted| wanted.options.as_ref());
        if made.is_some() && own.any(|options| options.transform.is_some()) {
            let text = "a rule has a transform, and another is made for all layers; leave one out";
            return Err(ModelError::Recipe(text.into()).into());
        }
        Ok(Rule {
            tensors,
            roles: Roles::new(Facts::new(config, tensors))?,
            include,
            exclude: exclude.collect::<Result<_, ModelError>>()?,
            recipe: recipe.unwrap_or_default(),
            options,
            pipeline: request.pipeline.clone(),
            experts: request.experts.or(request.recipe.as_ref().and_then(|r| r.experts)),
            recorded: BTreeMap::new(),
        })
    }

    /// The rule where a header says how these weights are stored, whatever the config says.
    pub(super) fn recorded(self, recorded: BTreeMap<String, Orientation>) -> Self {
        Rule { recorded, ..self }
    }

    /// Decides about one tensor.
    ///
    /// # Errors
    /// A tensor that is included by its full name and that cannot be quantized; experts of which
    /// nothing tells how they are stored.
    pub fn decide(&self, name: &str, info: &TensorInfo) -> Result<Fate, ModelError> {
        let wanted = self.recipe.iter().find(|wanted| wanted.matches(name));
        let included = self.include.iter().filter(|i| i.matcher.is_match(name));
        let (any, all) = included.fold((false, true), |(_, all), i| (true, all && i.wildcards));
        let named = match wanted {
            Some(wanted) => wanted.is_named(name) && wanted.options.is_some(),
            None => any && !all,
        };
        if !named && let Some(fate) = self.no_candidate(name, info) {
            return Ok(fate);
        }
        if self.exclude.iter().any(|(_, glob)| glob.is_match(name)) {
            return Ok(Fate::Skip(Reason::Excluded));
        }
        let options = match wanted {
            Some(Wanted { options: None, .. }) => return Ok(Fate::Skip(Reason::Recipe)),
            Some(Wanted { options: Some(options), .. }) => options,
            None if any => &self.options,
            None if !self.include.is_empty() => return Ok(Fate::Skip(Reason::NotIncluded)),
            None => match self.roles.kept(name, &info.shape) {
                Some(kept) => return Ok(Fate::Skip(Reason::Kept(kept))),
                None => &self.options,
            },
        };
        match self.quantizable(name, info, options) {
            Ok(chosen) => Ok(Fate::Quantize(Box::new(chosen))),
            Err(Reason::Experts(shape)) => Err(ModelError::Experts { name: name.into(), shape }),
            Err(reason) if named => Err(ModelError::Named { name: name.into(), reason }),
            Err(reason) => Ok(Fate::Skip(reason)),
        }
    }

    /// What becomes of a tensor that is nothing like a linear weight.
    fn no_candidate(&self, name: &str, info: &TensorInfo) -> Option<Fate> {
        let weight = prefix(name).is_some();
        match info.shape.len() {
            0 | 1 => Some(Fate::Copy),
            2 if weight => None,
            2 => Some(Fate::Skip(Reason::Name)),
            3 if self.roles.is_experts(name) => None,
            _ => Some(Fate::Skip(Reason::Rank(info.shape.clone()))),
        }
    }

    /// What the tensor becomes, or why it cannot be quantized.
    fn quantizable(
        &self,
        name: &str,
        info: &TensorInfo,
        options: &Arc<DenseOptions>,
    ) -> Result<Chosen, Reason> {
        let experts = info.shape.len() == 3 && self.roles.is_experts(name);
        let prefix = match prefix(name) {
            Some(prefix) => prefix,
            None if experts => name,
            None => return Err(Reason::Name),
        };
        let recorded = self.recorded.get(name).copied();
        let orientation = match info.shape[..] {
            [_, _] => recorded.or_else(|| self.roles.matrix(name)).ok_or(Reason::Transposed),
            [e, a, b] if experts && (e == 0 || a == 0 || b == 0) => {
                Err(Reason::Empty(info.shape.clone()))
            }
            [_, a, b] if experts => {
                let told = self.experts.or(recorded);
                let told = told.or_else(|| self.roles.experts(name, a, b));
                told.ok_or_else(|| Reason::Experts(info.shape.clone()))
            }
            _ => Err(Reason::Rank(info.shape.clone())),
        };
        // What a tensor is comes before how it is stored.
        let source = DenseSource::find(self.tensors, name, self.roles.facts().fp8_block)?;
        let source = match orientation? {
            Orientation::OutIn => source,
            Orientation::InOut => source.transposed(),
        };
        self.chosen(prefix, source, experts, options)
    }

    /// What a tensor would become whatever it is called: where nothing tells how it is stored, its
    /// last two dimensions are taken as (out, in).
    ///
    /// # Errors
    /// Why it cannot be quantized.
    pub(super) fn on_trial(&self, name: &str, info: &TensorInfo) -> Result<Chosen, Reason> {
        match self.quantizable(name, info, &self.options) {
            Err(Reason::Name | Reason::Rank(_) | Reason::Transposed | Reason::Experts(_))
                if info.shape.len() >= 2 =>
            {
                let source = DenseSource::find(self.tensors, name, self.roles.facts().fp8_block)?;
                self.chosen(name, source, info.shape.len() > 2, &self.options)
            }
            chosen => chosen,
        }
    }

    /// A matrix as a weight, if its sizes are those of one.
    fn chosen(
        &self,
        prefix: &str,
        source: DenseSource,
        experts: bool,
        options: &Arc<DenseOptions>,
    ) -> Result<Chosen, Reason> {
        let (rows, k) = (source.rows(), source.k());
        let block = options.transform.as_ref().map(StoredTransform::view).transpose();
        let block = block.map_err(|e| Reason::Unloadable(e.to_string()))?.map(|t| t.block());
        let own = self.pipeline.as_ref().and_then(|pipeline| pipeline.transform_block());
        let block = own.or(block);
        let group = options.format.group().get();
        let activations =
            (options.activations == ActivationEncoding::MxInt8).then_some(MXINT8_GROUP);
        let sizes =
            [("group", Some(group)), ("mxint8 group", activations), ("transform block", block)];
        for (what, size) in sizes {
            if let Some(size) = size
                && !k.is_multiple_of(size)
            {
                return Err(Reason::NotMultiple { k, what, size });
            }
        }
        if k == 0 {
            loadable(options, rows)?;
        }
        let (options, pipeline) = (options.clone(), self.pipeline.clone());
        Ok(Chosen { prefix: prefix.into(), source, experts, options, pipeline })
    }

    /// Checks that every pattern to include, and every rule of the recipe that quantizes, finds
    /// something to quantize, before those to exclude have their say.
    ///
    /// # Errors
    /// A pattern that matches no tensor, or none that can be quantized.
    pub fn check_includes(&self) -> Result<(), ModelError> {
        for Include { text, matcher, wildcards } in &self.include {
            self.check(text, |name| matcher.is_match(name), *wildcards, &self.options)?;
        }
        for wanted in &self.recipe {
            if let Some(name) = wanted.absent(self.tensors) {
                return Err(ModelError::NoMatch { glob: name.into() });
            }
            if let Some(options) = &wanted.options {
                for (text, matcher) in wanted.patterns() {
                    self.check(text, |name| matcher.is_match(name), true, options)?;
                }
            }
        }
        Ok(())
    }

    /// Patterns that match no tensor and need not: those to exclude, and those of rules of the
    /// recipe that keep tensors dense.
    pub fn unmatched(&self) -> Vec<&str> {
        let exclude = self.exclude.iter().map(|(text, glob)| (text.as_str(), glob));
        let dense = self.recipe.iter().filter(|wanted| wanted.options.is_none());
        let all = exclude.chain(dense.flat_map(Wanted::patterns));
        let idle =
            all.filter(|(_, glob)| !self.tensors.keys().any(|name| glob.is_match(name.as_str())));
        idle.map(|(text, _)| text).collect()
    }

    fn check(
        &self,
        glob: &str,
        matches: impl Fn(&str) -> bool,
        wildcards: bool,
        options: &Arc<DenseOptions>,
    ) -> Result<(), ModelError> {
        let matching: Vec<_> = self.tensors.iter().filter(|(name, _)| matches(name)).collect();
        if matching.is_empty() {
            return Err(ModelError::NoMatch { glob: glob.into() });
        }
        let judged = matching
            .iter()
            .map(|(name, tensor)| (*name, self.quantizable(name, &tensor.info, options).err()));
        let misfit = |reason: &Option<Reason>| !matches!(reason, None | Some(Reason::Experts(_)));
        if wildcards && judged.clone().all(|(_, reason)| misfit(&reason)) {
            let examples =
                judged.take(EXAMPLES).filter_map(|(name, why)| Some((name.clone(), why?)));
            return Err(ModelError::NoneQuantizable {
                glob: glob.into(),
                examples: examples.collect(),
                more: matching.len() > EXAMPLES,
            });
        }
        Ok(())
    }
}

/// Elements of an activation that share a scale in MXINT8.
const MXINT8_GROUP: usize = fp4_core::Encoding::MxInt8.group().get();

/// Would the library load a layer of so many rows and no columns? They cost no file bytes, so
/// nothing else bounds them.
fn loadable(options: &DenseOptions, rows: usize) -> Result<(), Reason> {
    let scalars = Scalars {
        weight_global_scale: 1.0,
        activation_global_scale: None,
        activation_scale_scale: None,
        activations: options.activations,
    };
    let shape = PackedShape::of(options.format, rows, 0).map_err(Error::from);
    let check = shape.and_then(|shape| state::check(shape, None, &scalars));
    check.map(drop).map_err(|e| Reason::Unloadable(e.to_string()))
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
pub(super) fn globs<S: AsRef<str>>(patterns: &[S]) -> Result<GlobSet, ModelError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern.as_ref())?);
    }
    set.build().map_err(|e| ModelError::GlobSize(e.to_string()))
}

#[cfg(test)]
mod tests {
    use fp4_core::Format;
    use safetensors::Dtype;

    use super::*;

    type Tensors = BTreeMap<String, Tensor>;

    fn tensor(dtype: Dtype, shape: &[usize]) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (0, bytes as u64) };
        Tensor { file: 0, info, ggml: None }
    }

    fn tensors(list: &[(&str, Dtype, &[usize])]) -> Tensors {
        list.iter().map(|(name, dtype, shape)| (name.to_string(), tensor(*dtype, shape))).collect()
    }

    fn request(include: &[&str], exclude: &[&str]) -> Request {
        let owned = |g: &[&str]| g.iter().map(|&g| g.to_string()).collect::<Vec<_>>();
        let transform = Some(StoredTransform::hadamard(64).unwrap());
        let options = DenseOptions { transform, ..DenseOptions::new(Format::MxFp4) };
        let (include, exclude) = (owned(include), owned(exclude));
        Request { include, exclude, ..Request::new(options) }
    }

    /// What becomes of the first of these tensors.
    fn first(request: &Request, list: &[(&str, Dtype, &[usize])]) -> Result<Fate, String> {
        let all = tensors(list);
        let rule = Rule::new(request, &all, None).unwrap();
        let name = list[0].0;
        rule.decide(name, &all[name].info).map_err(|e| e.to_string())
    }

    fn decide(request: &Request, name: &str) -> Fate {
        first(request, &[(name, Dtype::F32, &[8, 128])]).unwrap()
    }

    #[test]
    fn the_default_rule_keeps_embeddings_and_heads() {
        let request = request(&[], &[]);
        for name in
            ["a.b.weight", "weight", "h.0.attn.output.weight", "encoder.output.dense.weight"]
        {
            assert!(matches!(decide(&request, name), Fate::Quantize(_)), "{name}");
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
            assert!(matches!(decide(&request, name), Fate::Skip(Reason::Kept(_))), "{name}");
        }
        for name in ["a.bias", "a.weight_scale", "aweight"] {
            assert!(matches!(decide(&request, name), Fate::Skip(Reason::Name)), "{name}");
        }
    }

    #[test]
    fn rank_and_type_and_k() {
        let request = request(&[], &[]);
        let fate = |dtype, shape: &[usize]| first(&request, &[("a.weight", dtype, shape)]).unwrap();
        let says = |fate: Fate, what: &str| match fate {
            Fate::Skip(reason) => assert!(reason.to_string().contains(what), "{reason}"),
            other => panic!("{other:?}"),
        };
        assert!(matches!(fate(Dtype::F32, &[128]), Fate::Copy));
        says(fate(Dtype::F32, &[1, 2, 128]), "[1, 2, 128]");
        says(fate(Dtype::F64, &[8, 128]), "F64");
        says(fate(Dtype::F8_E4M3, &[8, 128]), "no scales");
        says(fate(Dtype::F32, &[8, 48]), "group of 32");
        says(fate(Dtype::F32, &[8, 96]), "block of 64");
        for shape in [[0, 128], [8, 0]] {
            assert!(matches!(fate(Dtype::BF16, &shape), Fate::Quantize(_)), "{shape:?}");
        }
    }

    #[test]
    fn include_replaces_the_name_rule_and_exclude_removes() {
        let request = request(&["*wte*", "b.*"], &["b.c.*"]);
        assert!(matches!(decide(&request, "wte.weight"), Fate::Quantize(_)));
        assert!(matches!(decide(&request, "b.weight"), Fate::Quantize(_)));
        assert!(matches!(decide(&request, "b.c.weight"), Fate::Skip(Reason::Excluded)));
        assert!(matches!(decide(&request, "a.weight"), Fate::Skip(Reason::NotIncluded)));
        // What a pattern sweeps in and is no linear weight is left alone.
        for name in ["b.bias", "b.weight"] {
            let fate = first(&request, &[(name, Dtype::F32, &[128])]).unwrap();
            assert!(matches!(fate, Fate::Copy), "{name}");
        }
        let odd = first(&request, &[("b.weight", Dtype::F64, &[8, 128])]).unwrap();
        assert!(matches!(odd, Fate::Skip(reason) if reason.to_string().contains("F64")));
        let check = |names: &[&str]| {
            let all = names.iter().map(|name| (*name, Dtype::F32, &[8, 128][..]));
            let all = tensors(&all.collect::<Vec<_>>());
            let rule = Rule::new(&request, &all, None).unwrap();
            rule.check_includes().map_err(|e| e.to_string())
        };
        assert_eq!(check(&["b.weight", "wte.weight"]), Ok(()));
        let error = check(&["b.weight"]).unwrap_err();
        assert!(error.contains("`*wte*` matches no tensor;"), "{error}");
        let error = check(&["b.bias", "wte.weight"]).unwrap_err();
        assert!(error.contains("`b.*`") && error.contains("`b.bias`: its name"), "{error}");
    }

    #[test]
    fn a_full_name_is_taken_at_its_word() {
        let request = request(&["b.bias", "b.*"], &[]);
        let error = first(&request, &[("b.bias", Dtype::F32, &[128])]).unwrap_err();
        assert!(error.contains("`b.bias` is included by its name"), "{error}");
        let other = first(&request, &[("b.other", Dtype::F32, &[128])]).unwrap();
        assert!(matches!(other, Fate::Copy));
    }

    #[test]
    fn fp8_has_the_scales_beside_it_or_is_not_taken() {
        let request = request(&[], &[]);
        let with = |scales: &str, dtype, shape: &[usize]| {
            let weight: (&str, Dtype, &[usize]) = ("a.weight", Dtype::F8_E4M3, &[200, 256]);
            first(&request, &[weight, (scales, dtype, shape)]).unwrap()
        };
        for (scales, dtype, shape) in [
            ("a.weight_scale_inv", Dtype::F32, &[2, 2][..]),
            ("a.scale", Dtype::F8_E8M0, &[2, 2]),
            ("a.weight_scale", Dtype::BF16, &[200, 1]),
            ("a.weight_scale", Dtype::F32, &[200]),
            ("a.weight_scale", Dtype::F32, &[]),
            ("a.weight_scale", Dtype::F32, &[1]),
        ] {
            let fate = with(scales, dtype, shape);
            assert!(matches!(fate, Fate::Quantize(_)), "{scales} {shape:?}: {fate:?}");
        }
        for (scales, dtype, shape, what) in [
            ("a.other", Dtype::F32, &[2, 2][..], "no scales are beside it"),
            ("a.scale", Dtype::I32, &[2, 2], "I32"),
            ("a.scale", Dtype::F32, &[2, 1], "[2, 1]"),
        ] {
            match with(scales, dtype, shape) {
                Fate::Skip(reason) => assert!(reason.to_string().contains(what), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_bad_glob_is_an_error() {
        let bad = Rule::new(&request(&["a["], &[]), &BTreeMap::new(), None).unwrap_err();
        assert!(bad.to_string().contains("`a[`"));
    }

    #[test]
    fn globs_that_nest_or_grow_too_much_are_errors_and_no_panic() {
        let compile = |glob: String| {
            let none = BTreeMap::new();
            let requests = [request(&[&glob], &[]), request(&[], &[&glob])];
            requests.map(|request| {
                Rule::new(&request, &none, None).map(|_| ()).map_err(|e| e.to_string())
            })
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
