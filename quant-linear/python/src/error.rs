//! Errors: what the Rust crates say, as one exception with the same text.

use pyo3::exceptions::PyValueError;
use pyo3::{PyErr, create_exception};

create_exception!(
    exact_fp4,
    Fp4Error,
    PyValueError,
    "What was given, what was expected, what to do: the text of the Rust crates."
);
create_exception!(
    exact_fp4,
    Fp4Warning,
    pyo3::exceptions::PyUserWarning,
    "What the Rust crates warn of, such as a backend that cannot do what it was chosen for."
);

/// What stopped a call.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Failure(text.into())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.to_string())
    }
}

impl From<Failure> for PyErr {
    fn from(Failure(text): Failure) -> Self {
        Fp4Error::new_err(text)
    }
}

/// The value of a name, or an error that lists the names.
pub(crate) fn parse<T: std::str::FromStr<Err: std::error::Error>>(
    name: &str,
) -> Result<T, Failure> {
    name.parse().map_err(|error: T::Err| Failure(format!("`{}`: {error}", name.escape_debug())))
}
