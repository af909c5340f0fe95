//! The backends that the command knows: one explicit list.

use fp4_core::Unsupported;
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;

use crate::suite::run_report::cpu_name;
use crate::suite::{Hardware, Registered};

/// A backend by name, and what opening it gave.
#[derive(Clone)]
pub struct Known {
    name: String,
    opened: Result<Registered, Unsupported>,
}

impl Known {
    /// A backend that may not be available here.
    pub fn new(name: impl Into<String>, opened: Result<Registered, Unsupported>) -> Self {
        Known { name: name.into(), opened }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The backend.
    ///
    /// # Errors
    /// Why it is not available.
    pub fn opened(&self) -> Result<&Registered, Unsupported> {
        self.opened.as_ref().map_err(|why| *why)
    }
}

impl From<Registered> for Known {
    fn from(registered: Registered) -> Self {
        Known { name: registered.name().to_owned(), opened: Ok(registered) }
    }
}

impl From<Backend> for Known {
    fn from(backend: Backend) -> Self {
        Registered::new(backend).into()
    }
}

/// These backends, with the reference in front if it is not one of them.
pub fn with_reference(backends: impl IntoIterator<Item = Known>) -> Vec<Known> {
    let mut known: Vec<_> = backends.into_iter().collect();
    let reference = Registered::new(Backend::new(Reference)).on(on_cpu("scalar"));
    if known.iter().all(|known| known.name != reference.name()) {
        known.insert(0, reference.into());
    }
    known
}

/// The reference, and the backends compiled in.
pub fn known() -> Vec<Known> {
    let parts: Vec<Vec<Known>> = vec![
        #[cfg(feature = "cpu-simd")]
        cpu_simd::known(),
        #[cfg(feature = "cuda")]
        vec![Known::new(fp4_backend_cuda::NAME, cuda())],
    ];
    with_reference(parts.into_iter().flatten())
}

/// Runs `call` on this thread in a changed floating-point environment, for
/// [`Suite::environment`](crate::suite::Suite::environment): `ftz`, `daz`, `down`, `up`, `toward-zero`.
/// False, without the call, if this build knows no way.
pub fn changed_environment(change: &str, call: &mut dyn FnMut()) -> bool {
    #[cfg(all(feature = "cpu-simd", any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        fp4_backend_cpu_simd::environment::probe(change, call)
    }
    #[cfg(not(all(feature = "cpu-simd", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        let _ = (change, call);
        false
    }
}

/// The CPU, with the instruction set of the kernels.
fn on_cpu(isa: &str) -> Hardware {
    Hardware { device: Some(cpu_name()), driver: Some("none".into()), isa: Some(isa.into()) }
}

/// The CPU backend: as it chooses, and once for each other instruction set that it has kernels for.
#[cfg(feature = "cpu-simd")]
mod cpu_simd {
    use std::sync::Arc;

    use fp4_backend_cpu_simd::{CpuSimd, Isa};
    use fp4_core::backend::erased::Backend;
    use rayon::{ThreadPool, ThreadPoolBuilder};

    use super::{Known, on_cpu};
    use crate::suite::Registered;

    /// Most threads that a case may ask for.
    const THREADS: usize = 8;

    pub(super) fn known() -> Vec<Known> {
        let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build();
        let pools: Arc<[_]> = (1..=THREADS).map_while(|n| pool(n).ok().map(Arc::new)).collect();
        let chosen = CpuSimd::new();
        let others = Isa::ALL.into_iter().filter(|isa| *isa != chosen.isa()).map(|isa| {
            let name = format!("cpu-simd-{isa}");
            let opened = CpuSimd::with_isa(isa).map(|cpu| register(cpu, &name, &pools));
            Known::new(name, opened)
        });
        let mut known = vec![register(chosen.clone(), "cpu-simd", &pools).into()];
        known.extend(others);
        known
    }

    fn register(cpu: CpuSimd, name: &str, pools: &Arc<[Arc<ThreadPool>]>) -> Registered {
        let (isa, pools) = (cpu.isa(), pools.clone());
        let limits = isa.limits();
        Registered::new(Backend::resident(cpu.clone()))
            .named(name)
            .on(on_cpu(isa.name()))
            .threads(move |threads| {
                let pool = threads.checked_sub(1).and_then(|at| pools.get(at));
                Backend::resident(match pool {
                    Some(pool) => cpu.clone().with_pool(pool.clone()),
                    None => cpu.clone(),
                })
            })
            .tiles(limits.rows, limits.columns)
            .spreads(limits.spreads)
    }
}

/// The CUDA backend on the first device, with its tiles (64 x 64) and bounds: the int32 fold, and the
/// joint spread of the int64 sums at K = 4096.
#[cfg(feature = "cuda")]
fn cuda() -> Result<Registered, Unsupported> {
    let (driver, device) = fp4_backend_cuda::device(0)?;
    let hardware = Hardware {
        device: Some(device.name),
        driver: Some(format!("CUDA {driver}")),
        isa: Some(format!("sm_{}", device.compute_capability)),
    };
    let cuda = fp4_backend_cuda::open(0)?;
    Ok(Registered::new(cuda).on(hardware).tiles(&[64], &[64]).spreads(&[3, 43]))
}
