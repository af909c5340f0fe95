//! A file of JavaScript's: a function that reads by position.
//!
//! Functions stay on the thread that they are from, and a checkpoint may go to any; so a source
//! holds a number, under which the function is kept on this thread.

use std::cell::RefCell;
use std::io;

use js_sys::{Function, Uint8Array};
use quant_linear::checkpoint::{ByteSource, Refusal};
use wasm_bindgen::prelude::*;

use crate::arguments::{Options, long, text};
use crate::call::{Failure, stopped, thrown};

thread_local! {
    /// The object and its function, by number.
    static READERS: RefCell<Vec<Option<(JsValue, Function)>>> = const { RefCell::new(Vec::new()) };
}

/// A file of JavaScript's.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    len: u64,
    number: usize,
}

impl Source {
    /// A source: an object with `name`, `size` and `read(position, length)`.
    ///
    /// # Errors
    /// Another object.
    pub(crate) fn new(object: &JsValue) -> Result<Self, Failure> {
        let source = Options::any(object, "a source")?;
        let (name, what) = source.needed("name")?;
        let name = text(&name, &what)?;
        let (size, what) = source.needed("size")?;
        let len = long(&size, &what)?;
        let (read, _) = source.needed("read")?;
        let read = read.dyn_into::<Function>();
        let read = read.map_err(|_| Failure::new("a source's `read` is no function; give one"))?;
        let number = READERS.with_borrow_mut(|readers| {
            let free = readers.iter().position(Option::is_none);
            let number = free.unwrap_or(readers.len());
            readers.resize(readers.len().max(number + 1), None);
            readers[number] = Some((object.clone(), read));
            number
        });
        Ok(Source { name, len, number })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        READERS.with_borrow_mut(|readers| {
            if let Some(place) = readers.get_mut(self.number) {
                *place = None;
            }
        });
    }
}

impl ByteSource for Source {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> Result<(), Refusal> {
        let len = buffer.len();
        let refused = |what: &str| Refusal::Bytes { len, position, error: io::Error::other(what) };
        if stopped() {
            return Err(refused("the call was stopped"));
        }
        if position.checked_add(len as u64).is_none_or(|end| end > self.len) {
            let error = io::ErrorKind::UnexpectedEof.into();
            return Err(Refusal::Bytes { len, position, error });
        }
        // Called outside the list: it may open files itself.
        let reader = READERS.with_borrow(|readers| readers.get(self.number).cloned().flatten());
        let (object, read) = reader.ok_or_else(|| refused("its thread is another"))?;
        let (at, length) = (JsValue::from(position as f64), JsValue::from(len as f64));
        let bytes = read.call2(&object, &at, &length).map_err(|value| {
            thrown(value);
            refused("its `read` threw")
        })?;
        let bytes = bytes.dyn_into::<Uint8Array>();
        let bytes = bytes.map_err(|_| refused("its `read` gave no Uint8Array"))?;
        if bytes.length() as usize != len {
            let got = bytes.length();
            return Err(refused(&format!("its `read` gave {got} bytes, and {len} were asked for")));
        }
        bytes.copy_to(buffer);
        Ok(())
    }
}
