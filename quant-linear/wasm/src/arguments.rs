//! Values and options of JavaScript, checked: what is of another type, or has a name that nobody
//! reads, is an error and never something else.

use js_sys::{Array, Float32Array, Object, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::call::Failure;

/// The largest whole number that a number of JavaScript holds exactly.
const SAFE: f64 = 9_007_199_254_740_991.0;

/// What a value is, for messages.
fn kind(value: &JsValue) -> String {
    if value.is_null() {
        return "null".into();
    }
    if let Some(number) = value.as_f64() {
        return number.to_string();
    }
    match value.as_string() {
        Some(text) => format!("`{}`", text.chars().take(60).collect::<String>().escape_debug()),
        None => value.js_typeof().as_string().unwrap_or_default(),
    }
}

fn wrong(name: &str, value: &JsValue, expected: &str) -> Failure {
    Failure::new(format!("{name} is {}; give {expected}", kind(value)))
}

/// A count: a whole number from 0 up.
///
/// # Errors
/// Anything else.
pub(crate) fn count(value: &JsValue, name: &str) -> Result<usize, Failure> {
    let number = long(value, name)?;
    usize::try_from(number).map_err(|_| wrong(name, value, "a number below 4294967296"))
}

/// A whole number from 0 up, as large as numbers of JavaScript are exact.
///
/// # Errors
/// Anything else.
pub(crate) fn long(value: &JsValue, name: &str) -> Result<u64, Failure> {
    match value.as_f64() {
        Some(number) if (0.0..=SAFE).contains(&number) && number.fract() == 0.0 => {
            Ok(number as u64)
        }
        _ => Err(wrong(name, value, "a whole number from 0 up")),
    }
}

/// A number, as an f32.
///
/// # Errors
/// Anything else.
pub(crate) fn number(value: &JsValue, name: &str) -> Result<f32, Failure> {
    let number = value.as_f64().map(|number| number as f32);
    number.ok_or_else(|| wrong(name, value, "a number"))
}

/// True or false.
///
/// # Errors
/// Anything else.
#[cfg(feature = "kernels")]
pub(crate) fn boolean(value: &JsValue, name: &str) -> Result<bool, Failure> {
    value.as_bool().ok_or_else(|| wrong(name, value, "true or false"))
}

/// A text.
///
/// # Errors
/// Anything else.
pub(crate) fn text(value: &JsValue, name: &str) -> Result<String, Failure> {
    value.as_string().ok_or_else(|| wrong(name, value, "a string"))
}

/// The most items of a list: files of a folder, choices.
const MOST_ITEMS: u32 = 100_000;

/// A list.
///
/// # Errors
/// Anything else, and one that is too long.
pub(crate) fn list(value: &JsValue, name: &str) -> Result<Vec<JsValue>, Failure> {
    let list = value.dyn_ref::<Array>().ok_or_else(|| wrong(name, value, "an array"))?;
    if list.length() > MOST_ITEMS {
        let got = list.length();
        return Err(Failure::new(format!(
            "{name} has {got} items; at most {MOST_ITEMS} are taken"
        )));
    }
    Ok(list.iter().collect())
}

/// The values of a Float32Array.
///
/// # Errors
/// Anything else; more than there is memory for.
pub(crate) fn floats(value: &JsValue, name: &str) -> Result<Vec<f32>, Failure> {
    let array = value.dyn_ref::<Float32Array>();
    let array = array.ok_or_else(|| wrong(name, value, "a Float32Array"))?;
    let mut values = zeros(array.length() as usize)?;
    array.copy_to(&mut values);
    Ok(values)
}

/// The values of a Uint8Array.
///
/// # Errors
/// Anything else; more than there is memory for.
pub(crate) fn bytes(value: &JsValue, name: &str) -> Result<Vec<u8>, Failure> {
    let array = value.dyn_ref::<Uint8Array>();
    let array = array.ok_or_else(|| wrong(name, value, "a Uint8Array"))?;
    let mut values = zeros(array.length() as usize)?;
    array.copy_to(&mut values);
    Ok(values)
}

/// `len` zeros, or an error where there is no memory for them.
pub(crate) fn zeros<T: Clone + Default>(len: usize) -> Result<Vec<T>, Failure> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| quant_linear::Error::Memory { len })?;
    values.resize(len, T::default());
    Ok(values)
}

/// The product of two counts of an array.
///
/// # Errors
/// One that is larger than memory.
pub(crate) fn area(rows: usize, cols: usize) -> Result<usize, Failure> {
    let area = rows.checked_mul(cols);
    area.ok_or_else(|| Failure::new(format!("{rows} x {cols} values are more than memory holds")))
}

/// An object with options by name.
pub(crate) struct Options {
    what: &'static str,
    object: Option<Object>,
}

impl Options {
    /// An object of no other options than the `known`, or none at all.
    ///
    /// # Errors
    /// Another value, an unknown name.
    pub(crate) fn new(
        value: &JsValue,
        what: &'static str,
        known: &[&str],
    ) -> Result<Self, Failure> {
        if value.is_undefined() || value.is_null() {
            return Ok(Options { what, object: None });
        }
        let object = value.dyn_ref::<Object>().filter(|_| value.is_object());
        let object = object.ok_or_else(|| wrong(what, value, "an object"))?;
        for key in Object::keys(object).iter().filter_map(|key| key.as_string()) {
            if !known.contains(&&*key) {
                let (key, known) = (key.escape_debug(), known.join(", "));
                return Err(Failure::new(format!("{what} has no `{key}`; it has {known}")));
            }
        }
        Ok(Options { what, object: Some(object.clone()) })
    }

    /// An object of any properties.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn any(value: &JsValue, what: &'static str) -> Result<Self, Failure> {
        match value.dyn_ref::<Object>().filter(|_| value.is_object()) {
            Some(object) => Ok(Options { what, object: Some(object.clone()) }),
            None => Err(wrong(what, value, "an object")),
        }
    }

    /// The value of a name, if it is there, and its name in messages.
    pub(crate) fn get(&self, name: &str) -> Option<(JsValue, String)> {
        let value = Reflect::get(self.object.as_ref()?, &name.into()).ok()?;
        let there = !value.is_undefined() && !value.is_null();
        there.then(|| (value, format!("{}.{name}", self.what)))
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn needed(&self, name: &str) -> Result<(JsValue, String), Failure> {
        let what = self.what;
        self.get(name).ok_or_else(|| Failure::new(format!("{what} has no `{name}`; give it")))
    }

    /// A count.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>, Failure> {
        self.get(name).map(|(value, name)| count(&value, &name)).transpose()
    }

    /// A number, as an f32.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn float(&self, name: &str) -> Result<Option<f32>, Failure> {
        self.get(name).map(|(value, name)| number(&value, &name)).transpose()
    }

    /// One of the names of a setting.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn named<T: std::str::FromStr<Err: std::error::Error>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        let Some((value, name)) = self.get(name) else { return Ok(None) };
        let given = text(&value, &name)?;
        let parsed = given.parse::<T>();
        let shown = given.chars().take(60).collect::<String>();
        let told = |error: T::Err| Failure::new(format!("{name} is {shown:?}: {error}"));
        parsed.map(Some).map_err(told)
    }
}

/// The block of a transform by its name: `none`, or `hadamard-` and 16, 32, 64 or 128.
///
/// # Errors
/// Another name.
pub(crate) fn transform(options: &Options, name: &str) -> Result<Option<usize>, Failure> {
    let Some((value, name)) = options.get(name) else { return Ok(None) };
    let given = text(&value, &name)?;
    let known = TRANSFORMS.iter().find(|(known, ..)| *known == given);
    known.map(|(_, block, _)| *block).ok_or_else(|| {
        let known: Vec<_> = TRANSFORMS.iter().map(|(known, ..)| *known).collect();
        wrong(&name, &value, &format!("one of {}", known.join(", ")))
    })
}

/// Transforms by name: their blocks, and what they are.
pub(crate) const TRANSFORMS: [(&str, Option<usize>, &str); 5] = [
    ("none", None, "no transform"),
    ("hadamard-16", Some(16), "an orthonormal Hadamard matrix on each 16 values of a row"),
    ("hadamard-32", Some(32), "an orthonormal Hadamard matrix on each 32 values of a row"),
    ("hadamard-64", Some(64), "an orthonormal Hadamard matrix on each 64 values of a row"),
    ("hadamard-128", Some(128), "an orthonormal Hadamard matrix on each 128 values of a row"),
];

/// A value as JSON of JavaScript's own.
///
/// # Errors
/// None in practice: what is made here is JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<JsValue, Failure> {
    let text = serde_json::to_string(value)?;
    js_sys::JSON::parse(&text).map_err(|_| Failure::new("a result is no JSON; please report it"))
}

/// Sets a property of an object made here.
pub(crate) fn set(object: &JsValue, name: &str, value: impl Into<JsValue>) {
    // A plain object takes any.
    let _ = Reflect::set(object, &name.into(), &value.into());
}
