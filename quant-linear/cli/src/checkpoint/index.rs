//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! ```text
//! { "metadata": { "total_size": bytes of all tensors, ... }, "weight_map": { tensor: shard } }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// Name of the index in a folder.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An index whose shard names have been checked to stay inside their folder.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// Everything but the weight map, kept as it is.
    rest: Map<String, Value>,
    /// Tensor to shard.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads the index of a folder; `None` if it has none.
    ///
    /// # Errors
    /// A file that cannot be read or is no index.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(INDEX);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        let index = Self::parse(&text);
        index
            .map(Some)
            .with_context(|| format!("{} is no index of shards; download it again", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rest: Map<String, Value> = serde_json::from_str(text)?;
        let Some(Value::Object(map)) = rest.remove("weight_map") else {
            bail!("it has no object `weight_map`");
        };
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in map {
            let Value::String(shard) = shard else {
                bail!("`weight_map` gives {shard} for `{tensor}`, expected a file name");
            };
            let mut parts = Path::new(&shard).components();
            ensure!(
                matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)),
                "`weight_map` gives `{shard}` for `{tensor}`, expected a file name without folders"
            );
            weight_map.insert(tensor, shard);
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
        let mut index = self.rest.clone();
        let metadata = index.entry("metadata").or_insert_with(|| json!({}));
        if !metadata.is_object() {
            *metadata = json!({});
        }
        metadata["total_size"] = json!(total_size);
        index.insert("weight_map".into(), json!(weight_map));
        Ok(serde_json::to_string_pretty(&index)? + "\n")
    }
}

#[cfg(test)]
mod tests {
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
