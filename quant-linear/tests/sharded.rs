//! Layers split over the threads of an in-process communicator: the bits of the whole layer [C6].

#![allow(missing_docs)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fp4_core::backend::erased::Backend;
use fp4_core::reference::{Reference, ReferenceWeight};
use fp4_core::{
    Epilogue, Error, FloatSlice, FloatSliceMut, FloatType, FloatVec, Format, Matmul, MatmulQuery,
    Named, Packed, PackedMut, PackedView, PartialsMut, Paths, Unsupported,
};
use quant_linear::checkpoint::{ByteSource, Checkpoint, InMemory, Refusal};
use quant_linear::sharded::{
    ColumnParallel, ColumnShard, CommError, Communicator, InProcess, Kept, Reduced, RowParallel,
    RowShard, ShardError, Step,
};
use quant_linear::{
    ActivationEncoding, Backends, Bias, DenseOptions, LoadOptions, Parts, QuantLinear, Runtime,
    StoredTransform,
};

const RANKS: [usize; 6] = [1, 2, 3, 4, 5, 8];

/// Runs `f` on a thread for each rank; what each gives.
fn on_ranks<R: Send>(ranks: usize, f: impl Fn(InProcess) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let f = &f;
        let threads: Vec<_> =
            InProcess::ranks(ranks).into_iter().map(|comm| scope.spawn(move || f(comm))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn values(len: usize, seed: usize) -> Vec<f32> {
    let wave = |i: usize| ((i * 37 + seed * 101) as f32 * 0.173).sin();
    (0..len).map(|i| wave(i) * [1.0, 0.03, 7.0, 0.4][i / 32 % 4]).collect()
}

fn layer(
    format: Format,
    activations: ActivationEncoding,
    transform: bool,
    n: usize,
    k: usize,
) -> QuantLinear {
    let options = DenseOptions {
        activations,
        // The same with and without a transform.
        weight_global_scale: Some(1.0 / 128.0),
        transform: transform.then(|| StoredTransform::hadamard(32).unwrap()),
        ..DenseOptions::new(format)
    };
    let layer = QuantLinear::from_dense(&values(n * k, 1)[..], n, k, &options).unwrap();
    layer.with_bias(&values(n, 2)).unwrap()
}

/// The layers of all formats, encodings of activations, with and without a transform.
fn layers(n: usize, k: usize) -> Vec<QuantLinear> {
    let mut all = Vec::new();
    for format in Format::ALL {
        for activations in ActivationEncoding::ALL {
            if format == Format::MxFp4 && activations == ActivationEncoding::OwnRowScales {
                continue;
            }
            all.extend([false, true].map(|t| layer(format, activations, t, n, k)));
        }
    }
    all
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The columns of some rows.
fn own_columns(x: &[f32], k: usize, columns: std::ops::Range<usize>) -> Vec<f32> {
    x.chunks(k).flat_map(|row| row[columns.clone()].to_vec()).collect()
}

/// A runtime that differs from rank to rank: the reference among the fast ones.
fn mixed(rank: usize) -> Option<Runtime> {
    (rank % 3 == 1).then(|| Runtime::new(Backends::reference()))
}

#[test]
fn row_parallel_outputs_are_the_bits_of_the_whole_layer() {
    let (n, k) = (70, 256);
    let mut compared = 0;
    for layer in &layers(n, k) {
        for rows in [0, 1, 3, 18] {
            let x = values(rows * k, 3);
            let expected = bits(&layer.forward(&x, &[rows, k]).unwrap());
            for ranks in RANKS {
                for wide in [false, true] {
                    let each = on_ranks(ranks, |comm| {
                        let rank = quant_linear::sharded::Communicator::rank(&comm);
                        let shard = RowShard::even(layer, rank, ranks);
                        let runtime = mixed(rank);
                        let mut own =
                            RowParallel::with_block(comm, shard, runtime.as_ref(), 33).unwrap();
                        own.set_wide(wide);
                        let own_x = own_columns(&x, k, own.columns());
                        let mut y = vec![0f32; rows * n];
                        let sent = own
                            .forward_into((&own_x[..]).into(), rows, (&mut y[..]).into())
                            .unwrap();
                        let kept = own.own_rows(rows);
                        let mut part = vec![0f32; kept.len() * n];
                        own.forward_own_into((&own_x[..]).into(), rows, (&mut part[..]).into())
                            .unwrap();
                        let mut gathered = vec![0f32; rows * n];
                        own.forward_gathered_into(
                            (&own_x[..]).into(),
                            rows,
                            (&mut gathered[..]).into(),
                        )
                        .unwrap();
                        assert_eq!(bits(&gathered), expected);
                        let mut whole = vec![0f32; rows * n];
                        own.forward_whole_into((&x[..]).into(), rows, (&mut whole[..]).into())
                            .unwrap();
                        (y, part, whole, sent)
                    });
                    let scattered: Vec<f32> = each.iter().flat_map(|e| e.1.clone()).collect();
                    assert_eq!(bits(&scattered), expected, "{layer:?} {ranks}");
                    for (y, _, whole, sent) in &each {
                        assert_eq!(bits(y), expected, "{layer:?} {ranks} {wide}");
                        assert_eq!(bits(whole), expected, "{layer:?} {ranks}");
                        assert_eq!(sent.narrow == 0, wide || rows == 0, "{sent:?}");
                        let form = if wide { fp4_core::ExactSum::WORDS } else { 1 };
                        assert_eq!(sent.words, rows * n * form);
                    }
                    compared += (3 * ranks + 1) * expected.len();
                }
            }
        }
    }
    println!("{compared} values compared, 0 differ");
    assert!(compared > 1_000_000);
}

#[test]
fn blocks_that_threads_round_in_parts_are_the_bits_of_the_whole_layer() {
    // 40 rows of 1000: 17 rows a part, so that the last part is shorter; two blocks, the second
    // narrower.
    let (rows, n, k, ranks) = (40, 1000, 64, 2);
    for format in Format::ALL {
        let one = layer(format, ActivationEncoding::Own, false, n, k);
        let x = values(rows * k, 3);
        let expected = bits(&one.forward(&x, &[rows, k]).unwrap());
        for wide in [false, true] {
            let each = on_ranks(ranks, |comm| {
                // A pool for each: a thread that waits for one rank must not begin another's call.
                let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
                let rank = comm.rank();
                let shard = RowShard::even(&one, rank, ranks);
                let mut own = RowParallel::with_block(comm, shard, None, 960).unwrap();
                own.set_wide(wide);
                let own_x = own_columns(&x, k, own.columns());
                let x = FloatSlice::from(&own_x[..]);
                pool.install(|| {
                    let mut y = vec![f32::NAN; rows * n];
                    own.forward_into(x, rows, (&mut y[..]).into()).unwrap();
                    assert_eq!(bits(&y), expected, "{format} {wide}");
                    y.fill(f32::NAN);
                    own.forward_gathered_into(x, rows, (&mut y[..]).into()).unwrap();
                    assert_eq!(bits(&y), expected, "{format} {wide}");
                    y.truncate(own.own_rows(rows).len() * n);
                    own.forward_own_into(x, rows, (&mut y[..]).into()).unwrap();
                    y
                })
            });
            assert_eq!(bits(&each.concat()), expected, "{format} {wide}");
        }
    }
}

#[test]
fn column_parallel_outputs_are_the_bits_of_the_whole_layer() {
    let (n, k, rows) = (7, 128, 3);
    for layer in &layers(n, k) {
        for ty in FloatType::ALL {
            let x = FloatVec::F32(values(rows * k, 5)).converted(ty);
            let mut expected = FloatVec::zeros(ty, rows * n);
            layer.forward_into(x.as_slice(), rows, expected.as_mut_slice()).unwrap();
            for ranks in RANKS {
                let each = on_ranks(ranks, |comm| {
                    let rank = quant_linear::sharded::Communicator::rank(&comm);
                    let shard = ColumnShard::even(layer, rank, ranks);
                    let own = ColumnParallel::new(comm, shard, mixed(rank).as_ref()).unwrap();
                    let mut y = FloatVec::zeros(ty, rows * n);
                    own.forward_into(x.as_slice(), rows, y.as_mut_slice()).unwrap();
                    y
                });
                each.iter().for_each(|y| assert_eq!(y.to_le_bytes(), expected.to_le_bytes()));
            }
        }
    }
}

#[test]
fn two_layers_without_a_gather_between_are_the_bits_of_two_layers() {
    let (inner, k, rows) = (256, 64, 4);
    let options = DenseOptions::new(Format::NvFp4);
    let up = QuantLinear::from_dense(&values(inner * k, 1)[..], inner, k, &options).unwrap();
    let down = QuantLinear::from_dense(&values(k * inner, 2)[..], k, inner, &options).unwrap();
    let x = values(rows * k, 3);
    let expected = down.forward(&up.forward(&x, &[rows, k]).unwrap(), &[rows, inner]).unwrap();
    for ranks in RANKS {
        let each = on_ranks(ranks, |comm| {
            let rank = quant_linear::sharded::Communicator::rank(&comm);
            let columns = RowShard::even(&down, rank, ranks).unwrap().columns;
            // The rows of the first are the columns of the second.
            let parts = Parts {
                weight: up.weight().unwrap(),
                transform: None,
                weight_global_scale: up.weight_global_scale(),
                activation_global_scale: Some(up.activation_global_scale()),
                activation_scale_scale: Some(up.activation_scale_scale()),
                activations: up.activations(),
            };
            let first = ColumnShard::of(&parts, None, columns.clone());
            let first = ColumnParallel::new(&comm, first, None).unwrap();
            let second = RowParallel::new(&comm, RowShard::even(&down, rank, ranks), None).unwrap();
            let mut hidden = vec![0f32; rows * columns.len()];
            first.forward_own_into((&x[..]).into(), rows, (&mut hidden[..]).into()).unwrap();
            let mut y = vec![0f32; rows * k];
            second.forward_into((&hidden[..]).into(), rows, (&mut y[..]).into()).unwrap();
            y
        });
        each.iter().for_each(|y| assert_eq!(bits(y), bits(&expected), "{ranks}"));
    }
}

/// The parts of a layer, to be changed.
fn parts(layer: &QuantLinear) -> Parts {
    Parts {
        weight: layer.weight().unwrap(),
        transform: layer.transform().cloned(),
        weight_global_scale: layer.weight_global_scale(),
        activation_global_scale: Some(layer.activation_global_scale()),
        activation_scale_scale: Some(layer.activation_scale_scale()),
        activations: layer.activations(),
    }
}

#[test]
fn a_nan_scale_on_one_shard_makes_its_output_nan_everywhere() {
    let (n, k, rows) = (5, 128, 2);
    let parts = parts(&layer(Format::MxFp4, ActivationEncoding::Own, false, n, k));
    let shape = parts.weight.shape();
    let (codes, mut scales) = parts.weight.clone().into_parts();
    // Output 3, the last group: rank 2's of three.
    scales[3 * shape.row_groups() + 3] = 0xFF;
    let parts =
        Parts { weight: fp4_core::PackedMatrix::new(shape, codes, scales).unwrap(), ..parts };
    let whole = QuantLinear::from_parts(parts.clone()).unwrap();
    let x = values(rows * k, 3);
    let expected = bits(&whole.forward(&x, &[rows, k]).unwrap());
    for ranks in RANKS {
        let each = on_ranks(ranks, |comm| {
            let rank = quant_linear::sharded::Communicator::rank(&comm);
            let own = RowParallel::new(comm, RowShard::even(&whole, rank, ranks), None).unwrap();
            let mut y = vec![0f32; rows * n];
            own.forward_whole_into((&x[..]).into(), rows, (&mut y[..]).into()).unwrap();
            y
        });
        for y in each {
            assert!((0..n * rows).all(|at| y[at].is_nan() == (at % n == 3)));
            assert_eq!(bits(&y), expected);
        }
    }
}

#[test]
fn scales_far_apart_go_wide_and_only_there() {
    let (n, k, rows) = (6, 128, 3);
    let base = parts(&layer(Format::MxFp4, ActivationEncoding::Own, false, n, k));
    let shape = base.weight.shape();
    let (codes, mut scales) = base.weight.clone().into_parts();
    scales.iter_mut().enumerate().for_each(|(i, s)| *s = [0, 80, 160, 250][i % 4]);
    let weight = fp4_core::PackedMatrix::new(shape, codes, scales).unwrap();
    let whole = QuantLinear::from_parts(Parts { weight, ..base }).unwrap();
    let x = values(rows * k, 3);
    let expected = bits(&whole.forward(&x, &[rows, k]).unwrap());
    let each: Vec<(Vec<f32>, Reduced)> = on_ranks(4, |comm| {
        let rank = quant_linear::sharded::Communicator::rank(&comm);
        let own = RowParallel::new(comm, RowShard::even(&whole, rank, 4), None).unwrap();
        let mut y = vec![0f32; rows * n];
        let sent = own.forward_whole_into((&x[..]).into(), rows, (&mut y[..]).into()).unwrap();
        (y, sent)
    });
    for (y, sent) in each {
        assert_eq!(bits(&y), expected);
        assert_eq!((sent.narrow, sent.wide), (0, rows));
    }
}

#[test]
fn ranks_with_other_layers_find_the_same_difference() {
    let one = layer(Format::NvFp4, ActivationEncoding::Own, false, 6, 128);
    let options =
        DenseOptions { weight_global_scale: Some(1.0 / 128.0), ..DenseOptions::new(Format::NvFp4) };
    let other_weight = QuantLinear::from_dense(&values(6 * 128, 9)[..], 6, 128, &options).unwrap();
    let other_weight = other_weight.with_bias(&values(6, 2)).unwrap();
    let other_bias = one.clone().with_bias(&[1.0; 6]).unwrap();
    let others = [
        (layer(Format::MxFp4, ActivationEncoding::Own, false, 6, 128), "format"),
        (layer(Format::NvFp4, ActivationEncoding::MxInt8, false, 6, 128), "activations"),
        (layer(Format::NvFp4, ActivationEncoding::Own, false, 7, 128), "output features"),
        (layer(Format::NvFp4, ActivationEncoding::Own, false, 6, 256), "input features"),
        (layer(Format::NvFp4, ActivationEncoding::Own, true, 6, 128), "transform"),
        (other_bias, "bias"),
        // Of the same shape and settings.
        (other_weight, "the whole weight"),
    ];
    for (other, what) in &others {
        let said = on_ranks(3, |comm| {
            let rank = quant_linear::sharded::Communicator::rank(&comm);
            let shard = RowShard::even(if rank == 2 { other } else { &one }, rank, 3);
            RowParallel::new(comm, shard, None).err().unwrap().to_string()
        });
        assert!(said.iter().all(|s| s == &said[0]), "{said:?}");
        assert!(said[0].contains(what) && said[0].contains("rank 2"), "{}", said[0]);
    }
    // Columns that are not the whole, and a rank that has no shard.
    let twice = on_ranks(2, |comm| {
        RowParallel::new(comm, RowShard::even(&one, 0, 2), None).err().unwrap().to_string()
    });
    assert!(twice.iter().all(|s| s.contains("rank 1 has columns 0..64")), "{twice:?}");
    let failed = on_ranks(2, |comm| {
        let rank = quant_linear::sharded::Communicator::rank(&comm);
        let shard = match rank {
            0 => RowShard::even(&one, 0, 2),
            _ => RowShard::of(&parts(&one), None, 8..16),
        };
        RowParallel::new(comm, shard, None).err().unwrap()
    });
    assert!(matches!(failed[0], ShardError::Peer { rank: 1, .. }), "{failed:?}");
    assert!(matches!(failed[1], ShardError::Cut { .. }), "{failed:?}");
}

#[test]
fn a_wrong_input_on_one_rank_is_an_error_on_all() {
    let one = layer(Format::NvFp4, ActivationEncoding::OwnRowScales, false, 6, 128);
    let errors = on_ranks(3, |comm| {
        let rank = quant_linear::sharded::Communicator::rank(&comm);
        let own = RowParallel::new(&comm, RowShard::even(&one, rank, 3), None).unwrap();
        let columns = own.columns().len();
        let call = |rows: usize, len: usize| {
            let (x, mut y) = (vec![1f32; len], vec![0f32; rows * 6]);
            own.forward_into(FloatSlice::F32(&x), rows, (&mut y[..]).into())
        };
        // One value too few, other rows, and then a call that is right: nothing is out of step.
        let short = call(2, 2 * columns - usize::from(rank == 1)).err().unwrap();
        let rows = if rank == 2 { 3 } else { 2 };
        let other = call(rows, rows * columns).err().unwrap();
        assert!(call(2, 2 * columns).is_ok());
        (short, other)
    });
    assert!(matches!(errors[0].0, ShardError::PeerInput));
    assert!(errors[1].0.to_string().contains("input buffer holds"), "{}", errors[1].0);
    assert!(errors.iter().all(|(_, other)| matches!(other, ShardError::Calls { .. })));
}

#[test]
fn a_rank_that_is_gone_or_late_ends_the_wait() {
    let one = layer(Format::NvFp4, ActivationEncoding::Own, false, 6, 128);
    let errors = on_ranks(2, |comm| {
        let rank = quant_linear::sharded::Communicator::rank(&comm);
        let own = RowParallel::new(&comm, RowShard::even(&one, rank, 2), None).unwrap();
        let (x, mut y) = (vec![1f32; own.columns().len()], vec![0f32; 6]);
        (rank == 0).then(|| own.forward_into((&x[..]).into(), 1, (&mut y[..]).into()).err())
    });
    let gone = errors[0].as_ref().unwrap().as_ref();
    assert!(matches!(gone, Some(ShardError::Comm(CommError::Gone { gone: 1, .. }))), "{gone:?}");
    let [first, second] = InProcess::ranks(2).try_into().unwrap();
    let first = first.with_limit(Duration::from_millis(20));
    let late = RowParallel::new(&first, RowShard::even(&one, 0, 2), None).err().unwrap();
    assert!(matches!(late, ShardError::Comm(CommError::Timeout { .. })), "{late}");
    drop(second);
}

/// The rank of a communicator.
fn rank_of(comm: &InProcess) -> usize {
    quant_linear::sharded::Communicator::rank(comm)
}

#[test]
fn ranks_in_different_calls_are_told_apart_on_all() {
    let (n, k, rows) = (6, 128, 3);
    let one = layer(Format::NvFp4, ActivationEncoding::Own, false, n, k);
    let calls = ["wide", "type", "scattered or gathered", "rows or columns", "number of rows"];
    for what in calls {
        let errors = on_ranks(2, |comm| {
            let rank = rank_of(&comm);
            let mut own = RowParallel::new(&comm, RowShard::even(&one, rank, 2), None).unwrap();
            let columns = ColumnShard::even(&one, rank, 2);
            let columns = ColumnParallel::new(&comm, columns, None).unwrap();
            let whole = values(rows * k, 3);
            let x = own_columns(&whole, k, own.columns());
            let x = FloatSlice::F32(&x);
            let (mut y, kept) = (vec![0f32; rows * n], own.own_rows(rows).len() * n);
            let error = match (what, rank) {
                ("wide", _) => {
                    own.set_wide(rank == 0);
                    own.forward_into(x, rows, (&mut y[..]).into()).err()
                }
                ("type", 0) => {
                    let mut y = FloatVec::zeros(FloatType::Bf16, rows * n);
                    own.forward_gathered_into(x, rows, y.as_mut_slice()).err()
                }
                ("scattered or gathered", 0) => {
                    own.forward_own_into(x, rows, (&mut y[..kept]).into()).err()
                }
                ("rows or columns", 0) => {
                    columns.forward_into((&whole[..]).into(), rows, (&mut y[..]).into()).err()
                }
                // Rows that no memory holds.
                ("number of rows", 0) => own.forward_into(x, 1 << 57, (&mut y[..]).into()).err(),
                _ => own.forward_gathered_into(x, rows, (&mut y[..]).into()).err(),
            };
            own.set_wide(false);
            // It is no more than that call.
            own.forward_into(x, rows, (&mut y[..]).into()).unwrap();
            assert_eq!(bits(&y), bits(&one.forward(&whole, &[rows, k]).unwrap()));
            error.unwrap()
        });
        match what {
            "number of rows" => {
                assert!(errors[0].to_string().contains("input"), "{}", errors[0]);
                assert!(matches!(errors[1], ShardError::PeerInput), "{}", errors[1]);
            }
            _ => {
                let all = errors.iter().all(|error| matches!(error, ShardError::Calls { .. }));
                assert!(all, "{what}: {errors:?}");
            }
        }
    }
}

#[test]
fn no_outputs_are_none_for_any_number_of_rows() {
    let one = parts(&layer(Format::NvFp4, ActivationEncoding::OwnRowScales, false, 6, 128));
    on_ranks(2, |comm| {
        let mut shard =
            RowShard::of(&one, None, if rank_of(&comm) == 0 { 0..128 } else { 128..128 });
        let of = shard.as_mut().unwrap();
        let weight = of.parts.weight.shape().resized(0, of.columns.len()).unwrap();
        of.parts.weight = fp4_core::PackedMatrix::zeros(weight);
        let (rank, own) = (rank_of(&comm), RowParallel::new(&comm, shard, None).unwrap());
        // The one with columns has no rows that are as many.
        let said = own.forward_into(FloatSlice::F32(&[]), 1 << 57, FloatSliceMut::F32(&mut []));
        assert!(matches!((rank, said), (0, Err(ShardError::Layer(_))) | (1, Err(_))));
        let x = vec![1f32; 2 * own.columns().len()];
        own.forward_into((&x[..]).into(), 2, FloatSliceMut::F32(&mut [])).unwrap();
    });
}

/// A communicator whose sums cannot be started on rank 1, as where a backend fails there.
struct Fails(InProcess, Step);

impl Communicator for Fails {
    type Sum = <InProcess as Communicator>::Sum;

    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn max(&self, bytes: &mut [u8]) -> Result<(), CommError> {
        self.1.take(self.rank(), || self.0.max(bytes))
    }

    fn gather(&self, own: &[u8], lens: &[usize]) -> Result<Vec<u8>, CommError> {
        self.1.take(self.rank(), || self.0.gather(own, lens))
    }

    fn start_sum(&self, words: Vec<i64>, kept: Kept<'_>) -> Result<Self::Sum, CommError> {
        self.1.take(self.rank(), || match self.rank() {
            1 => Err(CommError::Failed { rank: 1, what: "a sum", reason: "on purpose".into() }),
            _ => self.0.start_sum(words, kept),
        })
    }

    fn finish_sum(&self, sum: Self::Sum) -> Result<Vec<i64>, CommError> {
        self.1.take(self.rank(), || self.0.finish_sum(sum))
    }
}

#[test]
fn after_an_error_of_a_communicator_all_of_its_layers_end_at_once() {
    let one = layer(Format::NvFp4, ActivationEncoding::Own, false, 6, 128);
    let errors = on_ranks(2, |comm| {
        let comm = Fails(comm.with_limit(Duration::from_millis(500)), Step::default());
        let rank = comm.rank();
        let own = RowParallel::new(&comm, RowShard::even(&one, rank, 2), None).unwrap();
        let other = ColumnParallel::new(&comm, ColumnShard::even(&one, rank, 2), None).unwrap();
        let (x, mut y) = (vec![1f32; own.columns().len()], vec![0f32; 6]);
        let first = own.forward_into((&x[..]).into(), 1, (&mut y[..]).into()).unwrap_err();
        let begun = Instant::now();
        let later = [
            own.forward_into((&x[..]).into(), 1, (&mut y[..]).into()).map(drop),
            own.forward_whole_into(FloatSlice::F32(&[]), 1, FloatSliceMut::F32(&mut [])).map(drop),
            // Another layer, too.
            other.forward_into((&[1f32; 128][..]).into(), 1, (&mut y[..]).into()),
        ];
        assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
        (first, later)
    });
    for (first, later) in &errors {
        assert!(matches!(first, ShardError::Comm(_)), "{first}");
        for later in later {
            let Err(ShardError::Comm(CommError::OutOfStep { first: said, .. })) = later else {
                panic!("{later:?}")
            };
            assert_eq!(*said, first.to_string());
        }
    }
}

/// A file in memory that counts the bytes that are read of it.
#[derive(Debug)]
struct Counted(InMemory, AtomicU64);

impl ByteSource for Counted {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> Result<(), Refusal> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buffer, position)
    }
}

#[test]
fn a_shard_that_is_read_of_a_file_is_the_one_cut_of_the_layer_and_the_rest_is_not_read() {
    let (n, k, rows, folder) = (200, 2048, 3, tempfile::tempdir().unwrap());
    let x = values(rows * k, 5);
    for format in Format::ALL {
        for (transform, ranks) in [(false, 4), (true, 3), (true, 1)] {
            let one = layer(format, ActivationEncoding::Own, transform, n, k);
            let path = folder.path().join("layer.safetensors");
            one.save(&path, "m").unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let whole = bytes.len();
            let mut expected = vec![0f32; rows * n];
            one.forward_into((&x[..]).into(), rows, (&mut expected[..]).into()).unwrap();
            on_ranks(ranks, |comm| {
                let file = InMemory::new("layer.safetensors", bytes.clone());
                let file = Arc::new(Counted(file, AtomicU64::new(0)));
                let state = Checkpoint::open_sources(vec![file.clone()]).unwrap();
                let before = file.1.load(Ordering::Relaxed);
                let read = || file.1.load(Ordering::Relaxed) as usize - before as usize;
                let rank = comm.rank();
                let options = LoadOptions { bias: Bias::Apply, ..LoadOptions::default() };
                let shard = RowShard::read(&state, "m", rank, ranks, &options).unwrap();
                let cut = RowShard::even(&one, rank, ranks).unwrap();
                assert_eq!(shard.parts.weight, cut.parts.weight);
                assert_eq!((&shard.bias, &shard.columns), (&cut.bias, &cut.columns));
                // Its share, and what is not of the weight.
                let most = whole / ranks + 8192;
                assert!(read() < most, "{} of {whole} bytes read, expected {most}", read());
                let own = RowParallel::new(&comm, Ok(shard), None).unwrap();
                let mut y = vec![0f32; rows * n];
                own.forward_whole_into((&x[..]).into(), rows, (&mut y[..]).into()).unwrap();
                assert_eq!(bits(&y), bits(&expected), "{format} {transform} {ranks}");

                let before = read();
                let shard = ColumnShard::read(&state, "m", rank, ranks, &options).unwrap();
                let cut = ColumnShard::even(&one, rank, ranks).unwrap();
                assert_eq!((&shard.parts.weight, &shard.bias), (&cut.parts.weight, &cut.bias));
                assert!(read() - before < most, "{} of {whole} bytes read", read() - before);
                let own = ColumnParallel::new(&comm, Ok(shard), None).unwrap();
                own.forward_into((&x[..]).into(), rows, (&mut y[..]).into()).unwrap();
                assert_eq!(bits(&y), bits(&expected), "{format} {transform} {ranks}");
            });
        }
    }
}

/// The reference, whose partial sums are an error while it is told so.
#[derive(Debug, Clone, Default)]
struct Breaks(Arc<AtomicBool>);

impl Named for Breaks {
    fn name(&self) -> &str {
        "breaks"
    }
}

impl Matmul for Breaks {
    type Prepared<B: Packed> = ReferenceWeight<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        Reference.supports_matmul(query)
    }

    fn supports_partial(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        Reference.supports_partial(query)
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
        Reference.prepare(b)
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        Reference.matmul(a, b, epilogue, out)
    }

    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        Reference.partial(a, b, groups, out)?;
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::PartialOverflow),
            false => Ok(()),
        }
    }

    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        Reference.export_weight(b, out)
    }
}

#[test]
fn an_error_of_a_backend_is_one_on_all_ranks_and_the_next_call_is_right() {
    let mut calls = 0;
    for activations in [ActivationEncoding::Own, ActivationEncoding::OwnRowScales] {
        for ranks in [1, 2, 5] {
            let (one, rows) = (layer(Format::NvFp4, activations, false, 37, 320), 19);
            let x = values(rows * 320, 5);
            let mut expected = vec![0f32; rows * 37];
            one.forward_into((&x[..]).into(), rows, (&mut expected[..]).into()).unwrap();
            on_ranks(ranks, |comm| {
                // No wait is long: nobody is waited for in vain.
                let comm = comm.with_limit(Duration::from_secs(20));
                let (rank, broken) = (comm.rank(), Breaks::default());
                let backend = Backend::matmul_only(broken.clone());
                let runtime = Runtime::new(Backends::reference().with(backend));
                let shard = RowShard::even(&one, rank, ranks);
                let own = RowParallel::with_block(&comm, shard, Some(&runtime), 16).unwrap();
                let own_x = own_columns(&x, 320, own.columns());
                let kept = own.own_rows(rows);
                let call = |operation: usize| {
                    let mut y = vec![0f32; rows * 37];
                    let (x, own_x) = ((&x[..]).into(), (&own_x[..]).into());
                    let of_kept = kept.start * 37..kept.end * 37;
                    let sent = match operation {
                        0 => own.forward_into(own_x, rows, (&mut y[..]).into()),
                        1 => own.forward_gathered_into(own_x, rows, (&mut y[..]).into()),
                        2 => own.forward_whole_into(x, rows, (&mut y[..]).into()),
                        _ => {
                            let part = (&mut y[of_kept.clone()]).into();
                            own.forward_own_into(own_x, rows, part)
                        }
                    };
                    let of = if operation < 3 { 0..rows * 37 } else { of_kept };
                    sent.map(|_| assert_eq!(bits(&y[of.clone()]), bits(&expected[of])))
                };
                for operation in 0..4 {
                    broken.0.store(rank + 1 == ranks, Ordering::Relaxed);
                    let error = call(operation).unwrap_err();
                    match rank + 1 == ranks {
                        true => assert!(matches!(error, ShardError::Layer(_)), "{error}"),
                        false => assert!(matches!(error, ShardError::PeerFailed), "{error}"),
                    }
                    broken.0.store(false, Ordering::Relaxed);
                    call(operation).unwrap();
                }
            });
            calls += 8 * ranks;
        }
    }
    println!("{calls} calls, every second one with an error");
}

#[test]
fn a_transform_for_each_block_is_cut_with_its_columns() {
    let (n, k, rows) = (6, 128, 3);
    let hadamard = StoredTransform::hadamard(32).unwrap();
    let FloatVec::F32(hadamard) = hadamard.values().converted(FloatType::F32) else { panic!() };
    // Each block's columns have signs of their own.
    let sign =
        |block: usize, at: usize| if (at % 32 + block).is_multiple_of(3) { -1.0 } else { 1.0 };
    let of_block = |block| hadamard.iter().enumerate().map(move |(at, v)| v * sign(block, at));
    let all: Vec<f32> = (0..k / 32).flat_map(of_block).collect();
    let each = StoredTransform::new(FloatVec::F32(all), vec![k / 32, 32, 32]).unwrap();
    for format in Format::ALL {
        let options = DenseOptions { transform: Some(each.clone()), ..DenseOptions::new(format) };
        let one = QuantLinear::from_dense(&values(n * k, 1)[..], n, k, &options).unwrap();
        let x = values(rows * k, 3);
        let expected = bits(&one.forward(&x, &[rows, k]).unwrap());
        for ranks in RANKS {
            let each = on_ranks(ranks, |comm| {
                let shard = RowShard::even(&one, rank_of(&comm), ranks);
                let own = RowParallel::new(comm, shard, None).unwrap();
                let mut y = vec![0f32; rows * n];
                own.forward_whole_into((&x[..]).into(), rows, (&mut y[..]).into()).unwrap();
                y
            });
            each.iter().for_each(|y| assert_eq!(bits(y), expected, "{format} {ranks}"));
        }
    }
    // Fewer matrices than columns.
    let short = StoredTransform::new(FloatVec::F32(hadamard.clone()), vec![1, 32, 32]).unwrap();
    let base = parts(&layer(Format::MxFp4, ActivationEncoding::Own, false, n, k));
    let error = RowShard::of(&Parts { transform: Some(short), ..base }, None, 64..128);
    assert!(error.is_err_and(|error| error.to_string().contains("transform")));
}

#[test]
fn nan_infinite_and_zero_values_are_the_bits_of_the_whole_layer() {
    let (n, k, rows) = (6, 128, 4);
    let mut x = values(rows * k, 3);
    (x[5], x[k + 100], x[2 * k + 64]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    x[3 * k..].fill(0.0);
    let mut all = layers(n, k);
    // A NaN scale of NVFP4, in the last group of output 3.
    for sign in [0x7F, 0xFF] {
        let base = parts(&layer(Format::NvFp4, ActivationEncoding::Own, false, n, k));
        let shape = base.weight.shape();
        let (codes, mut scales) = base.weight.clone().into_parts();
        scales[4 * shape.row_groups() - 1] = sign;
        let weight = fp4_core::PackedMatrix::new(shape, codes, scales).unwrap();
        all.extend(QuantLinear::from_parts(Parts { weight, ..base }));
    }
    let mut nan = 0;
    for one in &all {
        let expected = bits(&one.forward(&x, &[rows, k]).unwrap());
        nan += expected.iter().filter(|v| f32::from_bits(**v).is_nan()).count();
        for ranks in [1, 2, 3, 5] {
            for wide in [false, true] {
                let each = on_ranks(ranks, |comm| {
                    let shard = RowShard::even(one, rank_of(&comm), ranks);
                    let mut own = RowParallel::new(comm, shard, None).unwrap();
                    own.set_wide(wide);
                    let mut y = vec![0f32; rows * n];
                    own.forward_whole_into((&x[..]).into(), rows, (&mut y[..]).into()).unwrap();
                    y
                });
                each.iter().for_each(|y| assert_eq!(bits(y), expected, "{one:?} {ranks} {wide}"));
            }
        }
    }
    assert!(nan > n);
}
