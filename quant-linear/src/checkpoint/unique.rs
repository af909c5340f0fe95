//! JSON objects that name nothing twice: readers disagree on which of two would count.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// An object with values of one type.
#[derive(Debug, Clone)]
pub(super) struct Unique<V>(pub(super) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Names<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(name) = map.next_key()? {
                    insert(&mut all, name, map.next_value()?)?;
                }
                Ok(Unique(all))
            }
        }
        deserializer.deserialize_map(Names(PhantomData))
    }
}

/// Adds an entry whose name must be new.
///
/// # Errors
/// A name that is there already.
pub(super) fn insert<V, E: Error>(
    all: &mut BTreeMap<String, V>,
    name: String,
    value: V,
) -> Result<(), E> {
    match all.entry(name) {
        Entry::Vacant(place) => drop(place.insert(value)),
        Entry::Occupied(taken) => {
            return Err(E::custom(format!("`{}` is there twice", taken.key())));
        }
    }
    Ok(())
}
