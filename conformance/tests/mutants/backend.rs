//! A straightforward backend with one thing wrong at a time.
//!
//! It calls the core's rules for everything but the step that is wrong, so that only that step
//! differs from the contract; without a fault it passes the suite.

use fp4_core::{Error, Named, Packed, PackedShape, PreparedWeight, check_environment};

use super::Fault;

/// The backend; `threads` is what a thread-dependent fault depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mutant {
    pub(crate) fault: Option<Fault>,
    pub(crate) threads: usize,
    /// It says that it supports no f16 outputs, no tie mode but even, and no partial sums.
    pub(crate) limited: bool,
}

/// A weight, copied.
pub(crate) struct Weight<B>(pub(super) B);

impl<B: Packed> PreparedWeight for Weight<B> {
    fn shape(&self) -> PackedShape {
        self.0.view().shape()
    }
}

impl Named for Mutant {
    fn name(&self) -> &str {
        self.fault.map_or("no fault", Fault::name)
    }
}

impl Mutant {
    /// One that has this fault.
    pub(crate) fn of(fault: Fault) -> Self {
        Mutant { fault: Some(fault), threads: 1, limited: false }
    }

    /// One that is right, as far as it goes.
    pub(crate) fn limited() -> Self {
        Mutant { fault: None, threads: 1, limited: true }
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) fn check_environment(&self) -> Result<(), Error> {
        if self.has(Fault::EnvironmentIgnored) { Ok(()) } else { check_environment() }
    }
}
