//! Captured graphs: a layer's quantize and matmul, recorded once and replayed on new data with the
//! bits of the reference; and what a capture cannot record is refused, after which everything works
//! as before.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, operand, same_bits};
use fp4_backend_cuda::{Cuda, CudaOperand, CudaTensor, CudaTransform, CudaWeight, MatmulKernel};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    Epilogue, Error, FloatType, Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Transform,
    hadamard, reference,
};

const K: usize = 800;
const N: usize = 33;

/// One layer on the device, and what the reference needs to do the same.
struct Layer {
    cuda: Cuda,
    spec: QuantSpec,
    packed: PackedMatrix,
    weight: CudaWeight<PackedMatrix>,
    h: Vec<f32>,
    transform: CudaTransform,
    m: usize,
    x: CudaTensor,
    a: CudaOperand,
    y: CudaTensor,
}

impl Layer {
    fn new(cuda: &Cuda, format: Format, m: usize, rng: &mut Rng) -> Self {
        let packed = operand(rng, format, N, K, |rng| 0x30 + rng.byte() % 16);
        let mut h = vec![0f32; 32 * 32];
        hadamard(32, &mut h).unwrap();
        let shared = Transform::shared(&h[..], 32).unwrap();
        Layer {
            spec: QuantSpec::usual(format),
            weight: cuda.prepare(packed.clone()).unwrap(),
            transform: cuda.load_transform(&shared, FloatType::F32).unwrap(),
            x: cuda.empty_tensor().unwrap(),
            a: cuda.empty_operand().unwrap(),
            y: cuda.empty_tensor().unwrap(),
            cuda: cuda.clone(),
            packed,
            h,
            m,
        }
    }

    fn set(&mut self, values: &[f32]) {
        self.cuda.upload(values.into(), &mut self.x).unwrap();
    }

    fn forward(&mut self) -> Result<(), Error> {
        let (from, to) = (Source::Resident(&self.x), Sink::Resident(&mut self.y, FloatType::F32));
        let t = Some(&self.transform);
        self.cuda.quantize_resident(from, [self.m, K], &self.spec, t, &mut self.a, None)?;
        self.cuda.matmul_resident(&self.a, &self.weight, 0.3.into(), to)?;
        Ok(())
    }

    fn result(&self) -> Vec<f32> {
        let mut y = vec![7f32; self.m * N];
        self.cuda.download(&self.y, (&mut y[..]).into()).unwrap();
        y
    }

    fn expected(&self, values: &[f32]) -> Vec<f32> {
        let transform = Transform::shared(&self.h[..], 32).unwrap();
        let input = QuantizeInput::new(values, self.m, K, &self.spec).unwrap();
        let input = input.with_transform(Some(transform)).unwrap();
        let (mut a, mut rows) = (PackedMatrix::zeros(input.shape()), vec![0f32; self.m]);
        let mut to = a.view_mut().with_row_scales(&mut rows).unwrap();
        reference::quantize(&input, &mut to).unwrap();
        let rows = self.spec.row_scales().then_some(&rows[..]);
        let epilogue = Epilogue::new(0.3).with_row_scales(rows);
        let mut y = vec![0f32; self.m * N];
        reference::matmul(a.view(), self.packed.view(), epilogue, (&mut y[..]).into()).unwrap();
        y
    }

    fn values(&self, rng: &mut Rng) -> Vec<f32> {
        // Finite: a NaN would hide most outputs.
        (0..self.m * K).map(|_| rng.next() as i32 as f32 / 1e9).collect()
    }
}

#[test]
fn a_captured_layer_is_replayed_on_new_data() {
    let (cuda, mut rng, mut compared) = (Cuda::open(0).unwrap(), Rng(40), 0);
    // Decode, in two ranges of K and in one, the tensor cores of every device, and Hopper's.
    let whole = MatmulKernel::Decode { ranges: 1 };
    // With row scales the operand keeps those of the replay, and the product takes them.
    for (format, row_scales) in
        [(Format::MxFp4, false), (Format::NvFp4, false), (Format::NvFp4, true)]
    {
        for (kernel, m) in [
            (MatmulKernel::Auto, 3),
            (whole, 3),
            (MatmulKernel::Auto, 40),
            (MatmulKernel::Auto, 130),
        ] {
            let mut layer =
                Layer::new(&cuda.clone().with_matmul_kernel(kernel), format, m, &mut rng);
            if row_scales {
                layer.spec = layer.spec.with_row_scales().unwrap();
            }
            let first = layer.values(&mut rng);
            layer.set(&first);
            layer.forward().unwrap();
            assert_eq!(layer.result().len(), m * N);
            let graph = cuda.capture(|| layer.forward()).unwrap();
            for round in 0..3 {
                // Replays without outliers and with them: what kernels run does not depend on it.
                let mut values = layer.values(&mut rng);
                if round == 1 {
                    values.iter_mut().step_by(77).for_each(|v| *v *= 1000.0);
                }
                layer.set(&values);
                // Recording changed nothing, and so does the upload.
                let before = layer.result();
                graph.replay().unwrap();
                let after = layer.result();
                let case = format!("{format} {row_scales} {kernel:?} m = {m}, replay {round}");
                compared += same_bits(&after, &layer.expected(&values), &case);
                let changed = before.iter().zip(&after).any(|(b, a)| b.to_bits() != a.to_bits());
                assert!(changed, "{case}: the outputs are those of before");
            }
        }
    }
    println!("graphs: {compared} outputs of replays compared, 0 differ");
    assert_eq!(compared, 3 * 3 * (3 + 3 + 40 + 130) * N);
}

#[test]
fn what_a_capture_cannot_record_is_refused_and_all_goes_on() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(41));
    let refused = |result: Result<fp4_backend_cuda::Graph, Error>, case: &str| match result {
        Err(Error::Unsupported(why)) => {
            assert!(why.to_string().contains("once before the capture"), "{case}: {why}");
        }
        other => panic!("{case}: {other:?}"),
    };
    let mut layer = Layer::new(&cuda, Format::NvFp4, 3, &mut rng);
    let values = layer.values(&mut rng);
    layer.set(&values);

    // Nothing has run yet: kernels are to be loaded, buffers to be made.
    refused(cuda.capture(|| layer.forward()), "cold");
    layer.forward().unwrap();
    same_bits(&layer.result(), &layer.expected(&values), "after the refusal");

    // More rows than before.
    let mut larger = Layer::new(&cuda, Format::NvFp4, 9, &mut rng);
    let more = larger.values(&mut rng);
    larger.set(&more);
    refused(cuda.capture(|| larger.forward()), "growing");
    larger.forward().unwrap();
    same_bits(&larger.result(), &larger.expected(&more), "after growing");

    // Host memory, both ways, and waiting.
    refused(cuda.capture(|| cuda.upload((&values[..]).into(), &mut layer.x)), "upload");
    let mut y = vec![0f32; 3 * N];
    refused(cuda.capture(|| cuda.download(&layer.y, (&mut y[..]).into())), "download");
    refused(cuda.capture(|| cuda.synchronize()), "synchronize");
    refused(cuda.capture(|| cuda.prepare(layer.packed.clone()).map(drop)), "prepare");

    // The caller's own error comes back, and a panic leaves no capture open.
    let own = cuda.capture(|| Err(Error::PartialKind));
    assert!(matches!(own, Err(Error::PartialKind)), "{own:?}");
    let panicked = std::panic::AssertUnwindSafe(|| cuda.capture(|| panic!("on purpose")));
    assert!(std::panic::catch_unwind(panicked).is_err());
    let nested = cuda.capture(|| cuda.capture(|| Ok(())).map(drop));
    assert!(matches!(nested, Err(Error::Unsupported(_))), "{nested:?}");

    // An error that the calls do not return spoils the capture too; so does replaying.
    let nothing = cuda.capture(|| Ok(())).unwrap();
    let ignored = cuda.capture(|| {
        let _ = cuda.synchronize();
        Ok(())
    });
    refused(ignored, "an ignored error");
    refused(cuda.capture(|| nothing.replay()), "replay");
    // What is dropped meanwhile is freed afterwards.
    let (tensor, nothing) = (larger.x, nothing);
    cuda.capture(|| {
        drop((tensor, nothing));
        Ok(())
    })
    .unwrap();
    cuda.synchronize().unwrap();

    let graph = cuda.capture(|| layer.forward()).unwrap();
    graph.replay().unwrap();
    same_bits(&layer.result(), &layer.expected(&values), "at last");
}

#[test]
fn another_thread_is_refused_while_one_captures_and_nothing_of_it_is_recorded() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(42));
    let mut layer = Layer::new(&cuda, Format::MxFp4, 2, &mut rng);
    let values = layer.values(&mut rng);
    layer.set(&values);
    layer.forward().unwrap();
    let (theirs, ours) = ([1f32; 64], [2f32; 64]);
    let mut z = cuda.empty_tensor().unwrap();
    cuda.upload((&theirs[..]).into(), &mut z).unwrap();
    let dropped =
        cuda.empty_tensor().map(|mut t| cuda.upload((&ours[..]).into(), &mut t).map(|()| t));
    let dropped = dropped.unwrap().unwrap();
    let nothing = cuda.capture(|| Ok(())).unwrap();
    let shape = layer.packed.shape().resized(2, K).unwrap();
    let refused = |result: Result<(), Error>, case: &str| {
        let why = result.expect_err(case).to_string();
        assert!(why.contains("another thread captures"), "{case}: {why}");
    };
    let graph = cuda.capture(|| {
        std::thread::scope(|scope| {
            let (z, weight, nothing, dropped) = (&mut z, &layer.weight, nothing, dropped);
            let (cuda, refused, theirs) = (&cuda, &refused, &theirs);
            scope.spawn(move || {
                let (mut y, mut host) = ([0f32; 2 * N], [0f32; 64]);
                let a = PackedMatrix::zeros(shape);
                let product =
                    cuda.matmul(a.view(), weight, 1.0.into(), (&mut y[..]).into()).map(drop);
                refused(product, "matmul");
                refused(cuda.upload((&theirs[..]).into(), z), "upload");
                refused(cuda.download(z, (&mut host[..]).into()), "download");
                refused(cuda.prepare(PackedMatrix::zeros(shape)).map(drop), "prepare");
                refused(cuda.synchronize(), "synchronize");
                refused(cuda.paths().map(drop), "paths");
                refused(cuda.tiles_left().map(drop), "tiles_left");
                refused(nothing.replay(), "replay");
                // Freed when the capture is over.
                drop((nothing, dropped));
            });
        });
        Ok(())
    });
    let graph = graph.unwrap();
    cuda.upload((&ours[..]).into(), &mut z).unwrap();
    graph.replay().unwrap();
    let mut host = [0f32; 64];
    cuda.download(&z, (&mut host[..]).into()).unwrap();
    assert_eq!(host, ours, "the other thread's copy was recorded");
    layer.forward().unwrap();
    same_bits(&layer.result(), &layer.expected(&values), "afterwards");
}

#[test]
fn products_of_one_thread_are_whole_while_another_captures_and_replays() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(44));
    // Several launches a product, which share the buffer that the weight is folded into.
    let cuda = cuda.with_matmul_kernel(MatmulKernel::Wgmma).with_folded_weights(false);
    let mut layer = Layer::new(&cuda, Format::NvFp4, 2, &mut rng);
    let values = layer.values(&mut rng);
    layer.set(&values);
    layer.forward().unwrap();
    let expected = layer.expected(&values);
    let a = operand(&mut rng, Format::NvFp4, 3, K, |rng| 0x30 + rng.byte() % 16);
    let b = operand(&mut rng, Format::NvFp4, N, K, |rng| 0x30 + rng.byte() % 16);
    let weight = cuda.prepare(b.view()).unwrap();
    let mut theirs = vec![0f32; 3 * N];
    reference::matmul(a.view(), b.view(), 1.0, (&mut theirs[..]).into()).unwrap();
    let (mut ran, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let captures = scope.spawn(|| {
            for round in 0..40 {
                let graph = cuda.capture(|| layer.forward()).unwrap();
                // Where the other thread is in a product this waits for it.
                graph.replay().unwrap();
                same_bits(&layer.result(), &expected, &format!("round {round}"));
            }
        });
        while !captures.is_finished() || ran == 0 {
            let mut y = vec![7f32; 3 * N];
            match cuda.matmul(a.view(), &weight, 1.0.into(), (&mut y[..]).into()) {
                Ok(_) => {
                    same_bits(&y, &theirs, &format!("product {ran}"));
                    ran += 1;
                }
                Err(Error::Unsupported(_)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
    });
    println!("graphs: beside 40 captures {ran} products were right, {refused} refused");
}

#[test]
fn the_first_call_of_a_thread_may_be_a_launch() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(45));
    // A kernel with more shared memory than any has unasked, loaded on this thread but not yet
    // launched with it.
    let mut layer = Layer::new(&cuda, Format::MxFp4, 3, &mut rng);
    let values = layer.values(&mut rng);
    layer.set(&values);
    std::thread::scope(|scope| scope.spawn(|| layer.forward().unwrap()).join().unwrap());
    same_bits(&layer.result(), &layer.expected(&values), "on a new thread");
}

#[test]
fn an_operand_of_another_shape_leaves_the_graph_its_memory() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(46));
    for format in Format::ALL {
        let mut layer = Layer::new(&cuda, format, 130, &mut rng);
        let mut values = layer.values(&mut rng);
        // Blocks of the folded form for outliers, at offsets that only this shape has.
        values.iter_mut().step_by(77).for_each(|v| *v *= 1000.0);
        layer.set(&values);
        layer.forward().unwrap();
        let graph = cuda.capture(|| layer.forward()).unwrap();
        let tiles = cuda.tiles_left().unwrap();
        assert_eq!(tiles, (0, 0), "nothing is known of recorded products");

        // Fewer rows and another K fit the memory; its layout differs.
        let (rows, k) = (129, 96);
        let x: Vec<f32> = (0..rows * k).map(|_| rng.next() as i32 as f32 / 1e9).collect();
        let b = operand(&mut rng, format, N, k, |rng| 0x30 + rng.byte() % 16);
        let weight = cuda.prepare(b.view()).unwrap();
        let other = |a: &mut CudaOperand| {
            let from = Source::Host((&x[..]).into());
            cuda.quantize_resident(from, [rows, k], &layer.spec, None, a, None)
        };
        // Not while one captures.
        let refused = cuda.capture(|| {
            let from = Source::Resident(&layer.x);
            let shape = [layer.m / 2, 2 * K];
            cuda.quantize_resident(from, shape, &layer.spec, None, &mut layer.a, None)
        });
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        assert_eq!(layer.a.shape().rows(), layer.m);

        other(&mut layer.a).unwrap();
        graph.replay().unwrap();
        let (mut y, mut expected) = (vec![0f32; rows * N], vec![0f32; rows * N]);
        let sink = Sink::Host((&mut y[..]).into());
        cuda.matmul_resident(&layer.a, &weight, 1.0.into(), sink).unwrap();
        let input = QuantizeInput::new(&x[..], rows, k, &layer.spec).unwrap();
        let mut a = PackedMatrix::zeros(input.shape());
        reference::quantize(&input, &mut a.view_mut()).unwrap();
        reference::matmul(a.view(), b.view(), 1.0, (&mut expected[..]).into()).unwrap();
        same_bits(&y, &expected, "eager, after a replay");
        same_bits(&layer.result(), &layer.expected(&values), "replayed, after another shape");
    }
}

#[test]
fn a_graph_keeps_the_memory_that_it_works_on() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(43));
    let mut layer = Layer::new(&cuda, Format::MxFp4, 130, &mut rng);
    let values = layer.values(&mut rng);
    layer.set(&values);
    layer.forward().unwrap();
    let graph = cuda.capture(|| layer.forward()).unwrap();
    let expected = layer.expected(&values);
    let Layer { x, a, weight, transform, y, .. } = layer;
    drop((x, a, weight, transform));
    // New memory must not be the graph's.
    let mut other = cuda.empty_tensor().unwrap();
    cuda.upload((&vec![1f32; 200_000][..]).into(), &mut other).unwrap();
    graph.replay().unwrap();
    let mut got = vec![0f32; 130 * N];
    cuda.download(&y, (&mut got[..]).into()).unwrap();
    same_bits(&got, &expected, "replayed without its operands");
    drop(graph);
    cuda.synchronize().unwrap();
}
