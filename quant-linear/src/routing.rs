//! Which backend does what: an explicit list, a choice for each role, and the reasons.
//!
//! The list is ordered fastest first. A role left to itself takes the first backend that can; a
//! role with an explicit choice takes that one, and where it cannot, warns once and goes by the
//! list. [`QuantLinear::explain`](crate::QuantLinear::explain) shows every rejection.

use std::fmt;
use std::sync::OnceLock;

use fp4_core::backend::erased::Backend;
use fp4_core::{MatmulQuery, QuantizeQuery, Unsupported};

/// Backends to choose from, fastest first, and those that this machine lacks, with reasons.
///
/// There is no global registry: a list is a value, and [`Backends::available`] builds the usual one
/// from the crate's features. [`Backends::with`] adds a backend of your own in front.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    list: Vec<Backend>,
    unavailable: Vec<(String, Unsupported)>,
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

    /// Position of the backend of this name that has its own memory.
    pub(crate) fn device(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|b| is_device(b, name))
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
    /// Who quantizes the activations.
    pub quantize: Route,
    /// Who multiplies.
    pub matmul: Route,
    /// True if both land on one backend that keeps operands in its own memory or form.
    pub fused: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// A list of backends and a choice for each role.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routing {
    /// What this machine has is found out at the first use, unless a list is given before.
    backends: OnceLock<Backends>,
    pub(crate) quantizer: Choice,
    pub(crate) matmul: Choice,
    /// Name of the backend whose memory the layer lives in; it is preferred while a role is `Auto`.
    pub(crate) device: Option<String>,
}

impl Routing {
    pub(crate) fn backends(&self) -> &Backends {
        self.backends.get_or_init(Backends::available)
    }

    pub(crate) fn set_backends(&mut self, backends: Backends) {
        let has = |name: &String| backends.list.iter().any(|b| is_device(b, name));
        self.device = self.device.take().filter(has);
        self.backends = OnceLock::from(backends);
    }

    pub(crate) fn quantize_route(&self, query: &QuantizeQuery) -> Route {
        self.route(&self.quantizer, |b| quantize_verdict(b, query))
    }

    pub(crate) fn matmul_route(&self, query: &MatmulQuery) -> Route {
        self.route(&self.matmul, |b| matmul_verdict(b, query))
    }

    pub(crate) fn explain(&self, q: &QuantizeQuery, m: &MatmulQuery) -> Explanation {
        let fused = self.fused(self.pick_quantizer(q).0, self.pick_matmul(m).0).is_some();
        Explanation { quantize: self.quantize_route(q), matmul: self.matmul_route(m), fused }
    }

    /// The backend that both roles landed on, if it keeps operands itself.
    pub(crate) fn fused(&self, quantizer: Option<usize>, matmul: Option<usize>) -> Option<usize> {
        let both = quantizer.filter(|_| quantizer == matmul)?;
        self.backends().list[both].as_resident().map(|_| both)
    }

    /// Position of the backend for activations like `query`, and whether an explicit choice was
    /// honoured. Allocates nothing: this runs on every forward.
    pub(crate) fn pick_quantizer(&self, query: &QuantizeQuery) -> (Option<usize>, bool) {
        self.pick(&self.quantizer, |b| quantize_verdict(b, query))
    }

    /// As [`pick_quantizer`](Self::pick_quantizer), for the matmul.
    pub(crate) fn pick_matmul(&self, query: &MatmulQuery) -> (Option<usize>, bool) {
        self.pick(&self.matmul, |b| matmul_verdict(b, query))
    }

    fn pick(&self, choice: &Choice, ask: impl Fn(&Backend) -> Verdict) -> (Option<usize>, bool) {
        let list = &self.backends().list;
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

    fn route(&self, choice: &Choice, ask: impl Fn(&Backend) -> Verdict) -> Route {
        let Backends { list, unavailable } = self.backends();
        let (chosen, honoured) = self.pick(choice, &ask);
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

fn is_device(backend: &Backend, name: &str) -> bool {
    backend.name() == name && backend.as_resident().is_some()
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
