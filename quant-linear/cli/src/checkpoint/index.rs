//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! ```text
//! { "metadata": { "total_size": bytes of all tensors, ... }, "weight_map": { tensor: shard } }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};
use serde_json::value::RawValue;

use super::folder::Inside;
use super::plain;
use super::reader::MAX_HEADER;
use super::unique::Unique;

/// Name of the index in a folder.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An index whose shard names have been checked to stay inside their folder.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// Everything but the weight map, kept as it is.
    rest: BTreeMap<String, Box<RawValue>>,
    /// Tensor to shard.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads the index of a folder; `None` if it has none.
    ///
    /// # Errors
    /// A file that cannot be read, lies outside, is no plain file or is no index.
    pub(crate) fn read(folder: &Path, inside: &Inside) -> Result<Option<Self>> {
        let path = folder.join(INDEX);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        inside.check(&path)?;
        // It names what the headers of the shards name.
        let text = plain::read_text(&path, MAX_HEADER);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        let index = Self::parse(&text);
        index
            .map(Some)
            .with_context(|| format!("{} is no index of shards; download it again", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let Unique(mut rest) = serde_json::from_str::<Unique<Box<RawValue>>>(text)?;
        let map = rest.remove("weight_map").context("it has no object `weight_map`")?;
        let map = serde_json::from_str::<Unique<String>>(map.get());
        let Unique(weight_map) =
            map.context("its `weight_map` is no object that gives a file name for each tensor")?;
        if let Some(metadata) = rest.get("metadata").filter(|m| m.get().starts_with('{')) {
            serde_json::from_str::<Unique<&RawValue>>(metadata.get()).context("its `metadata`")?;
        }
        for (tensor, shard) in &weight_map {
            let mut parts = Path::new(shard).components();
            ensure!(
                matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)),
                "`weight_map` gives `{shard}` for `{tensor}`, expected a file name without folders"
            );
        }
        ensure!(!weight_map.is_empty(), "its `weight_map` is empty");
        Ok(Index { rest, weight_map })
    }

    /// The shards, sorted.
    pub(crate) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// The shard of each tensor.
    pub(crate) fn weight_map(&self) -> &BTreeMap<String, String> {
        &self.weight_map
    }

    /// The text of the index with another weight map and total size; all else is kept.
    ///
    /// # Errors
    /// None in practice.
    pub(crate) fn rewritten(
        &self,
        weight_map: &BTreeMap<String, String>,
        total_size: u64,
    ) -> Result<String> {
        let old = self.rest.get("metadata").map(|metadata| metadata.get());
        let old = old.and_then(|text| serde_json::from_str::<Unique<&RawValue>>(text).ok());
        let Unique(mut metadata) = old.unwrap_or(Unique(BTreeMap::new()));
        let total_size = serde_json::value::to_raw_value(&total_size)?;
        metadata.insert("total_size".into(), &total_size);
        let rest = self.rest.iter().map(|(name, value)| (name.as_str(), Entry::Kept(value)));
        let mut index: BTreeMap<_, _> = rest.collect();
        index.insert("metadata", Entry::Metadata(metadata));
        index.insert("weight_map", Entry::WeightMap(weight_map));
        Ok(serde_json::to_string_pretty(&index)? + "\n")
    }
}

/// An entry of an index to be written.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Kept(&'a RawValue),
    Metadata(BTreeMap<String, &'a RawValue>),
    WeightMap(&'a BTreeMap<String, String>),
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn shard_names_stay_inside_the_folder() {
        for bad in ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", ""] {
            let text = json!({ "weight_map": { "x": bad } }).to_string();
            assert!(Index::parse(&text).is_err(), "{bad}");
        }
        assert!(Index::parse(r#"{"weight_map": {"x": "a.safetensors"}}"#).is_ok());
        for bad in ["[]", "{}", r#"{"weight_map": {}}"#, r#"{"weight_map": {"x": 1}}"#, "{"] {
            assert!(Index::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_twice_is_an_error_wherever_it_is() {
        let map = r#""weight_map": {"x": "s"}"#;
        for bad in [
            format!("{{{map}, {map}}}"),
            r#"{"weight_map": {"x": "s", "x": "t"}}"#.into(),
            format!(r#"{{"metadata": {{"total_size": 1, "total_size": 2}}, {map}}}"#),
            format!(r#"{{"metadata": {{}}, "metadata": {{}}, {map}}}"#),
        ] {
            let error = format!("{:#}", Index::parse(&bad).unwrap_err());
            assert!(error.contains("is there twice"), "{bad}: {error}");
        }
    }

    #[test]
    fn rewriting_keeps_what_it_does_not_know() {
        let text =
            r#"{"metadata": {"total_size": 1, "note": "n"}, "weight_map": {"x": "s"}, "v": 2}"#;
        let map = [("y".to_string(), "s".to_string())].into();
        let new = Index::parse(text).unwrap().rewritten(&map, 77).unwrap();
        let new: Value = serde_json::from_str(&new).unwrap();
        let metadata = json!({ "total_size": 77, "note": "n" });
        assert_eq!(new, json!({ "metadata": metadata, "weight_map": { "y": "s" }, "v": 2 }));
    }
}
