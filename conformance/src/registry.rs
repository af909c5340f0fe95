//! The backends that the command knows: one explicit list.

use fp4_core::Unsupported;
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;

use crate::suite::Registered;

/// A backend by name, and what opening it gave.
pub type Known = (&'static str, Result<Registered, Unsupported>);

/// The reference, and the backends compiled in.
pub fn known() -> Vec<Known> {
    vec![
        ("reference", Ok(Registered::new(Backend::new(Reference)))),
        #[cfg(feature = "cpu-simd")]
        ("cpu-simd", cpu_simd()),
    ]
}

/// The CPU backend, with its threads, tiles (4 x 8) and bounds (a joint spread of 40).
#[cfg(feature = "cpu-simd")]
fn cpu_simd() -> Result<Registered, Unsupported> {
    use std::sync::Arc;

    use fp4_backend_cpu_simd::CpuSimd;

    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pools: Vec<_> = (1..=8).map_while(|threads| pool(threads).ok().map(Arc::new)).collect();
    Ok(Registered::new(Backend::resident(CpuSimd::new()))
        .threads(move |threads| {
            let pool = threads.checked_sub(1).and_then(|at| pools.get(at));
            let cpu = CpuSimd::new();
            Backend::resident(match pool {
                Some(pool) => cpu.with_pool(pool.clone()),
                None => cpu,
            })
        })
        .tiles(&[4, 64], &[8])
        .spreads(&[40]))
}
