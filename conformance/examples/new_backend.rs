//! A whole backend of one's own: a matmul that adds up elements one by one, and the core's
//! quantizer; checked by the suite, then used by a layer.
//!
//! ```sh
//! cargo run --release -p fp4-conformance --example new_backend
//! ```

use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::backend::erased::Backend;
use fp4_core::{
    Error, ExactSum, FloatSliceMut, Format, Matmul, MatmulQuery, Named, Packed, PackedMut,
    PackedShape, PackedView, Paths, PreparedWeight, QuantizeInput, QuantizeQuery, Quantizer,
    Unsupported, check_environment, finish_one, reference, with_floats,
};
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

impl Quantizer for Toy {
    fn supports_quantize(&self, _: &QuantizeQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn quantize(&self, input: &QuantizeInput<'_>, out: &mut PackedMut<'_>) -> Result<(), Error> {
        check_environment()?;
        reference::quantize(input, out).map(|_| ())
    }
}

impl Matmul for Toy {
    type Prepared<B: Packed> = ToyWeight<B>;

    fn supports_matmul(&self, _: &MatmulQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<ToyWeight<B>, Error> {
        b.view().shape().expect_format()?;
        Ok(ToyWeight(b))
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &ToyWeight<B>,
        alpha: f32,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        check_environment()?;
        let b = b.0.view();
        a.shape().expect_product(&b.shape())?;
        let (n, group) = (b.shape().rows(), a.shape().group().get());
        let (outputs, ty) = (out.len() as u64, a.shape().scale_type());
        with_floats!(FloatSliceMut, out, out => for (index, y) in out.iter_mut().enumerate() {
            let (i, j, mut sum) = (index / n, index % n, ExactSum::ZERO);
            for k in 0..a.shape().k() {
                let scales = (ty.parts(a.row_scales(i)[k / group]), ty.parts(b.row_scales(j)[k / group]));
                match (scales, a.code(i, k), b.code(j, k)) {
                    ((Some(sa), Some(sb)), Some(ca), Some(cb)) => {
                        let product = i32::from(ca.doubled()) * i32::from(cb.doubled());
                        let significand = product * sa.significand * sb.significand;
                        sum.add_scaled(significand.into(), sa.exponent + sb.exponent - 2)?;
                    }
                    _ => sum.set_nan(),
                }
            }
            *y = finish_one(sum.to_f32(), alpha);
        });
        Ok(Paths { wide: outputs, ..Paths::default() })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let toy = Backend::new(Toy);
    let report = Suite::new(Profile::quick()).with(Registered::new(toy.clone())).run();
    println!("{report}");
    assert!(report.passed());

    let weight: Vec<f32> = (0..8 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut layer = QuantLinear::from_dense(&weight[..], 8, 64, &DenseOptions::new(Format::NvFp4))?;
    let expected = layer.forward(&weight, &[8, 64])?;
    layer.set_backends(Backends::none().with(toy));
    assert_eq!(layer.forward(&weight, &[8, 64])?, expected);
    println!("new_backend: {} outputs of a layer equal", expected.len());
    Ok(())
}
