//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! Diffusers writes `diffusion_pytorch_model.safetensors.index.json`, and a variant of a model has
//! one of its own, with its name in one of three places: `model.fp16.safetensors.index.json`,
//! `model.safetensors.fp16.index.json`, `model.safetensors.index.fp16.json`. A folder may hold
//! several: one of a usual name is the model, as loaders have it; else there must be one alone.
//!
//! ```text
//! { "metadata": { "total_size": bytes of all tensors, ... }, "weight_map": { tensor: shard } }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::value::RawValue;

use super::reader::MAX_HEADER;
use super::source::Place;
use super::unique::Unique;
use crate::error::{Error, Refusal};

/// Names of the files of a model by their usual names, without their ends.
pub(super) const STEMS: [&str; 2] = ["model", "diffusion_pytorch_model"];

/// The end of the name of an index that is no variant's.
const INDEX: &str = ".safetensors.index.json";

/// An index whose shard names have been checked to stay inside their folder.
#[derive(Debug, Clone)]
pub struct Index {
    /// Its name in the folder.
    name: String,
    /// Everything but the weight map, kept as it is.
    rest: BTreeMap<String, Box<RawValue>>,
    /// Tensor to shard.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads the index of a folder; `None` if it has none.
    ///
    /// # Errors
    /// Several, none of which is the usual one; a file that cannot be read, lies outside, is no
    /// plain file or is no index.
    pub(super) fn read(folder: &Path, place: &Place) -> Result<Option<Self>, Error> {
        let Some(name) = Self::find(folder, place)? else { return Ok(None) };
        let path = folder.join(&name);
        place.check(&path)?;
        // It names what the headers of the shards name.
        let text = place.read_text(&path, MAX_HEADER);
        let index = text.and_then(|text| Self::parse(&text).map_err(Refusal::Index));
        let index = index.map_err(|refusal| Error::checkpoint(&path, refusal))?;
        Ok(Some(Index { name, ..index }))
    }

    /// The name of the index that is meant.
    fn find(folder: &Path, place: &Place) -> Result<Option<String>, Error> {
        let there = |name: &String| place.exists(&folder.join(name));
        let several = |names| Err(Error::checkpoint(folder, Refusal::ManyIndexes(names)));
        let usual = STEMS.map(|stem| format!("{stem}{INDEX}"));
        let mut usual: Vec<_> = usual.into_iter().filter(there).collect();
        if usual.len() > 1 {
            return several(usual);
        }
        let single = |stem: &str| there(&format!("{stem}.safetensors"));
        if !usual.is_empty() || STEMS.into_iter().any(single) {
            return Ok(usual.pop());
        }
        let mut names = place.names(folder)?;
        let parts = [".safetensors.", ".index."];
        let is_index =
            |name: &String| name.ends_with(".json") && parts.iter().all(|part| name.contains(part));
        names.retain(is_index);
        if names.len() > 1 {
            return several(names);
        }
        Ok(names.pop())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let index = serde_json::from_str::<Unique<Box<RawValue>>>(text);
        let Unique(mut rest) = index.map_err(|e| e.to_string())?;
        let map = rest.remove("weight_map").ok_or("it has no object `weight_map`")?;
        let Unique(weight_map) =
            serde_json::from_str::<Unique<String>>(map.get()).map_err(|e| {
                format!("its `weight_map` is no object that gives a file name for each tensor: {e}")
            })?;
        if let Some(metadata) = rest.get("metadata").filter(|m| m.get().starts_with('{')) {
            let metadata = serde_json::from_str::<Unique<&RawValue>>(metadata.get());
            metadata.map_err(|e| format!("its `metadata`: {e}"))?;
        }
        for (tensor, shard) in &weight_map {
            let mut parts = Path::new(shard).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(format!(
                    "`weight_map` gives `{shard}` for `{tensor}`, expected a file name without \
                     folders"
                ));
            }
        }
        match weight_map.is_empty() {
            true => Err("its `weight_map` is empty".into()),
            false => Ok(Index { name: String::new(), rest, weight_map }),
        }
    }

    /// Its name in the folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shards, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// The shard of each tensor.
    pub fn weight_map(&self) -> &BTreeMap<String, String> {
        &self.weight_map
    }

    /// The text of the index with another weight map and total size; all else is kept.
    pub fn rewritten(&self, weight_map: &BTreeMap<String, String>, total_size: u64) -> String {
        let old = self.rest.get("metadata").map(|metadata| metadata.get());
        let old = old.and_then(|text| serde_json::from_str::<Unique<&RawValue>>(text).ok());
        let old = old.map(|Unique(old)| old).unwrap_or_default();
        let mut metadata: BTreeMap<_, _> =
            old.iter().map(|(name, value)| (name.as_str(), Entry::Kept(value))).collect();
        metadata.insert("total_size", Entry::Size(total_size));
        let rest = self.rest.iter().map(|(name, value)| (name.as_str(), Entry::Kept(value)));
        let mut index: BTreeMap<_, _> = rest.collect();
        index.insert("metadata", Entry::Metadata(metadata));
        index.insert("weight_map", Entry::WeightMap(weight_map));
        // Names, numbers and texts that were JSON before: nothing that it lacks.
        serde_json::to_string_pretty(&index).unwrap_or_default() + "\n"
    }
}

/// An entry of an index to be written.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Kept(&'a RawValue),
    Size(u64),
    Metadata(BTreeMap<&'a str, Entry<'a>>),
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
            let error = Index::parse(&bad).unwrap_err();
            assert!(error.contains("is there twice"), "{bad}: {error}");
        }
    }

    #[test]
    fn rewriting_keeps_what_it_does_not_know() {
        let text =
            r#"{"metadata": {"total_size": 1, "note": "n"}, "weight_map": {"x": "s"}, "v": 2}"#;
        let map = [("y".to_string(), "s".to_string())].into();
        let new = Index::parse(text).unwrap().rewritten(&map, 77);
        let new: Value = serde_json::from_str(&new).unwrap();
        let metadata = json!({ "total_size": 77, "note": "n" });
        assert_eq!(new, json!({ "metadata": metadata, "weight_map": { "y": "s" }, "v": 2 }));
    }
}
