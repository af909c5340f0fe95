//! Patterns of names, for whatever else has names than the tensors of a checkpoint.

use globset::GlobSet;

use super::select::globs;
use crate::error::ModelError;

/// Globs on names, compiled, as [`Request::include`](super::select::Request::include) takes them:
/// `*` matches any text, dots included.
///
/// ```
/// use quant_linear::model::patterns::Patterns;
///
/// let patterns = Patterns::new(&["model.*.mlp.*", "*.{q,k}_proj"])?;
/// assert_eq!(patterns.matches("model.layers.3.mlp.up_proj"), [0]);
/// assert_eq!(patterns.matches("model.layers.3.q_proj"), [1]);
/// assert!(patterns.matches("lm_head").is_empty());
/// # Ok::<(), quant_linear::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Patterns(GlobSet);

impl Patterns {
    /// Compiles patterns.
    ///
    /// # Errors
    /// [`ModelError::Glob`] for one that does not parse, [`ModelError::GlobLen`],
    /// [`ModelError::GlobBraces`] and [`ModelError::GlobSize`] for what would be too large.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, ModelError> {
        globs(patterns).map(Patterns)
    }

    /// Positions of the patterns that match a name, ascending.
    pub fn matches(&self, name: &str) -> Vec<usize> {
        self.0.matches(name)
    }
}
