//! Folding: the launches that fill a [`Folded`] from packed codes and scales.

use fp4_core::Error;

use crate::build::arguments::{EXTRA_SLICES, FOLD_ROWS, FoldArgs, encoding};
use crate::build::kernels::{FOLD, FOLD_EXTRAS};
use crate::device::error::unless_memory_is_short;
use crate::device::launch::{Grid, int};
use crate::operand::folded::{Extra, FoldShape, Folded};
use crate::operand::packed::CudaOperand;

/// Threads of a block that folds: a warp a row.
const THREADS: usize = 32 * FOLD_ROWS;

impl Folded {
    fn arguments(&self, of: &FoldShape) -> Result<FoldArgs, Error> {
        Ok(FoldArgs {
            codes: of.packed.codes,
            scales: of.packed.scales,
            to: self.operand(of.rows, of.packed.meta)?,
            k_pad: int(of.k_pad)?,
            unused: 0,
        })
    }

    /// Queues what follows the first pass over the operand: the windows that outliers make.
    pub(crate) fn finish(&mut self, of: &FoldShape) -> Result<(), Error> {
        let kernel = &FOLD_EXTRAS[encoding(of.encoding)? as usize];
        let blocks = [self.tiles, self.slices.div_ceil(EXTRA_SLICES), 1];
        // SAFETY: `begin` made room for the tiles and steps of this shape, and the operand for its
        // rows; the kernel writes the folded form alone.
        unsafe { of.gpu.launch(kernel, Grid { blocks, threads: THREADS }, &self.arguments(of)?)? };
        self.ready = true;
        Ok(())
    }

    /// Queues the folding of packed codes and scales, which also describes the rows.
    pub(crate) fn fill(&mut self, of: &FoldShape) -> Result<(), Error> {
        self.fill_with(of, Extra::Usual)
    }

    fn fill_with(&mut self, of: &FoldShape, extra: Extra) -> Result<(), Error> {
        self.begin_with(of, extra)?;
        let grid = Grid::row(self.row_blocks(), THREADS);
        let kernel = &FOLD[encoding(of.encoding)? as usize];
        // SAFETY: as in `finish`; the rows' metadata is the operand's too.
        unsafe { of.gpu.launch(kernel, grid, &self.arguments(of)?)? };
        self.finish(of)
    }

    /// Folds what is kept for long, with as many extra blocks as it needs: without any at first,
    /// and once more if there are some. This waits for the device.
    pub(crate) fn fill_exactly(&mut self, of: &FoldShape) -> Result<(), Error> {
        self.fill_with(of, Extra::Of(0))?;
        let mut counters = vec![0u32; self.tiles * (2 * self.slices + 1)];
        self.counters.download(&of.gpu.stream, bytemuck::cast_slice_mut(&mut counters))?;
        of.gpu.synchronize()?;
        match counters[2 * self.tiles * self.slices..].iter().max() {
            Some(&most) if most > 0 => self.fill_with(of, Extra::Of(most as usize)),
            _ => Ok(()),
        }
    }
}

impl CudaOperand {
    /// Runs a folding of what is in the operand; without memory for it there is none, and no error.
    pub(crate) fn fold(
        &mut self,
        run: impl FnOnce(&mut Folded, &FoldShape) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let of = self.shape_to_fold()?;
        let done = unless_memory_is_short(run(&mut self.folded, &of), "a folded operand")?;
        if !done {
            // What it has got of its memory is of more use elsewhere.
            self.folded = Folded::default();
            self.folds = false;
        }
        Ok(done)
    }
}

#[cfg(all(test, feature = "emulated"))]
mod tests {
    use fp4_core::backend::{Resident, Source};
    use fp4_core::{
        FloatType, Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Transform, bf16, f16,
        hadamard, reference,
    };

    use super::*;
    use crate::device::buffer::Buffer;
    use crate::device::gpu::Gpu;
    use crate::operand::folded::block_bytes;
    use crate::{Cuda, MatmulKernel};

    /// What a folding wrote, whichever extra blocks it took: bases, tiles without a folded form,
    /// and for each slice its sets of windows, the block of window 0, and the others in order of
    /// the window.
    #[derive(PartialEq)]
    struct Contents {
        bases: Vec<i32>,
        incomplete: Vec<bool>,
        slices: Vec<(u32, Vec<Vec<u8>>)>,
        meta: Vec<[i32; 4]>,
    }

    fn download<T: bytemuck::Pod + Default>(gpu: &Gpu, from: &Buffer, len: usize) -> Vec<T> {
        let mut out = vec![T::default(); len];
        from.download(&gpu.stream, bytemuck::cast_slice_mut(&mut out)).unwrap();
        gpu.synchronize().unwrap();
        out
    }

    fn contents(operand: &CudaOperand) -> Contents {
        let (f, gpu, rows) = (&operand.folded, &operand.gpu, operand.shape.rows());
        assert!(f.ready());
        let size = block_bytes(operand.shape.encoding().unwrap()).unwrap();
        let stride = (f.slices + f.extra) * size;
        let blocks: Vec<u8> = download(gpu, &f.blocks, f.tiles * stride);
        let counters: Vec<u32> = download(gpu, &f.counters, f.tiles * (2 * f.slices + 2));
        let incomplete: Vec<_> =
            counters[f.tiles * (2 * f.slices + 1)..].iter().map(|&flag| flag != 0).collect();
        let mut slices = Vec::new();
        for (at, entry) in counters[..2 * f.tiles * f.slices].chunks(2).enumerate() {
            let (tile, slice, sets) = (at / f.slices, at % f.slices, entry[0]);
            if incomplete[tile] {
                continue;
            }
            let block = |index: usize| blocks[tile * stride + index * size..][..size].to_vec();
            let windows = sets.to_le_bytes().iter().fold(0, |all, set| all | set);
            let others = (windows & !(1 << 4)).count_ones() as usize;
            let first = f.slices + entry[1] as usize;
            let all = [slice].into_iter().chain(first..first + others).map(block).collect();
            slices.push((sets, all));
        }
        let bases = download(gpu, &f.bases, rows);
        Contents { bases, incomplete, slices, meta: download(gpu, &operand.meta, rows) }
    }

    #[test]
    fn one_pass_writes_what_two_passes_write() {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::MmaFolded { ranges: 0 });
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut h = vec![0f32; 32 * 32];
        hadamard(32, &mut h).unwrap();
        let transform = Transform::shared(&h[..], 32).unwrap();
        let (mut compared, mut with_extras, mut incomplete) = (0, 0, 0);
        let rows_too = QuantSpec::usual(Format::NvFp4).with_row_scales().unwrap();
        let specs = Format::ALL.map(QuantSpec::usual).into_iter().chain([rows_too]);
        for spec in specs {
            for (rows, k, outlier) in
                [(1, 32, 1.0), (129, 416, 30.0), (70, 288, 1.0), (3, 0, 1.0), (9, 160, 1e12)]
            {
                let x: Vec<f32> = (0..rows * k)
                    .map(|i| uniform() * if i % k % 50 == 7 { outlier } else { 1.0 })
                    .collect();
                for (ty, t) in [
                    (FloatType::F32, None),
                    (FloatType::F16, None),
                    (FloatType::Bf16, Some(transform)),
                    (FloatType::F32, Some(transform)),
                ] {
                    let half: Vec<f16> = x.iter().map(|&v| f16::from_f32(v)).collect();
                    let brain: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
                    let values: fp4_core::FloatSlice<'_> = match ty {
                        FloatType::F32 => (&x[..]).into(),
                        FloatType::F16 => (&half[..]).into(),
                        FloatType::Bf16 => (&brain[..]).into(),
                    };
                    let case = format!("{spec:?} {rows}x{k} {ty:?} {}", t.is_some());
                    let input = QuantizeInput::new(values, rows, k, &spec).unwrap();
                    let input = input.with_transform(t).unwrap();
                    let mut packed = PackedMatrix::zeros(input.shape());
                    let mut row_scales = vec![0f32; rows];
                    let mut to = packed.view_mut().with_row_scales(&mut row_scales).unwrap();
                    reference::quantize(&input, &mut to).unwrap();

                    let t = t.map(|t| cuda.load_transform(&t, ty).unwrap());
                    let mut one = cuda.empty_operand().unwrap();
                    let from = Source::Host(values);
                    cuda.quantize_resident(from, [rows, k], &spec, t.as_ref(), &mut one, None)
                        .unwrap();
                    let mut exported = PackedMatrix::zeros(input.shape());
                    cuda.export(&one, &mut exported.view_mut()).unwrap();
                    assert!(exported.view() == packed.view(), "{case}: codes or scales");

                    let mut two = cuda.empty_operand().unwrap();
                    two.import(packed.view(), false).unwrap();
                    let described: Vec<[i32; 4]> = download(&two.gpu, &two.meta, rows);
                    two.import(packed.view(), true).unwrap();
                    let (one, two) = (contents(&one), contents(&two));
                    assert!(one == two, "{case}: the folded forms differ");
                    assert_eq!(one.meta, described, "{case}: row metadata");

                    let kept = contents(&cuda.prepare(packed.view()).unwrap().operand);
                    assert!(kept == one, "{case}: the weight's folded form differs");
                    compared += one.slices.iter().map(|(_, blocks)| blocks.len()).sum::<usize>();
                    with_extras += one.slices.iter().filter(|(_, blocks)| blocks.len() > 1).count();
                    incomplete += one.incomplete.iter().filter(|&&tile| tile).count();
                }
            }
        }
        println!(
            "{compared} blocks equal, {with_extras} slices with extra ones, {incomplete} tiles left"
        );
        assert!(compared > 100 && with_extras > 10 && incomplete > 0);
    }

    #[test]
    fn the_base_is_the_lowest_exponent_where_four_windows_hold_the_row() {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::MmaFolded { ranges: 0 });
        let mx = fp4_core::PackedShape::of(Format::MxFp4, 1, 128).unwrap();
        let nv = fp4_core::PackedShape::of(Format::NvFp4, 1, 64).unwrap();
        // Scale bytes, and the base: an exponent, of e4m3 its field.
        for (shape, scales, base) in [
            (mx, [120, 121, 121, 126], 120),
            (mx, [120, 124, 124, 124], 120),
            (mx, [120, 135, 135, 135], 120),
            // 16 from the lowest to the highest: that from which a window holds most.
            (mx, [120, 136, 136, 136], 136),
            (mx, [120, 136, 122, 122], 120),
            (nv, [0x0F, 0x78, 0x78, 0x78], 1),
            (nv, [0x20, 0x21, 0x28, 0x78], 4),
        ] {
            let codes = vec![0x22; shape.codes_len()];
            let packed = PackedMatrix::new(shape, codes, scales.to_vec()).unwrap();
            let got = contents(&cuda.prepare(packed.view()).unwrap().operand).bases;
            assert_eq!(got, [base], "{shape:?} {scales:?}");
        }
    }

    #[test]
    fn a_product_folds_nothing_that_is_folded() {
        let b = PackedMatrix::zeros(fp4_core::PackedShape::of(Format::NvFp4, 5, 64).unwrap());
        let product = |cuda: &Cuda| {
            let weight = cuda.prepare(b.view()).unwrap();
            cuda.matmul(b.view(), &weight, 1.0.into(), (&mut [0f32; 25][..]).into()).unwrap();
            let scratch = cuda.scratch.lock().unwrap();
            [&scratch.a, &scratch.b].map(|folded| folded.blocks.address() != 0)
        };
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::MmaFolded { ranges: 0 });
        assert_eq!(product(&cuda), [false, false]);
        assert_eq!(product(&cuda.with_folded_weights(false)), [false, true]);
    }

    #[test]
    fn a_weight_takes_only_the_extra_blocks_that_it_needs() {
        let cuda = Cuda::open(0).unwrap();
        let shape = fp4_core::PackedShape::of(Format::MxFp4, 2, 256).unwrap();
        let codes = vec![0x22; shape.codes_len()];
        for (far, extra) in [(&[][..], 0), (&[1], 1), (&[0, 1, 2], 1), (&[0, 4, 5], 2)] {
            // Groups six exponents away, of which one or more of a slice's four take a block.
            let scales = (0..16).map(|g| if far.contains(&(g % 8)) { 126 } else { 120 }).collect();
            let b = PackedMatrix::new(shape, codes.clone(), scales).unwrap();
            let weight = cuda.prepare(b.view()).unwrap();
            assert_eq!((weight.operand.folded.ready(), weight.operand.folded.extra), (true, extra));
        }
        let cuda = cuda.with_folded_weights(false);
        let b = PackedMatrix::zeros(shape);
        assert!(!cuda.prepare(b.view()).unwrap().operand.folded.ready());
    }
}
