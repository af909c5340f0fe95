//! Properties that hold for any operands, on every backend of the command: permuting groups of K,
//! splitting batches, padding K and the number of threads never change a bit. Random inputs shrink
//! to a small shape.

#![allow(missing_docs)]

use std::cell::Cell;

use fp4_conformance::data::operands::operands;
use fp4_conformance::random::Random;
use fp4_conformance::registry::known;
use fp4_core::backend::erased::Backend;
use fp4_core::{Format, PackedMatrix, PackedView};
use quickcheck::{Arbitrary, Gen, QuickCheck};

const DATA: [&str; 6] = ["near", "full", "spread:40", "cancel", "nan", "sparse"];

/// A product by its shape, family and seed: what shrinks is the shape.
#[derive(Debug, Clone)]
struct Product {
    m: usize,
    n: usize,
    groups: usize,
    family: usize,
    seed: u64,
}

impl Arbitrary for Product {
    fn arbitrary(g: &mut Gen) -> Self {
        let mut random = Random::of(&u64::arbitrary(g).to_string());
        let (m, n, groups) = (random.below(20), random.below(20), random.below(12));
        Product { m, n, groups, family: random.below(12), seed: random.next_u64() }
    }

    fn shrink(&self) -> Box<dyn Iterator<Item = Self>> {
        let (from, sizes) = (self.clone(), (self.m, self.n, self.groups));
        Box::new(sizes.shrink().map(move |(m, n, groups)| Product { m, n, groups, ..from.clone() }))
    }
}

impl Product {
    fn operands(&self) -> [PackedMatrix; 2] {
        let format = Format::ALL[self.family % 2];
        let k = self.groups * format.group().get();
        let mut random = Random::of(&self.seed.to_string());
        operands(DATA[self.family / 2], &mut random, (format.into(), format), [self.m, self.n, k])
            .unwrap()
    }
}

fn multiply(backend: &Backend, a: PackedView<'_>, b: &PackedMatrix) -> Vec<u32> {
    let weight = backend.matmul().unwrap().clone().prepare_dyn(b.clone().into()).unwrap();
    let mut y = vec![f32::from_bits(0xA5A5_A5A5); a.shape().rows() * b.shape().rows()];
    weight.matmul(a, 0.3.into(), y.as_mut_slice().into()).unwrap();
    y.iter().map(|y| y.to_bits()).collect()
}

fn backends() -> Vec<Backend> {
    let known = known();
    let opened = known.iter().filter_map(|known| known.opened().ok());
    opened.map(|registered| registered.backend().clone()).collect()
}

thread_local!(static COMPARED: Cell<usize> = const { Cell::new(0) });

/// The bits of the outputs, computed in two ways.
type Property = fn(&Backend, &Product) -> [Vec<u32>; 2];

/// Runs a property on every backend; its two results must be equal.
fn check(name: &str, property: Property) {
    thread_local!(static BACKENDS: Vec<Backend> = backends());
    thread_local!(static PROPERTY: Cell<Option<Property>> = const { Cell::new(None) });
    PROPERTY.set(Some(property));
    fn holds(product: Product) -> bool {
        BACKENDS.with(|backends| {
            backends.iter().all(|backend| {
                let [one, other] = PROPERTY.get().unwrap()(backend, &product);
                COMPARED.set(COMPARED.get() + one.len());
                one == other
            })
        })
    }
    QuickCheck::new().tests(300).quickcheck(holds as fn(Product) -> bool);
    println!("{name}: {} values compared, 0 differ", COMPARED.get());
    assert!(COMPARED.get() > 0);
}

fn permuted(matrix: &PackedMatrix, order: &[usize]) -> PackedMatrix {
    let (shape, bytes) = (matrix.shape(), matrix.shape().group().get() / 2);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in 0..if order.is_empty() { 0 } else { shape.rows() } {
        for g in order.iter().map(|g| row * order.len() + g) {
            codes.extend(&matrix.codes()[g * bytes..(g + 1) * bytes]);
            scales.push(matrix.scales()[g]);
        }
    }
    PackedMatrix::new(shape, codes, scales).unwrap()
}

#[test]
fn permuting_groups_changes_no_bit() {
    check("permuted K", |backend, product| {
        let [a, b] = product.operands();
        let order = Random::of("order").order(product.groups);
        let (pa, pb) = (permuted(&a, &order), permuted(&b, &order));
        [multiply(backend, a.view(), &b), multiply(backend, pa.view(), &pb)]
    });
}

#[test]
fn splitting_the_batch_changes_no_bit() {
    check("split M", |backend, product| {
        let [a, b] = product.operands();
        let cut = product.seed as usize % (product.m + 1);
        let mut parts = Vec::new();
        for range in [0..cut, cut..product.m] {
            parts.extend(multiply(backend, a.view().rows_range(range).unwrap(), &b));
        }
        [multiply(backend, a.view(), &b), parts]
    });
}

#[test]
fn padding_k_changes_no_bit() {
    check("padded K", |backend, product| {
        let [a, b] = product.operands();
        let (pa, pb) = (a.padded_k().unwrap(), b.padded_k().unwrap());
        [multiply(backend, a.view(), &b), multiply(backend, pa.view(), &pb)]
    });
}

#[test]
fn exchanging_the_operands_transposes() {
    check("exchanged operands", |backend, product| {
        let [a, b] = product.operands();
        let (ab, ba) = (multiply(backend, a.view(), &b), multiply(backend, b.view(), &a));
        let (m, n) = (product.m, product.n);
        let transposed = (0..m * n).map(|i| ba[i % n * m + i / n]).collect();
        [ab, transposed]
    });
}
