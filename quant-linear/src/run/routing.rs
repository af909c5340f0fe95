//! Which backend does what: an explicit list, a choice for each role, and the reasons.
//!
//! The list is ordered fastest first. A role left to itself takes the first backend that can; a
//! role with an explicit choice takes that one, and where it cannot, warns once and goes by the
//! list. [`QuantLinear::explain`](crate::QuantLinear::explain) shows every rejection.

use std::fmt;
use std::sync::{Arc, Weak};

use fp4_core::backend::erased::{Backend, DynMatmul, DynResident};
use fp4_core::{Format, MatmulQuery, QuantizeQuery, Quantizer, Unsupported};

use crate::layer::ActivationEncoding;
use crate::run::runtime::Runtime;

/// Backends to choose from, fastest first, and those that this machine lacks, with reasons.
///
/// There is no global registry: a list is a value, and [`Backends::available`] builds the usual one
/// from the crate's features. [`Backends::with`] adds a backend of your own in front.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    list: Vec<Backend>,
    unavailable: Vec<(String, Unsupported)>,
    /// Shared by the clones: what was made for the list can go when the last of them goes.
    alive: Arc<()>,
}

impl Backends {
    /// No backends at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every backend compiled in that runs on this machine, fastest first; the scalar reference is
    /// always last.
    pub fn available() -> Self {
        let mut backends = Self::none();
        #[cfg(feature = "cuda")]
        match fp4_backend_cuda::open(0) {
            Ok(cuda) => backends.list.push(cuda),
            Err(reason) => backends.unavailable.push((fp4_backend_cuda::NAME.into(), reason)),
        }
        #[cfg(feature = "cpu-simd")]
        backends.list.push(Backend::resident(fp4_backend_cpu_simd::CpuSimd::new()));
        backends.list.push(Backend::new(fp4_core::reference::Reference));
        backends
    }

    /// The scalar reference alone.
    pub fn reference() -> Self {
        Self::none().with(Backend::new(fp4_core::reference::Reference))
    }

    /// The list with another backend in front: preferred over all before it.
    #[must_use]
    pub fn with(mut self, backend: Backend) -> Self {
        self.list.insert(0, backend);
        self
    }

    /// The backends, in order of preference.
    pub fn list(&self) -> &[Backend] {
        &self.list
    }

    /// Backends compiled in that this machine cannot run, and why.
    pub fn unavailable(&self) -> &[(String, Unsupported)] {
        &self.unavailable
    }

    /// Upgrades for as long as this list or a clone of it lives.
    pub(crate) fn alive(&self) -> Weak<()> {
        Arc::downgrade(&self.alive)
    }

    /// The first backend of this name that has its own memory.
    pub(crate) fn device(&self, name: &str) -> Option<&Arc<dyn DynResident>> {
        self.list.iter().filter(|b| b.name() == name).find_map(Backend::as_resident)
    }
}

/// The backend of a role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// The first of the list that can.
    #[default]
    Auto,
    /// The one of this name; if it cannot, a warning and then as `Auto`.
    Named(String),
}

impl From<&str> for Choice {
    fn from(name: &str) -> Self {
        Choice::Named(name.to_string())
    }
}

/// What routing thought of one backend for one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does the work.
    Chosen,
    /// It could, and another was preferred.
    Able,
    /// It does not have the role.
    NotOffered,
    /// It cannot, or is not available here.
    Rejected(Unsupported),
    /// Nothing of that name is known.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Chosen => f.write_str("chosen"),
            Verdict::Able => f.write_str("able, not needed"),
            Verdict::NotOffered => f.write_str("does not have this role"),
            Verdict::Rejected(reason) => write!(f, "rejected: {reason}"),
            Verdict::Unknown => {
                f.write_str("no backend of this name; check its spelling and the crate features")
            }
        }
    }
}

/// The outcome of routing one role: every backend looked at, and the one chosen.
#[derive(Debug, Clone)]
pub struct Route {
    /// The explicit choice that could not be honoured, and why.
    pub refused: Option<(String, Verdict)>,
    /// Every backend by name with its verdict.
    pub verdicts: Vec<(String, Verdict)>,
}

impl Route {
    /// Name of the chosen backend.
    pub fn chosen(&self) -> Option<&str> {
        self.verdicts.iter().find(|(_, v)| *v == Verdict::Chosen).map(|(n, _)| n.as_str())
    }

    /// The rejections in one line.
    pub(crate) fn reasons(&self) -> String {
        let lines: Vec<_> = self.verdicts.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        if lines.is_empty() { "the list of backends is empty".into() } else { lines.join("; ") }
    }
}

/// Both roles' routes for one kind of call.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// How activations are quantized.
    pub activations: ActivationEncoding,
    /// The weight's format.
    pub weight: Format,
    /// Who quantizes the activations.
    pub quantize: Route,
    /// Who multiplies.
    pub matmul: Route,
    /// True if both land on one backend that keeps operands in its own memory or form.
    pub fused: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoding = match self.activations {
            ActivationEncoding::Own => self.weight.to_string(),
            ActivationEncoding::MxInt8 => self.activations.to_string(),
            ActivationEncoding::OwnRowScales => format!("{} with row scales", self.weight),
        };
        writeln!(f, "activations in {encoding}, weight in {}", self.weight)?;
        for (role, route) in [("quantize", &self.quantize), ("matmul", &self.matmul)] {
            writeln!(f, "{role}:")?;
            for (name, verdict) in &route.verdicts {
                writeln!(f, "  {name}: {verdict}")?;
            }
        }
        let how = if self.fused { "stay inside the backend" } else { "pass through host memory" };
        write!(f, "quantized activations {how}")
    }
}

/// A backend picked for a role.
pub(crate) struct Picked<'a, R: ?Sized> {
    pub(crate) backend: &'a Backend,
    pub(crate) role: &'a Arc<R>,
}

/// The backend that quantizes.
pub(crate) type Quantizing<'a> = Picked<'a, dyn Quantizer + Send + Sync>;
/// The backend that multiplies.
pub(crate) type Multiplier<'a> = Picked<'a, dyn DynMatmul>;

/// What a layer has chosen: its runtime, a backend for each role, its device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routing {
    /// `None` is the shared one, which is then opened at the first use.
    pub(crate) runtime: Option<Runtime>,
    pub(crate) quantizer: Choice,
    pub(crate) matmul: Choice,
    /// Name of the backend whose memory the layer lives in; it is preferred while a role is `Auto`.
    pub(crate) device: Option<String>,
}

impl Routing {
    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap_or_else(|| Runtime::shared())
    }

    pub(crate) fn set_runtime(&mut self, runtime: Runtime) {
        self.device = self.device.take().filter(|name| runtime.backends().device(name).is_some());
        self.runtime = Some(runtime);
    }

    pub(crate) fn quantize_route(&self, backends: &Backends, query: &QuantizeQuery) -> Route {
        self.route(backends, &self.quantizer, |b| quantize_verdict(b, query))
    }

    pub(crate) fn matmul_route(&self, backends: &Backends, query: &MatmulQuery) -> Route {
        self.route(backends, &self.matmul, |b| matmul_verdict(b, query))
    }

    pub(crate) fn explain(
        &self,
        backends: &Backends,
        (activations, weight): (ActivationEncoding, Format),
        q: &QuantizeQuery,
        m: &MatmulQuery,
    ) -> Explanation {
        let quantizer = self.pick_quantizer(backends, q).0;
        let matmul = self.pick_matmul(backends, m).0;
        let fused = quantizer.zip(matmul).is_some_and(|(q, m)| {
            q.backend.is_same(m.backend) && q.backend.as_resident().is_some()
        });
        let (quantize, matmul) = (self.quantize_route(backends, q), self.matmul_route(backends, m));
        Explanation { activations, weight, quantize, matmul, fused }
    }

    /// The backend for activations like `query`, and whether an explicit choice was honoured.
    /// Allocates nothing: this runs on every forward.
    pub(crate) fn pick_quantizer<'a>(
        &self,
        backends: &'a Backends,
        query: &QuantizeQuery,
    ) -> (Option<Quantizing<'a>>, bool) {
        let (at, honoured) = self.pick(backends, &self.quantizer, |b| quantize_verdict(b, query));
        let picked = at.and_then(|at| {
            let backend = &backends.list[at];
            Some(Picked { backend, role: backend.quantizer()? })
        });
        (picked, honoured)
    }

    /// As [`pick_quantizer`](Self::pick_quantizer), for the matmul.
    pub(crate) fn pick_matmul<'a>(
        &self,
        backends: &'a Backends,
        query: &MatmulQuery,
    ) -> (Option<Multiplier<'a>>, bool) {
        let (at, honoured) = self.pick(backends, &self.matmul, |b| matmul_verdict(b, query));
        let picked = at.and_then(|at| {
            let backend = &backends.list[at];
            Some(Picked { backend, role: backend.matmul()? })
        });
        (picked, honoured)
    }

    /// Position in the list of the backend for a role, and whether an explicit choice was honoured.
    fn pick(
        &self,
        Backends { list, .. }: &Backends,
        choice: &Choice,
        ask: impl Fn(&Backend) -> Verdict,
    ) -> (Option<usize>, bool) {
        let wanted = match choice {
            Choice::Named(name) => Some(name),
            Choice::Auto => self.device.as_ref(),
        };
        let able = |&i: &usize| ask(&list[i]) == Verdict::Able;
        // Two backends may share a name, each with a role of its own.
        let named = |name: &String| (0..list.len()).filter(|&i| list[i].name() == name).find(able);
        let preferred = wanted.and_then(named);
        let honoured = preferred.is_some() || *choice == Choice::Auto;
        (preferred.or_else(|| (0..list.len()).find(able)), honoured)
    }

    fn route(
        &self,
        backends: &Backends,
        choice: &Choice,
        ask: impl Fn(&Backend) -> Verdict,
    ) -> Route {
        let (chosen, honoured) = self.pick(backends, choice, &ask);
        let Backends { list, unavailable, .. } = backends;
        let listed = list.iter().enumerate().map(|(i, b)| {
            let verdict = if chosen == Some(i) { Verdict::Chosen } else { ask(b) };
            (b.name().to_string(), verdict)
        });
        let absent = unavailable.iter().map(|(n, reason)| (n.clone(), Verdict::Rejected(*reason)));
        let mut verdicts: Vec<_> = listed.chain(absent).collect();
        let mut refused = None;
        if let (Choice::Named(name), false) = (choice, honoured) {
            let known = || verdicts.iter().filter(|(n, _)| n == name).map(|(_, v)| *v);
            // Of two entries of that name, the one with the role has the reason.
            let reason = known().find(|v| *v != Verdict::NotOffered).or_else(|| known().next());
            let why = reason.unwrap_or(Verdict::Unknown);
            if why == Verdict::Unknown {
                verdicts.push((name.clone(), why));
            }
            refused = Some((name.clone(), why));
        }
        Route { refused, verdicts }
    }
}

fn quantize_verdict(backend: &Backend, query: &QuantizeQuery) -> Verdict {
    backend.quantizer().map_or(Verdict::NotOffered, |q| verdict(q.supports_quantize(query)))
}

fn matmul_verdict(backend: &Backend, query: &MatmulQuery) -> Verdict {
    backend.matmul().map_or(Verdict::NotOffered, |m| verdict(m.supports_matmul(query)))
}

fn verdict(answer: Result<(), Unsupported>) -> Verdict {
    answer.map_or_else(Verdict::Rejected, |()| Verdict::Able)
}
