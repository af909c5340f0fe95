//! A layer in candle gives the bits of the library, for every type, shape, stride and encoding; and
//! says what it does not take.

#![allow(missing_docs)]

mod common;

use std::thread;

use candle_core::{CustomOp1, DType, Device, IndexOp, Layout, Module, Shape, Tensor, Var};
use candle_nn::Linear;
use common::{Both, KINDS, bits, by_index, layer, tensor, values};
use fp4_core::Format;
use half::{bf16, f16};
use quant_linear::{DenseOptions, QuantLinear, StoredTransform};
use quant_linear_candle::{Fp4Linear, OverHost};

const OUT: usize = 24;
const IN: usize = 64;

/// Forwards `x` in candle, and its values in the library; returns how many were compared.
fn same<T: Both>(layer: &QuantLinear, x: &Tensor, what: &str) -> usize {
    let y = Fp4Linear::from(layer.clone()).forward(x).unwrap();
    assert_eq!(y.dims(), layer.output_shape(x.dims()).unwrap(), "{what}");
    assert_eq!(y.dtype(), x.dtype(), "{what}");
    assert!(y.is_contiguous(), "{what}");
    let expected = layer.forward(&by_index::<T>(x), x.dims()).unwrap();
    let got = by_index::<T>(&y);
    assert_eq!(bits(&got), bits(&expected), "{what}");
    let over = OverHost(layer.clone().into()).forward(x).unwrap();
    assert_eq!(bits(&by_index::<T>(&over)), bits(&expected), "{what}");
    got.len()
}

fn same_of_type(layer: &QuantLinear, x: &Tensor, what: &str) -> usize {
    match x.dtype() {
        DType::F32 => same::<f32>(layer, x, what),
        DType::F16 => same::<f16>(layer, x, what),
        DType::BF16 => same::<bf16>(layer, x, what),
        other => panic!("{other:?}"),
    }
}

/// Views of (.., IN) with every kind of stride, and what each is.
fn views(dtype: DType) -> Vec<(&'static str, Tensor)> {
    let t = |shape: &[usize]| tensor(5, shape, dtype);
    vec![
        ("contiguous", t(&[6, IN])),
        ("rows from the middle", t(&[9, IN]).narrow(0, 2, 5).unwrap()),
        ("one row", t(&[9, IN]).i(4).unwrap()),
        ("columns from the middle", t(&[6, 3 * IN]).narrow(1, 40, IN).unwrap()),
        ("transposed", t(&[IN, 6]).t().unwrap()),
        ("heads exchanged", t(&[2, 3, 4, IN]).transpose(1, 2).unwrap()),
        ("features in front", t(&[IN, 2, 3]).permute((1, 2, 0)).unwrap()),
        ("all turned", t(&[IN, 2, 3]).permute((2, 1, 0)).unwrap()),
        ("a row for all", t(&[1, IN]).broadcast_as((5, IN)).unwrap()),
        ("a value for a row", t(&[5, 1]).broadcast_as((5, IN)).unwrap()),
        ("a matrix for all", t(&[3, IN]).broadcast_as((2, 3, IN)).unwrap()),
        ("every second row", t(&[4, 2, IN]).i((.., 1)).unwrap()),
        ("every third column", t(&[5, IN, 3]).i((.., .., 2)).unwrap()),
        ("dimensions of one", t(&[1, 4, 1, IN]).transpose(0, 1).unwrap()),
        ("narrowed and transposed", t(&[IN + 7, 8]).narrow(0, 3, IN).unwrap().t().unwrap()),
    ]
}

#[test]
fn outputs_are_the_librarys_bits_for_every_view_type_and_encoding() {
    let (mut views_seen, mut compared) = (0, 0);
    for kind in KINDS {
        for bias in [false, true] {
            let layer = layer(kind, OUT, IN, bias);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for (what, x) in views(dtype) {
                    compared += same_of_type(&layer, &x, &format!("{kind:?} {dtype:?} {what}"));
                    views_seen += 1;
                }
            }
        }
    }
    assert_eq!(views_seen, 5 * 2 * 3 * 15);
    println!("{views_seen} views, {compared} values compared, 0 differ");
}

#[test]
fn any_leading_dimensions_give_the_bits_of_the_rows() {
    let layer = layer(KINDS[2], OUT, IN, true);
    let shapes: [&[usize]; 8] = [
        &[IN],
        &[1, IN],
        &[7, IN],
        &[2, 3, IN],
        &[1, 1, 5, IN],
        &[2, 2, 2, 2, IN],
        &[0, IN],
        &[3, 0, 2, IN],
    ];
    for shape in shapes {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            same_of_type(&layer, &tensor(4, shape, dtype), &format!("{shape:?}"));
        }
    }
}

#[test]
fn a_transform_and_odd_shapes_give_the_librarys_bits() {
    let (out, inp) = (17, 96);
    for format in [Format::MxFp4, Format::NvFp4] {
        let transform = Some(StoredTransform::hadamard(32).unwrap());
        let options = DenseOptions { transform, ..DenseOptions::new(format) };
        let weight = values(8, out * inp);
        let layer = QuantLinear::from_dense(&weight[..], out, inp, &options).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = tensor(3, &[inp, 5], dtype).t().unwrap();
            same_of_type(&layer, &x, &format!("{format:?} {dtype:?}"));
        }
    }
}

#[test]
fn values_that_are_no_numbers_and_the_largest_give_the_librarys_bits() {
    let layer = layer(KINDS[0], OUT, IN, false);
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0, 1e-45] {
        let mut x = values(6, 3 * IN);
        x[IN + 5] = special;
        x[2 * IN] = -special;
        let x = Tensor::from_vec(x, (3, IN), &Device::Cpu).unwrap();
        let y = Fp4Linear::from(layer.clone()).forward(&x);
        let expected = layer.forward(&by_index::<f32>(&x), &[3, IN]);
        match (y, expected) {
            (Ok(y), Ok(expected)) => {
                assert_eq!(bits(&by_index::<f32>(&y)), bits(&expected), "{special}");
            }
            (y, expected) => panic!("{special}: {y:?}, {expected:?}"),
        }
    }
}

/// The weight of a dense layer, as candle has it, becomes what the library makes of its values.
#[test]
fn a_dense_layer_of_any_type_and_stride_is_quantized_as_the_library_quantizes_its_values() {
    for (format, activations) in KINDS {
        let options = DenseOptions { activations, ..DenseOptions::new(format) };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (what, weight) in [
                ("contiguous", tensor(1, &[OUT, IN], dtype)),
                ("transposed", tensor(1, &[IN, OUT], dtype).t().unwrap()),
                ("a slice", tensor(1, &[OUT + 8, IN], dtype).narrow(0, 3, OUT).unwrap()),
            ] {
                let bias = tensor(2, &[OUT], dtype);
                let dense = Linear::new(weight.clone(), Some(bias.clone()));
                let made = Fp4Linear::from_linear(&dense, &options).unwrap();
                let weight: Vec<f32> = match dtype {
                    DType::F32 => by_index::<f32>(&weight),
                    DType::F16 => by_index::<f16>(&weight).iter().map(|v| v.to_f32()).collect(),
                    _ => by_index::<bf16>(&weight).iter().map(|v| v.to_f32()).collect(),
                };
                let bias = bias.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
                let own = QuantLinear::from_dense(&weight[..], OUT, IN, &options).unwrap();
                let own = own.with_bias(&bias).unwrap();
                let packed = |layer: &QuantLinear| layer.weight().unwrap();
                assert_eq!(packed(made.layer()), packed(&own), "{format:?} {dtype:?} {what}");
                let x = values(9, 4 * IN);
                let y = made.forward(&Tensor::from_slice(&x, (4, IN), &Device::Cpu).unwrap());
                let y = by_index::<f32>(&y.unwrap());
                assert_eq!(bits(&y), bits(&own.forward(&x, &[4, IN]).unwrap()));
            }
        }
    }
}

#[test]
fn a_clone_shares_the_weight_and_threads_share_a_layer() {
    fn send_and_sync<T: Send + Sync + Clone + 'static>(_: &T) {}
    let made = Fp4Linear::from(layer(KINDS[2], OUT, IN, false));
    send_and_sync(&made);
    send_and_sync(&OverHost(made.clone()));
    assert!(std::ptr::eq(made.layer(), made.clone().layer()));
    let x = tensor(7, &[5, IN], DType::F32);
    let expected = bits(&by_index::<f32>(&made.forward(&x).unwrap()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (made, x) = (made.clone(), x.clone());
            thread::spawn(move || bits(&by_index::<f32>(&made.forward(&x).unwrap())))
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), expected);
    }
}

fn refusal(result: candle_core::Result<Tensor>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_a_layer_does_not_take_is_an_error_that_says_what_to_do() {
    let mut named = layer(KINDS[0], OUT, IN, false);
    named.set_name("mlp.up");
    let layer = Fp4Linear::from(named);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    for dtype in [DType::F64, DType::U8, DType::U32, DType::I64, DType::F8E4M3] {
        let text = refusal(layer.forward(&zeros(&[2, IN], dtype)));
        let said = text.contains(&format!("{dtype:?}")) && text.contains("to_dtype");
        assert!(said && text.contains("F32, F16 or BF16"), "{text}");
    }
    for shape in [&[2, IN + 1][..], &[IN, 2], &[], &[2, 0]] {
        let text = refusal(layer.forward(&zeros(shape, DType::F32)));
        assert!(text.contains("mlp.up") && text.contains("64"), "{shape:?}: {text}");
    }
    // Rows that no memory holds, of a tensor of one row.
    let endless = zeros(&[1, IN], DType::F32).broadcast_as((1 << 52, IN)).unwrap();
    let text = refusal(layer.forward(&endless));
    assert!(text.contains("memory"), "{text}");
    let endless = zeros(&[1, IN], DType::F32).broadcast_as((1 << 62, IN)).unwrap();
    refusal(layer.forward(&endless));
    let empty = QuantLinear::empty(IN, OUT, false).unwrap();
    let text = refusal(Fp4Linear::from(empty).forward(&zeros(&[2, IN], DType::F32)));
    assert!(text.contains("load"), "{text}");
}

#[test]
fn a_storage_of_another_device_is_an_error_and_not_a_panic() {
    let layer = Fp4Linear::from(layer(KINDS[0], OUT, IN, false));
    let layout = Layout::contiguous(Shape::from((2, IN)));
    let cuda = layer.cuda_fwd(&candle_core::CudaStorage, &layout).unwrap_err().to_string();
    assert!(cuda.contains("CUDA") && cuda.contains("OverHost"), "{cuda}");
    let metal = layer.metal_fwd(&candle_core::MetalStorage, &layout).unwrap_err().to_string();
    assert!(metal.contains("Metal") && metal.contains("to_device"), "{metal}");
    // Candle itself says here that it was built without the device.
    OverHost(layer.clone()).cuda_fwd(&candle_core::CudaStorage, &layout).unwrap_err();
    OverHost(layer).metal_fwd(&candle_core::MetalStorage, &layout).unwrap_err();
}

#[test]
fn dense_tensors_that_are_no_layer_are_errors() {
    let options = DenseOptions::new(Format::MxFp4);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let text = |weight: Tensor, bias: Option<Tensor>| {
        let made = Fp4Linear::from_tensors(&weight, bias.as_ref(), &options);
        made.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let good = || zeros(&[8, 32], DType::F32);
    assert_eq!(text(good(), Some(zeros(&[8], DType::BF16))), "");
    for (weight, bias, said) in [
        (zeros(&[8], DType::F32), None, "(out, in)"),
        (zeros(&[2, 8, 32], DType::F32), None, "(out, in)"),
        (zeros(&[8, 32], DType::F64), None, "weight is of type F64"),
        (zeros(&[8, 40], DType::F32), None, "K = 40"),
        (good(), Some(zeros(&[7], DType::F32)), "(8)"),
        (good(), Some(zeros(&[1, 8], DType::F32)), "(8)"),
        (good(), Some(zeros(&[8], DType::I64)), "bias is of type I64"),
    ] {
        let text = text(weight, bias);
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn a_gradient_that_reaches_a_layer_is_an_error() {
    let layer = Fp4Linear::from(layer(KINDS[0], OUT, IN, false));
    let x = Var::from_tensor(&tensor(1, &[2, IN], DType::F32)).unwrap();
    let y = layer.forward(x.as_tensor()).unwrap().sum_all().unwrap();
    let text = y.backward().unwrap_err().to_string();
    assert!(text.contains("no gradient passes") && text.contains("detach"), "{text}");
    // Past a detached input it goes.
    let y = layer.forward(&x.detach()).unwrap().sum_all().unwrap();
    let both = (y + x.sum_all().unwrap()).unwrap();
    assert!(both.backward().unwrap().get(&x).is_some());
}
