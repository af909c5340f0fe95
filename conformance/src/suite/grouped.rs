//! Grouped products ([C6]): the bits of each alone, and nothing written if one does not fit.
//!
//! ```text
//! for each product of the case:   expected = the oracle's answer, alone
//! all in one call                 compared bit for bit; the paths of all are the sum of each one's
//! once more, the last output cut short      an error that names the product; every output as it was
//! ```
//!
//! [C6]: fp4_core::contract#c6-grouped

use std::sync::Arc;

use fp4_core::backend::erased::{DynMatmul, DynWeight};
use fp4_core::{
    Buffer, Error, FloatSliceMut, GroupedError, GroupedProduct, MatmulQuery, PackedMatrix, Paths,
    with_floats,
};

use super::Suite;
use super::case::{Case, GroupedCase, MatmulCase};
use super::outcome::{Comparison, Meaning, Outcome};
use super::run_report::Subject;
use super::runner::{Outcomes, Product, subjects, threaded};
use crate::oracle::Wide;
use crate::tensor::{Values, bits_of, garbage};

/// One product of a case with its oracle's sums.
struct Member {
    request: MatmulCase,
    a: Arc<PackedMatrix>,
    b: Arc<PackedMatrix>,
    sums: Vec<Wide>,
    epilogue: [Option<Vec<f32>>; 2],
}

pub(super) fn check(
    suite: &Suite,
    case: &Case,
    request: &GroupedCase,
    alive: &[bool],
) -> Result<Outcomes, Error> {
    let mut members: Vec<Member> = Vec::new();
    for (i, product) in request.products.iter().enumerate() {
        let id = format!("{}/{i}", case.id);
        let [a, b] = product.data(&id)?;
        // Of one input all have the first one's A.
        let shared = members.first().filter(|_| request.one_input).map(|first| first.a.clone());
        let (a, b) = (shared.unwrap_or_else(|| a.into()), Arc::new(b));
        let sums = suite.oracle.sums(a.view(), b.view(), 0..b.shape().row_groups());
        let exact: Vec<f64> = sums.iter().map(Wide::to_f64).collect();
        let epilogue = product.epilogue(&id, &exact);
        members.push(Member { request: product.clone(), a, b, sums, epilogue });
    }
    let products: Vec<Product<'_>> = members
        .iter()
        .map(|Member { request, a, b, sums, epilogue }| Product {
            oracle: &suite.oracle,
            request,
            a,
            b,
            sums,
            epilogue: epilogue.clone(),
        })
        .collect();
    let outcomes = subjects(suite, alive).filter_map(|(index, registered)| {
        let run = || {
            let backend = threaded(registered, request.threads)?;
            let Some(matmul) = backend.matmul() else { return Ok(None) };
            Ok::<_, Outcome>(Some(compare(matmul, &members, &products)?))
        };
        run().unwrap_or_else(Some).map(|outcome| (Subject::Matmul(index), outcome))
    });
    Ok(outcomes.collect())
}

/// The grouped call on garbage, and the one that must be refused.
fn compare(
    matmul: &Arc<dyn DynMatmul>,
    members: &[Member],
    products: &[Product<'_>],
) -> Result<Outcome, Error> {
    let mut weights = Vec::new();
    for (Member { request, b, .. }, product) in members.iter().zip(products) {
        let query = MatmulQuery::new(request.format, request.shape, request.output);
        let query = query.with_a(request.a).with_epilogue(&product.epilogue());
        matmul.supports_matmul(&query)?;
        weights.push(matmul.clone().prepare_dyn(b.clone())?);
    }
    let mut outputs = garbage_of(members);
    let mut grouped = call(products, &weights, &mut outputs);
    let paths = matmul.grouped_dyn(&mut grouped).map_err(|error| error.error)?;
    let mut sum = Paths::default();
    grouped.iter().for_each(|product| sum.merge(&product.paths));
    drop(grouped);
    let mut comparison = Comparison::default();
    for (i, ((got, product), member)) in outputs.iter().zip(products).zip(members).enumerate() {
        let expected: Vec<u32> = (0..member.sums.len()).map(|at| product.expected(at)).collect();
        let (tensor, float) =
            (format!("output of product {i}"), Meaning::Float(member.request.output));
        let columns = member.request.shape[1];
        comparison.compare("C6", &tensor, float, columns, &bits_of(got.as_slice()), &expected);
    }
    let counts = |paths: Paths| [paths.narrow, paths.planes, paths.wide].map(|n| n as u32);
    let (all, each) = (counts(paths), counts(sum));
    comparison.consistent("C6", "paths of all products", &all, &each);
    Ok(match refused(matmul, members, products, &weights) {
        Some(message) => Outcome::Error { message },
        None => comparison.outcome(),
    })
}

/// What is wrong with how a call is refused whose last output is one value short.
fn refused(
    matmul: &Arc<dyn DynMatmul>,
    members: &[Member],
    products: &[Product<'_>],
    weights: &[Box<dyn DynWeight>],
) -> Option<String> {
    let at = members.iter().rposition(|member| !member.sums.is_empty())?;
    let mut outputs = garbage_of(members);
    let mut grouped = call(products, weights, &mut outputs);
    let out = std::mem::replace(&mut grouped[at].out, FloatSliceMut::F32(&mut []));
    grouped[at].out = with_floats!(FloatSliceMut, out, out => {
        let short = out.len() - 1;
        (&mut out[..short]).into()
    });
    let got = matmul.grouped_dyn(&mut grouped);
    drop(grouped);
    let expected = members[at].sums.len();
    let error = Error::Len { what: Buffer::Output, expected, got: expected - 1 };
    let error = GroupedError::of(at, error);
    if got != Err(error) {
        let got = got.map_or_else(|got| format!("\"{got}\""), |_| "a result".to_owned());
        return Some(format!("[C6] an output one value short: got {got}, expected \"{error}\""));
    }
    let written = outputs
        .iter()
        .zip(garbage_of(members))
        .position(|(output, garbage)| bits_of(output.as_slice()) != bits_of(garbage.as_slice()));
    written
        .map(|i| format!("[C6] the call is refused for product {at}, and product {i} was written"))
}

fn garbage_of(members: &[Member]) -> Vec<Values> {
    members.iter().map(|member| garbage(member.request.output, member.sums.len())).collect()
}

fn call<'a>(
    products: &'a [Product<'_>],
    weights: &'a [Box<dyn DynWeight>],
    outputs: &'a mut [Values],
) -> Vec<GroupedProduct<'a, dyn DynWeight>> {
    let parts = products.iter().zip(weights).zip(outputs);
    parts
        .map(|((product, weight), out)| {
            let (a, out) = (product.a.view(), out.as_mut_slice());
            GroupedProduct::new(a, &**weight, product.epilogue(), out)
        })
        .collect()
}
