//! Files of other people: read without waiting for them, and without taking a name twice.
//!
//! A vector file is regular; a pipe or a device would keep a reader waiting, or never end. JSON
//! allows a key twice and its parsers keep one of the values, so that a second answer, or a case
//! behind another of its number, would go unseen: here that is an error.

use std::collections::{BTreeMap, btree_map::Entry};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;

use safetensors::{SafeTensorError, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The bytes of a regular file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    expect_regular(path)?;
    std::fs::read(path)
}

/// An error for a pipe, a device or a folder, without opening it.
pub(crate) fn expect_regular(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// A safetensors file whose header names nothing twice.
pub(crate) fn tensors(bytes: &[u8]) -> Result<SafeTensors<'_>, SafeTensorError> {
    let (header, _) = SafeTensors::read_metadata(bytes)?;
    // The length was just checked by the parser.
    let json = bytes.get(8..8 + header).ok_or(SafeTensorError::InvalidHeaderLength)?;
    serde_json::from_slice::<Unique<IgnoredAny>>(json)
        .map_err(SafeTensorError::InvalidHeaderDeserialization)?;
    SafeTensors::deserialize(bytes)
}

/// A map without a key that is there twice, for `#[serde(deserialize_with)]`.
pub(crate) fn unique<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, V>, D::Error> {
    Unique::deserialize(deserializer).map(|unique| unique.0)
}

struct Unique<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

struct Keys<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
    type Value = Unique<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut unique = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            match unique.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(map.next_value()?);
                }
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format_args!("{} is there twice", entry.key())));
                }
            }
        }
        Ok(Unique(unique))
    }
}
