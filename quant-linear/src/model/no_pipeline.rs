//! Without the feature `calibrate` no weight is quantized with a calibration.

use crate::checkpoint::Arrangement;
use crate::error::Error;
use crate::layer::DenseOptions;
use crate::model::plan::Weight;
use crate::model::quantize::{Engine, Observer, Outcome};
use crate::model::stream::Sink;

/// How weights are quantized with a calibration: there is none.
#[derive(Debug)]
pub enum Pipeline {}

impl Pipeline {
    /// What decides the bytes that it makes.
    pub fn settings(&self) -> Vec<(String, String)> {
        match *self {}
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// None.
    pub fn check(&self, _: &DenseOptions) -> Result<(), Error> {
        match *self {}
    }

    pub(super) fn transform_shape(&self, _: usize) -> Option<(fp4_core::FloatType, Vec<usize>)> {
        match *self {}
    }

    pub(super) fn transform_block(&self) -> Option<usize> {
        match *self {}
    }

    pub(super) fn transform_name(&self) -> String {
        match *self {}
    }

    pub(super) fn shares(&self, _: &str, _: &str) -> bool {
        match *self {}
    }

    pub(super) fn memory(&self, _: usize, _: usize) -> u64 {
        match *self {}
    }

    pub(super) fn expect_layer(&self, _: &str) -> Result<(), Error> {
        match *self {}
    }
}

impl Engine<'_> {
    pub(super) fn quantize_by(
        &self,
        pipeline: &Pipeline,
        _: &Weight,
        _: &Arrangement,
        _: &Sink<'_>,
        _: &mut Observer<'_>,
    ) -> Result<Outcome, Error> {
        match *pipeline {}
    }
}
