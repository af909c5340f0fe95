//! Calls in a changed floating-point environment ([C9]): each must be an error that says what
//! changed.
//!
//! Another library may have changed the environment of the thread that calls. A backend that
//! computes on regardless returns other bits, or the same ones by luck: so an error is demanded,
//! not bits.
//!
//! ```text
//! on a thread of its own, so that nothing else ever runs in a changed environment:
//!     make operands and weight
//!     change the environment; call; change it back
//!     expect Error::Environment(FlushToZero) for ftz and daz, (RoundingMode) for the others
//! ```
//!
//! Partial sums are integers: a backend may also return the same ones as in the default
//! environment.
//!
//! Changing the environment takes `unsafe`: [`Suite::environment`](super::Suite::environment) is
//! given a function that does it.
//!
//! [C9]: fp4_core::contract#c9

use fp4_core::backend::erased::Backend;
use fp4_core::backend::{Sink, Source};
use fp4_core::{
    Error, ExactSum, FpEnvironment, GroupedProduct, MatmulQuery, PackedMatrix, Partials,
    PartialsMut, QuantSpec, QuantizeInput, Transform, Unsupported, check_environment, finish,
    nvfp4_global_scale, reference,
};

use super::Registered;
use super::case::{Call, EnvironmentCase};
use super::outcome::Outcome;
use super::run_report::Subject;

type Change<'a> = &'a (dyn Fn(&str, &mut dyn FnMut()) -> bool + Send + Sync);

/// Rows of both operands.
const ROWS: usize = 3;
/// Elements of a row.
const K: usize = 64;

/// Runs a case on the core, or on every backend that has the entry point.
pub(super) fn check(
    change: Option<Change<'_>>,
    case: &EnvironmentCase,
    subjects: &[(usize, &Registered)],
) -> Result<Vec<(Subject, Outcome)>, Error> {
    if case.call == Call::Core {
        return Ok(vec![(Subject::Core, run(change, case, core))]);
    }
    let outcomes = subjects.iter().filter_map(|&(index, registered)| {
        let backend = registered.backend();
        let subject = match case.call {
            Call::Quantize => Subject::Quantizer(index),
            Call::Forward => Subject::Pair(index, index),
            _ => Subject::Matmul(index),
        };
        let has = match case.call {
            Call::Quantize => backend.quantizer().is_some(),
            Call::Forward => backend.as_resident().is_some(),
            _ => backend.matmul().is_some(),
        };
        has.then(|| (subject, run(change, case, |case, call| of_backend(backend, case, call))))
    });
    Ok(outcomes.collect())
}

/// What a call in the changed environment returned.
struct Reply {
    call: &'static str,
    result: Result<(), Error>,
    /// It computed integers, and the right ones.
    is_exact: bool,
}

/// Makes calls in the changed environment.
type Caller<'a> = &'a mut dyn FnMut(&mut dyn FnMut() -> Vec<Reply>);

fn reply<T>(call: &'static str, result: Result<T, Error>) -> Reply {
    Reply { call, result: result.map(drop), is_exact: false }
}

fn run(
    change: Option<Change<'_>>,
    case: &EnvironmentCase,
    calls: impl Fn(&EnvironmentCase, Caller<'_>) -> Result<(), Error> + Sync,
) -> Outcome {
    let unsupported = |reason: &str| Outcome::Unsupported { reason: reason.into() };
    let Some(change) = change else {
        return unsupported("no way to change the floating-point environment was given");
    };
    let expected = match case.change.as_str() {
        "ftz" | "daz" => FpEnvironment::FlushToZero,
        _ => FpEnvironment::RoundingMode,
    };
    let on_thread = || {
        let (mut results, mut changed) = (Vec::new(), false);
        calls(case, &mut |f| {
            changed = change(&case.change, &mut || results = f());
        })?;
        Ok::<_, Error>((results, changed))
    };
    let result = std::thread::scope(|scope| scope.spawn(on_thread).join());
    let results = match result {
        Ok(Ok((results, true))) => results,
        Ok(Ok((_, false))) => return unsupported("this machine has no such environment"),
        Ok(Err(error)) => return Outcome::from(error),
        Err(_) => return Outcome::Error { message: "[C9] the call panicked".into() },
    };
    let values = results.len() as u64;
    for Reply { call, result, is_exact } in results {
        let got = match result {
            Ok(()) if is_exact => continue,
            Err(Error::Environment(got)) if got == expected => continue,
            Err(Error::Unsupported(reason)) => return unsupported(&reason.to_string()),
            Err(error) => format!("the error \"{error}\""),
            Ok(()) => "a result".to_owned(),
        };
        let (change, wanted) = (&case.change, Error::Environment(expected));
        let message = format!("[C9] {call} under {change}: got {got}, expected \"{wanted}\"");
        return Outcome::Error { message };
    }
    // Whether it runs depends on the machine, and what it computes does not.
    Outcome::Passed { values, digest: 0 }
}

fn core(case: &EnvironmentCase, caller: Caller<'_>) -> Result<(), Error> {
    let (spec, x, t) = (QuantSpec::usual(case.format), [1f32; ROWS * K], [0.25f32; 256]);
    let input = QuantizeInput::new(&x[..], ROWS, K, &spec)?;
    let t = Transform::shared(&t[..], 16)?;
    let packed = PackedMatrix::zeros(input.shape());
    caller(&mut || {
        let (mut y, mut dense) = ([0f32; ROWS * ROWS], [0f32; ROWS * K]);
        let (mut out, sums) = (packed.clone(), [ExactSum::ZERO; ROWS * ROWS]);
        let view = packed.view();
        vec![
            reply("check_environment", check_environment()),
            reply("reference::quantize", reference::quantize(&input, &mut out.view_mut())),
            reply(
                "reference::dequantize",
                reference::dequantize(view, 1.0, (&mut dense[..]).into()),
            ),
            reply("reference::matmul", reference::matmul(view, view, 1.0, (&mut y[..]).into())),
            reply(
                "reference::apply_transform",
                reference::apply_transform((&x[..]).into(), K, &t, (&mut dense[..]).into()),
            ),
            reply("finish", finish(Partials::Exact(&sums), [ROWS, ROWS], 1.0, (&mut y[..]).into())),
            reply("nvfp4_global_scale", nvfp4_global_scale(3.0)),
        ]
    });
    Ok(())
}

fn of_backend(backend: &Backend, case: &EnvironmentCase, caller: Caller<'_>) -> Result<(), Error> {
    let (spec, x) = (QuantSpec::usual(case.format), [1f32; ROWS * K]);
    let input = QuantizeInput::new(&x[..], ROWS, K, &spec)?;
    let shape = input.shape();
    let packed =
        PackedMatrix::new(shape, vec![0x35; shape.codes_len()], vec![0x38; shape.scales_len()])?;
    let mut y = [0f32; ROWS * ROWS];
    let none = || Error::from(Unsupported::Other("no such entry point"));
    let query = MatmulQuery::new(case.format, [ROWS, ROWS, K], fp4_core::FloatType::F32);
    match case.call {
        Call::Quantize => {
            let quantizer = backend.quantizer().ok_or_else(none)?;
            quantizer.supports_quantize(&input.query())?;
            let mut out = packed.clone();
            caller(&mut || {
                vec![reply("quantize", quantizer.quantize(&input, &mut out.view_mut()))]
            });
        }
        Call::Forward => {
            let resident = backend.as_resident().ok_or_else(none)?;
            let linear = resident.clone().prepare_linear(packed.into())?;
            let mut scratch = resident.scratch_dyn()?;
            caller(&mut || {
                let scratch = &mut *scratch;
                let from = Source::Host((&x[..]).into());
                let quantized = resident.quantize_dyn(from, [ROWS, K], &spec, None, scratch, None);
                let out = Sink::Host((&mut y[..]).into());
                let multiplied = linear.matmul_dyn(scratch, 1.0.into(), out);
                vec![reply("quantize_dyn", quantized), reply("matmul_dyn", multiplied)]
            });
        }
        Call::Matmul | Call::Partial | Call::Core => {
            let matmul = backend.matmul().ok_or_else(none)?;
            matmul.supports_matmul(&query)?;
            let weight = matmul.clone().prepare_dyn(packed.clone().into())?;
            if case.call == Call::Partial {
                matmul.supports_partial(&query)?;
                let groups = 0..packed.shape().row_groups();
                let sums = || {
                    let mut sums = [ExactSum::ZERO; ROWS * ROWS];
                    let out = PartialsMut::Exact(&mut sums);
                    weight.partial(packed.view(), groups.clone(), out).map(|()| sums)
                };
                let expected = sums()?;
                caller(&mut || {
                    let got = sums();
                    let is_exact = got.as_ref().is_ok_and(|got| *got == expected);
                    vec![Reply { call: "partial", result: got.map(drop), is_exact }]
                });
            } else {
                caller(&mut || {
                    let out = (&mut y[..]).into();
                    let alone = weight.matmul(packed.view(), 1.0.into(), out);
                    let product = GroupedProduct::new(packed.view(), &*weight, 1.0, &mut y[..]);
                    let grouped = matmul.grouped_dyn(&mut [product]);
                    let grouped = grouped.map_err(|error| error.error);
                    vec![reply("matmul", alone), reply("grouped", grouped)]
                });
            }
        }
    }
    Ok(())
}
