//! Recipes: formats and settings by name, as a file, and the record of what a run did.
//!
//! TOML or JSON; a file that begins with `{` is JSON. The first rule that matches a tensor decides;
//! what none matches is left to the options and the default choice.
//!
//! ```toml
//! tie = ["qkv", "gate-up"]          # as --tie; may be left out
//! experts = "out-in"                # as --experts; may be left out
//!
//! [[rules]]
//! match = "*.self_attn.*"           # a glob on full names, or a list of them
//! names = ["lm_head.weight"]        # full names; an error if one cannot be quantized
//! format = "mxfp4"                  # mxfp4, nvfp4 or dense
//! transform = "hadamard"            # or "none"
//! transform_block = 64              # 16, 32, 64 or 128; 32 if left out
//! scale_rule = "search"             # how block scales are found: a name of `ScaleRule`
//! global_scale = "auto"             # or a number
//! activation_scale = 0.1            # or "row": each row its own (NVFP4)
//! activations = "fp4"               # or "mxint8"
//! ```
//!
//! What a rule leaves out is as the options have it; their scales only where the format is theirs.
//!
//! A record is a recipe that names every tensor of a plan, and keeps all others dense: given back
//! with the same input, it makes the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fp4_core::{Format, ScaleRule};
use globset::GlobSet;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Tensor, read_text};
use crate::error::{Error, ModelError};
use crate::layer::{ActivationEncoding, DenseOptions, StoredTransform};
use crate::model::plan::Plan;
use crate::model::quantize::check_product;
use crate::model::select::{Orientation, Request, globs};
use crate::model::ties::Tie;

/// The longest recipe that is read: it may name every tensor of the longest header.
const MOST: u64 = 100_000_000;

/// Block of a transform that does not say.
const BLOCK: usize = 32;

/// Formats and settings by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Weights that share a global scale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tie: Vec<Tie>,
    /// How expert matrices are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<Orientation>,
    /// What is done with which tensors; the first that matches decides.
    #[serde(default)]
    pub rules: Vec<RecipeRule>,
}

/// What is done with some tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeRule {
    /// Globs on full names.
    #[serde(rename = "match", default, skip_serializing_if = "Globs::is_empty")]
    pub globs: Globs,
    /// Full names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The format, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Target>,
    /// The block transform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<Transformed>,
    /// Its block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform_block: Option<usize>,
    /// How block scales are found: a name of [`ScaleRule`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_rule: Option<String>,
    /// Global scale of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_scale: Option<GlobalScale>,
    /// Global scale of the activations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_scale: Option<ActivationScale>,
    /// How activations are quantized: `fp4` or `mxint8`. Row scales are an `activation_scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<String>,
}

/// One glob or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Globs {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Default for Globs {
    fn default() -> Self {
        Globs::Many(vec![])
    }
}

impl Globs {
    fn list(&self) -> &[String] {
        match self {
            Globs::One(one) => std::slice::from_ref(one),
            Globs::Many(many) => many,
        }
    }

    fn is_empty(&self) -> bool {
        self.list().is_empty()
    }
}

/// What a tensor becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// MXFP4.
    MxFp4,
    /// NVFP4.
    NvFp4,
    /// It stays as it is.
    Dense,
}

impl From<Format> for Target {
    fn from(format: Format) -> Self {
        match format {
            Format::MxFp4 => Target::MxFp4,
            Format::NvFp4 => Target::NvFp4,
        }
    }
}

/// A block transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transformed {
    /// None.
    None,
    /// The orthonormal Hadamard matrix, one for all blocks.
    Hadamard,
}

/// A global scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GlobalScale {
    /// A number.
    Value(f32),
    /// `auto`.
    Word(Auto),
}

/// A global scale of activations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "an activation_scale is a number or \"row\"")]
pub enum ActivationScale {
    /// A number, stored.
    Value(f32),
    /// `row`.
    Word(Row),
}

/// The word `row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    /// Each row's own, by its largest magnitude: [`ActivationEncoding::OwnRowScales`].
    Row,
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// By the format's own rule.
    Auto,
}

/// A rule of a recipe, compiled.
#[derive(Debug)]
pub(super) struct Wanted {
    names: BTreeSet<String>,
    globs: Vec<(String, GlobSet)>,
    /// `None` keeps tensors dense.
    pub(super) options: Option<Arc<DenseOptions>>,
}

impl Wanted {
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.is_named(name) || self.globs.iter().any(|(_, glob)| glob.is_match(name))
    }

    /// A name that no tensor has.
    pub(super) fn absent(&self, tensors: &BTreeMap<String, Tensor>) -> Option<&str> {
        self.names.iter().map(String::as_str).find(|name| !tensors.contains_key(*name))
    }

    pub(super) fn patterns(&self) -> impl Iterator<Item = (&str, &GlobSet)> {
        self.globs.iter().map(|(text, glob)| (text.as_str(), glob))
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// A file that cannot be read, or is no recipe.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = read_text(path, MOST).map_err(|refusal| Error::checkpoint(path, refusal))?;
        Ok(Self::parse(&text)?)
    }

    /// Reads a recipe from text, JSON if it begins with `{`.
    ///
    /// # Errors
    /// Text that is no recipe.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let parsed = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|e| e.to_string()),
            false => toml::from_str(text).map_err(|e| e.to_string()),
        };
        parsed.map_err(ModelError::Recipe)
    }

    /// The recipe as JSON.
    pub fn to_json(&self) -> String {
        // Nothing in a recipe fails to become JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The record of a plan that came of a request.
    pub fn record(plan: &Plan, request: &Request) -> Self {
        let own = request.recipe.as_ref();
        let experts = request.experts.or(own.and_then(|recipe| recipe.experts));
        let mut tie = request.ties.clone();
        tie.extend(own.iter().flat_map(|recipe| &recipe.tie));
        let mut rules: Vec<RecipeRule> = vec![];
        let mut known: Vec<Arc<DenseOptions>> = vec![];
        let mut last = None;
        for weight in &plan.weights {
            if last.replace(&weight.name) == Some(&weight.name) {
                continue; // another matrix of the same tensor
            }
            let at = known.iter().position(|options| Arc::ptr_eq(options, &weight.options));
            let at = at.unwrap_or_else(|| {
                known.push(weight.options.clone());
                rules.push(RecipeRule::of(&weight.options));
                rules.len() - 1
            });
            rules[at].names.push(weight.name.clone());
        }
        rules.push(RecipeRule::all_dense());
        Recipe { tie, experts, rules }
    }

    pub(super) fn compile(&self, options: &DenseOptions) -> Result<Vec<Wanted>, Error> {
        let number = |(index, rule): (usize, &RecipeRule)| {
            rule.compile(options).map_err(|error| {
                Error::from(ModelError::Recipe(format!("rule {}: {error}", index + 1)))
            })
        };
        self.rules.iter().enumerate().map(number).collect()
    }
}

impl RecipeRule {
    /// The rule that keeps all that no rule before it matches.
    pub fn all_dense() -> Self {
        let (globs, format) = (Globs::One("*".into()), Some(Target::Dense));
        RecipeRule { globs, format, ..RecipeRule::default() }
    }

    /// The rule that gives these options.
    fn of(options: &DenseOptions) -> Self {
        let transform = options.transform.as_ref();
        let block = transform.and_then(|t| t.shape().last().copied());
        RecipeRule {
            format: Some(options.format.into()),
            transform: Some(transform.map_or(Transformed::None, |_| Transformed::Hadamard)),
            transform_block: block,
            scale_rule: Some(options.scale_rule.name().into()),
            global_scale: Some(match options.weight_global_scale {
                Some(value) => GlobalScale::Value(value),
                None => GlobalScale::Word(Auto::Auto),
            }),
            // Where rows have their own, a stored one takes no part.
            activation_scale: match options.activations {
                ActivationEncoding::OwnRowScales => Some(ActivationScale::Word(Row::Row)),
                _ => options.activation_global_scale.map(ActivationScale::Value),
            },
            activations: Some(match options.activations {
                ActivationEncoding::OwnRowScales => ActivationEncoding::Own.name().into(),
                other => other.name().into(),
            }),
            ..RecipeRule::default()
        }
    }

    fn compile(&self, given: &DenseOptions) -> Result<Wanted, Error> {
        let invalid = |what: &str| Error::from(ModelError::Recipe(what.into()));
        if self.globs.is_empty() && self.names.is_empty() {
            return Err(invalid("it has neither `match` nor `names`; give one of them"));
        }
        let globs = self.globs.list().iter().map(|text| Ok((text.clone(), globs(&[text])?)));
        Ok(Wanted {
            names: self.names.iter().cloned().collect(),
            globs: globs.collect::<Result<_, ModelError>>()?,
            options: self.options(given)?.map(Arc::new),
        })
    }

    /// How activations are quantized, by both settings that say it.
    fn encoding(&self, given: &DenseOptions, format: Format) -> Result<ActivationEncoding, Error> {
        use ActivationEncoding::{MxInt8, Own, OwnRowScales};
        let invalid = |what: &str| Error::from(ModelError::Recipe(what.into()));
        let named = self.activations.as_ref().map(|name| name.parse::<ActivationEncoding>());
        let named = named.transpose().map_err(|_| {
            let got = self.activations.as_deref().unwrap_or_default().escape_debug();
            invalid(&format!("activations `{got}` are unknown; expected fp4 or mxint8"))
        })?;
        if named == Some(OwnRowScales) {
            return Err(invalid(
                "activations = \"fp4-rows\" is written activation_scale = \"row\"",
            ));
        }
        // A scale that is left out is as the options have it, where the format is theirs.
        let rows = match self.activation_scale {
            Some(ActivationScale::Word(Row::Row)) => true,
            Some(ActivationScale::Value(_)) => false,
            None => given.activations == OwnRowScales && format == given.format,
        };
        match (named, self.activation_scale) {
            (Some(MxInt8), Some(ActivationScale::Word(Row::Row))) => Err(invalid(
                "activation_scale = \"row\" is of fp4 activations, and mxint8 has no such scale; \
                 leave one of the two out",
            )),
            (Some(MxInt8), _) => Ok(MxInt8),
            (None, None) if given.activations == MxInt8 => Ok(MxInt8),
            (None, Some(ActivationScale::Value(_))) if given.activations == MxInt8 => Ok(MxInt8),
            _ if rows => Ok(OwnRowScales),
            _ => Ok(Own),
        }
    }

    fn options(&self, given: &DenseOptions) -> Result<Option<DenseOptions>, Error> {
        let invalid = |what: &str| Error::from(ModelError::Recipe(what.into()));
        let format = match self.format {
            Some(Target::Dense) => return Ok(None),
            Some(Target::MxFp4) => Format::MxFp4,
            Some(Target::NvFp4) => Format::NvFp4,
            None => given.format,
        };
        let scale_rule = match &self.scale_rule {
            Some(name) => name
                .parse::<ScaleRule>()
                .map_err(|e| invalid(&format!("scale_rule is `{name}`: {e}")))?,
            None => given.scale_rule,
        };
        let activations = self.encoding(given, format)?;
        let same = |scale: Option<f32>| scale.filter(|_| format == given.format);
        let transform = match (self.transform, self.transform_block) {
            (Some(Transformed::Hadamard), block) => {
                let block = block.unwrap_or(BLOCK);
                if ![16, 32, 64, 128].contains(&block) {
                    return Err(invalid("a transform_block is 16, 32, 64 or 128"));
                }
                Some(StoredTransform::hadamard(block)?)
            }
            (_, Some(_)) => {
                return Err(invalid("transform_block is given without transform = \"hadamard\""));
            }
            (Some(Transformed::None), None) => None,
            (None, None) => given.transform.clone(),
        };
        let options = DenseOptions {
            format,
            transform,
            scale_rule,
            weight_global_scale: match self.global_scale {
                Some(GlobalScale::Value(value)) => Some(value),
                Some(GlobalScale::Word(Auto::Auto)) => None,
                None => same(given.weight_global_scale),
            },
            activation_global_scale: match self.activation_scale {
                Some(ActivationScale::Value(value)) => Some(value),
                Some(ActivationScale::Word(Row::Row)) => None,
                None => same(given.activation_global_scale),
            },
            activations,
        };
        options.activations.spec(options.activation_spec()?)?;
        // Judged before anything is read; the amax does not matter to a given scale.
        let (weight, activation) = (options.weight_spec(1.0)?, options.activation_factor()?);
        if !options.needs_amax() {
            check_product(weight.global_scale(), activation)?;
        }
        Ok(Some(options))
    }
}
