//! What lies beside a checkpoint and says what its tensors mean: `config.json` and its kin.
//!
//! | file | who writes it | what it says |
//! |---|---|---|
//! | `config.json` | transformers, mlx-lm, others | `model_type`, `quantization_config` |
//! | `hf_quant_config.json` | ModelOpt | `producer`, `quantization` |
//! | `quantization_config.json` | AutoRound | the block of `config.json` once more |
//!
//! In a folder they have these names. Beside a single `STEM.safetensors` a `STEM.config.json` (and
//! so on) comes first, then the plain name: the folder's config, if it holds a model.
//!
//! A file that is no JSON object is remembered as a [problem](Config::problem), and not an error at
//! once: a dense checkpoint needs none of them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::source::Place;
use crate::error::{Error, Refusal};

/// Names of the files, most telling first.
const NAMES: [&str; 3] = ["config.json", "hf_quant_config.json", "quantization_config.json"];

/// The most bytes of such a file: those of real ones with lists of thousands of layers take one.
const MOST: u64 = 16 << 20;

/// The most values in it: as text one takes two bytes, and parsed dozens.
const MOST_VALUES: usize = 1 << 20;

/// The parsed files; [`Value::Null`] for those that are not there.
#[derive(Debug, Clone, Default)]
pub struct Config {
    values: [Value; 3],
    paths: [Option<PathBuf>; 3],
    problem: Option<String>,
    /// The layers that a header of ComfyUI's lists.
    header_layers: Option<Map<String, Value>>,
}

/// The key of a header under which ComfyUI lists the layers, as JSON.
pub const HEADER_LAYERS: &str = "_quantization_metadata";

/// No file at all.
static NONE: Config = Config {
    values: [Value::Null, Value::Null, Value::Null],
    paths: [None, None, None],
    problem: None,
    header_layers: None,
};

impl Config {
    /// No files.
    pub fn none() -> &'static Self {
        &NONE
    }

    /// A config given by value, as `config.json` would hold it.
    pub fn of(config: Value) -> Self {
        Config { values: [config, Value::Null, Value::Null], ..Config::default() }
    }

    /// Reads what lies in a folder.
    pub(super) fn of_folder(folder: &Path, place: &Place) -> Self {
        let mut config = Config::default();
        for (at, name) in NAMES.iter().enumerate() {
            config.read(at, &folder.join(name), place);
        }
        config
    }

    /// Reads what lies beside a file.
    pub(super) fn beside(file: &Path, place: &Place) -> Self {
        let mut config = Config::default();
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let own = NAMES.map(|name| {
            let stem = stem.as_deref().unwrap_or_default();
            file.with_file_name(format!("{stem}.{name}"))
        });
        // All of one set: those of the folder may speak of another file.
        let paths = match own.iter().any(|path| place.exists(path)) {
            true => own,
            false => NAMES.map(|name| file.with_file_name(name)),
        };
        for (at, path) in paths.iter().enumerate() {
            config.read(at, path, place);
        }
        config
    }

    /// Takes `config.json` from another place.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON object.
    pub(super) fn replace(&mut self, path: &Path) -> Result<(), Error> {
        let place = Place::System(None);
        let value = parse(path, &place).map_err(|refusal| Error::checkpoint(path, refusal))?;
        (self.values[0], self.paths[0]) = (value, Some(path.to_path_buf()));
        self.problem = None;
        Ok(())
    }

    fn read(&mut self, at: usize, path: &Path, place: &Place) {
        if !place.exists(path) {
            return;
        }
        let read = || parse(path, place).map_err(|refusal| Error::checkpoint(path, refusal));
        match place.check(path).and_then(|()| read()) {
            Ok(value) => (self.values[at], self.paths[at]) = (value, Some(path.into())),
            Err(error) => drop(self.problem.get_or_insert(error.to_string())),
        }
    }

    /// `config.json`.
    pub fn model(&self) -> &Value {
        &self.values[0]
    }

    /// `hf_quant_config.json`.
    pub fn hf_quant(&self) -> &Value {
        &self.values[1]
    }

    /// Names and values of the files that were read.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        NAMES.into_iter().zip(&self.values).filter(|(_, value)| !value.is_null())
    }

    /// The files that were read.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().flatten().map(PathBuf::as_path)
    }

    /// Takes what a header says under [`HEADER_LAYERS`].
    pub(super) fn read_header(&mut self, text: &str) {
        if let Err(refusal) = few(text) {
            self.problem.get_or_insert(format!("`{HEADER_LAYERS}` of the header: {refusal}"));
            return;
        }
        let value = serde_json::from_str::<Value>(text).ok();
        let layers = value.and_then(|mut value| match value["layers"].take() {
            Value::Object(layers) => Some(layers),
            _ => None,
        });
        self.header_layers = layers;
    }

    /// The layers that a header of ComfyUI's lists, if there is one.
    pub fn header_layers(&self) -> Option<&Map<String, Value>> {
        self.header_layers.as_ref()
    }

    /// Why one of the files could not be read.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Is there a `config.json`?
    pub fn has_model(&self) -> bool {
        self.model().is_object()
    }

    /// `model_type`, that of a text model inside a larger one if the outer has none.
    pub fn model_type(&self) -> Option<&str> {
        let own = self.model()["model_type"].as_str();
        own.or_else(|| self.model()["text_config"]["model_type"].as_str())
    }

    /// The block about quantization: `quantization_config`, at the top or in `text_config`, else
    /// the file of that name.
    pub fn quantization(&self) -> &Value {
        let model = self.model();
        let blocks = [
            &model["quantization_config"],
            &model["text_config"]["quantization_config"],
            &self.values[2],
        ];
        blocks.into_iter().find(|block| block.is_object()).unwrap_or(&Value::Null)
    }

    /// `quant_method` of that block, lower case.
    pub fn quant_method(&self) -> Option<String> {
        self.quantization()["quant_method"].as_str().map(str::to_ascii_lowercase)
    }
}

/// Refuses JSON of more values than are taken.
fn few(text: &str) -> Result<(), Refusal> {
    // A value follows a comma or begins a list or an object.
    let values = text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    match values > MOST_VALUES {
        true => Err(Refusal::Values { values, most: MOST_VALUES }),
        false => Ok(()),
    }
}

fn parse(path: &Path, place: &Place) -> Result<Value, Refusal> {
    let text = place.read_text(path, MOST)?;
    few(&text)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| Refusal::Config(e.to_string()))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Refusal::Config("it is no JSON object".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_own_config_comes_before_the_folders() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.safetensors");
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("config.json", r#"{"model_type": "folder"}"#);
        assert_eq!(Config::beside(&file, &Place::System(None)).model_type(), Some("folder"));
        write("a.config.json", r#"{"text_config": {"model_type": "own"}}"#);
        let config = Config::beside(&file, &Place::System(None));
        assert_eq!(config.model_type(), Some("own"));
        assert_eq!((config.paths().count(), config.problem()), (1, None));
        write("a.quantization_config.json", r#"{"quant_method": "Auto-Round"}"#);
        assert_eq!(
            Config::beside(&file, &Place::System(None)).quant_method().as_deref(),
            Some("auto-round")
        );
    }

    #[test]
    fn a_file_that_is_no_object_is_a_problem_and_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.safetensors");
        for text in ["[1]", "{", "\u{7f}"] {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            let config = Config::beside(&file, &Place::System(None));
            assert!(config.problem().unwrap().contains("config.json"), "{text}");
            assert_eq!(config.model(), &Value::Null);
        }
    }

    #[test]
    fn a_config_of_too_many_values_is_a_problem_and_a_long_list_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.safetensors");
        let read = |text: String| {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            Config::beside(&file, &Place::System(None))
        };
        let list = |names: usize| {
            let names: Vec<_> = (0..names).map(|i| format!("model.layers.{i}.q_proj")).collect();
            serde_json::json!({ "quantization_config": { "ignore": names } }).to_string()
        };
        assert_eq!(read(list(200_000)).problem(), None);
        for (text, says) in [
            (format!(r#"{{"a": [{}]}}"#, vec!["0"; MOST_VALUES].join(",")), "1048577 values"),
            (format!(r#"{{"a": [{}]}}"#, vec!["[[[]]]"; 400_000].join(",")), "1600001 values"),
            (format!(r#"{{"a": "{}"}}"#, "x".repeat(MOST as usize)), "at most 16777216"),
        ] {
            let config = read(text);
            let problem = config.problem().unwrap();
            assert!(problem.contains(says), "no {says} in {problem}");
            assert_eq!(config.model(), &Value::Null);
        }
        let mut config = Config::default();
        config.read_header(&format!(r#"{{"layers": {{"a": [{}]}}}}"#, "0,".repeat(MOST_VALUES)));
        assert!(config.problem().unwrap().contains("of the header: it has about 1048579 values"));
        assert_eq!(config.header_layers(), None);
    }
}
