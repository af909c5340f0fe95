//! A backend of one's own: a matmul that adds up group by group; used by a layer, and checked by
//! the suite, alone and with the reference's quantizer: `main_with` is the whole command.
//!
//! ```sh
//! cargo run --release -p fp4-conformance --example new_backend
//! ```

use std::process::ExitCode;

use fp4_core::backend::erased::Backend;
use fp4_core::reference::group_dot;
use fp4_core::*;
use quant_linear::{Backends, DenseOptions, QuantLinear};

struct Toy;
struct ToyWeight<B>(B);

impl<B: Packed> PreparedWeight for ToyWeight<B> {
    fn shape(&self) -> PackedShape {
        self.0.view().shape()
    }
}

impl Named for Toy {
    fn name(&self) -> &str {
        "toy"
    }
}

impl Matmul for Toy {
    type Prepared<B: Packed> = ToyWeight<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        query.expect_same_encoding()
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<ToyWeight<B>, Error> {
        b.view().shape().expect_format().map(|_| ToyWeight(b))
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &ToyWeight<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        check_environment()?;
        let (b, wide) = (b.0.view(), out.len() as u64);
        a.shape().expect_product(&b.shape())?.expect_one_format()?;
        epilogue.expect(a.shape().rows(), b.shape().rows())?;
        let (n, ty, bytes) =
            (b.shape().rows(), a.shape().scale_type(), a.shape().group().get() / 2);
        with_floats!(FloatSliceMut, out, out => for (index, y) in out.iter_mut().enumerate() {
            let (i, j, mut sum) = (index / n, index % n, ExactSum::ZERO);
            let codes = a.row_codes(i).chunks(bytes).zip(b.row_codes(j).chunks(bytes));
            let scales = a.row_scales(i).iter().zip(b.row_scales(j));
            for ((ca, cb), (&sa, &sb)) in codes.zip(scales) {
                let (Some(sa), Some(sb)) = (ty.parts(sa), ty.parts(sb)) else {
                    sum.set_nan();
                    continue;
                };
                let significand = group_dot(ca, cb) * i64::from(sa.significand * sb.significand);
                sum.add_scaled(significand, sa.exponent + sb.exponent - 2)?;
            }
            *y = epilogue.apply(sum.to_f32(), i, j);
        });
        Ok(Paths::new(0, 0, wide))
    }

    fn export_weight<B: Packed>(
        &self,
        b: &ToyWeight<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        out.copy_from(b.0.view())
    }
}

/// A layer with this backend in front: the same outputs.
fn used_by_a_layer() -> Result<(), quant_linear::Error> {
    let weight: Vec<f32> = (0..8 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut layer = QuantLinear::from_dense(&weight[..], 8, 64, &DenseOptions::new(Format::NvFp4))?;
    let expected = layer.forward(&weight, &[8, 64])?;
    layer.set_backends(Backends::reference().with(Backend::matmul_only(Toy)));
    assert_eq!(layer.forward(&weight, &[8, 64])?, expected);
    println!("new_backend: {} outputs of a layer equal", expected.len());
    Ok(())
}

fn main() -> ExitCode {
    used_by_a_layer().expect("a layer");
    fp4_conformance::main_with([Backend::matmul_only(Toy)])
}
