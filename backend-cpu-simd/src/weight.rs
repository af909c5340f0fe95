//! A prepared weight and what is done with it, for whatever it was prepared from.
//!
//! The traits are generic over that; here nothing is, so that the kernels are compiled once, in
//! this crate, and not again in every crate that multiplies.

use std::ops::Range;

use fp4_core::{
    Epilogue, Error, FloatSliceMut, PackedMut, PackedShape, PackedView, PartialsMut, Paths,
    check_environment,
};

use crate::engine::{Engine, by_engine, engine_with};
use crate::isa::Isa;
use crate::kernels::portable;
use crate::matmul::{self, CutCall, ReusedTiles, TileScratch};
use crate::threads::TaskThreads;

/// Panels in the form of an instruction set's kernels, with the proof that the CPU has it.
#[derive(Clone)]
pub(crate) struct Weight(Engine<matmul::Panels, portable::BytePanels>);

impl Weight {
    pub(crate) fn new(
        engine: Engine,
        threads: &TaskThreads,
        view: PackedView<'_>,
    ) -> Result<Self, Error> {
        Ok(Weight(engine_with!(engine,
            kernels => matmul::prepare(kernels, threads, view)?,
            portable => portable::BytePanels::new(threads, view)?
        )))
    }

    pub(crate) fn shape(&self) -> PackedShape {
        by_engine!(self.0,
            _kernels, panels => panels.shape(),
            portable, panels => panels.shape()
        )
    }

    /// The instruction set of its kernels.
    pub(crate) fn isa(&self) -> Isa {
        by_engine!(self.0, kernels, _ => matmul::isa(kernels), portable, _ => Isa::Portable)
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        by_engine!(self.0,
            _kernels, panels => panels.allocated_bytes(),
            portable, panels => panels.allocated_bytes()
        )
    }

    /// As [`fp4_core::Matmul::matmul`].
    pub(crate) fn matmul(
        &self,
        (threads, scratch): (&TaskThreads, &TileScratch),
        a: PackedView<'_>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        check_environment()?;
        by_engine!(self.0,
            kernels, b => matmul::matmul(kernels, threads, scratch, a, b, epilogue, out),
            portable, b => portable::matmul::matmul(threads, a, b, epilogue, out)
        )
    }

    /// As [`matmul`](Self::matmul), by tiles that the rows are in already; `tiles` are those of the
    /// weight's format.
    pub(crate) fn matmul_tiles(
        &self,
        (threads, scratch): (&TaskThreads, &TileScratch),
        (a, tiles): (PackedView<'_>, &matmul::RowTiles),
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        check_environment()?;
        by_engine!(self.0,
            kernels, b => {
                matmul::matmul_tiles(kernels, threads, scratch, a, tiles, b, epilogue, out)
            },
            portable, b => portable::matmul::matmul(threads, a, b, epilogue, out)
        )
    }

    /// As [`matmul`](Self::matmul), by tiles that may hold the rows from the product before; the
    /// operands and the environment are checked.
    pub(crate) fn matmul_reusing<'a>(
        &self,
        threads: &TaskThreads,
        rows: &mut ReusedTiles<'a>,
        a: PackedView<'a>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        by_engine!(self.0,
            kernels, b => matmul::matmul_reusing(kernels, threads, rows, a, b, epilogue, out),
            portable, b => portable::matmul::matmul(threads, a, b, epilogue, out)
        )
    }

    /// True if rows are packed into tiles for it, and its products can be [`cut`](Self::cut).
    pub(crate) fn is_tiled(&self) -> bool {
        by_engine!(self.0, _kernels, _ => true, portable, _ => false)
    }

    /// True if tiles that hold the rows `of` for the weight `other` are of use here, for `a`.
    pub(crate) fn shares_tiles(
        &self,
        a: PackedView<'_>,
        other: &Weight,
        of: PackedView<'_>,
    ) -> bool {
        let kernels = |weight: &Weight| std::mem::discriminant(&weight.0);
        kernels(self) == kernels(other)
            && self.shape().format() == other.shape().format()
            && matmul::is_same(&a, &of)
    }

    /// Packs rows for [`cut`](Self::cut), unless they are packed already.
    pub(crate) fn pack<'a>(
        &self,
        threads: &TaskThreads,
        rows: &mut ReusedTiles<'a>,
        a: PackedView<'a>,
    ) -> Result<(), Error> {
        by_engine!(self.0,
            kernels, b => matmul::pack_reusing(kernels, threads, rows, a, b),
            portable, _ => Ok(())
        )
    }

    /// A product with outputs, its rows in `tiles`, in about so many tasks; `None` unless it
    /// [`is_tiled`](Self::is_tiled).
    pub(crate) fn cut<'a>(
        &'a self,
        threads: &'a TaskThreads,
        (a, tiles): (PackedView<'a>, &'a matmul::RowTiles),
        epilogue: Epilogue<'a>,
        out: FloatSliceMut<'a>,
        tasks: usize,
    ) -> Option<Box<dyn CutCall + 'a>> {
        by_engine!(self.0,
            kernels, b => {
                Some(matmul::cut::cut(kernels, threads, a, tiles, b, epilogue, out, tasks))
            },
            portable, _ => None
        )
    }

    /// As [`fp4_core::Matmul::partial`].
    pub(crate) fn partial(
        &self,
        threads: &TaskThreads,
        a: PackedView<'_>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        check_environment()?;
        by_engine!(self.0,
            kernels, b => {
                matmul::sum::partial(&matmul::TiledOperands { kernels, threads, a, b }, groups, out)
            },
            portable, b => {
                let product = portable::matmul::PortableOperands { threads, a, b };
                matmul::sum::partial(&product, groups, out)
            }
        )
    }

    /// As [`fp4_core::Matmul::export_weight`].
    pub(crate) fn export(
        &self,
        threads: &TaskThreads,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        self.shape().expect_same(&out.shape())?;
        by_engine!(self.0,
            _kernels, panels => panels.export(threads, out),
            portable, panels => panels.export(threads, out)
        )
    }
}
