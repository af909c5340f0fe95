//! The suite: cases, an oracle, and every registered backend alone and in pairs.
//!
//! ```text
//! for each case of the profile:
//!     expected = the oracle's answer
//!     for each registered backend, and each quantizer x matmul pair:
//!         unsupported  ->  counted and named
//!         otherwise    ->  computed into buffers of garbage, compared bit for bit
//! ```
//!
//! # Example: all of a backend's own test
//!
//! ```
//! use fp4_conformance::suite::{Profile, Registered, Suite};
//! use fp4_core::{backend::erased::Backend, reference::Reference};
//!
//! let report = Suite::new(Profile::quick())
//!     .with(Registered::new(Backend::new(Reference)))
//!     .matching("*/3x*/tie-code")?
//!     .run();
//! assert!(report.passed(), "{report}");
//! # Ok::<(), fp4_conformance::suite::PatternError>(())
//! ```

pub mod case;
mod cases;
mod core_checks;
mod environment;
mod grouped;
pub mod outcome;
mod profile;
pub mod run_report;
mod runner;
mod sharded;

use std::fmt;
use std::sync::Arc;

use fp4_core::FloatType;
use fp4_core::backend::erased::Backend;
use globset::{GlobBuilder, GlobMatcher};
use serde::Serialize;

pub(crate) use core_checks::swizzled;
pub use globset::Error as PatternError;
pub(crate) use runner::{input as quantize_input, quantize as quantize_into_garbage};

pub use profile::{
    CoreSet, EnvironmentSet, GroupedSet, MatmulSet, PairSet, Profile, QuantizeSet, ShardedSet,
};

use self::case::{Case, Declared, Kind, Way};
use self::cases::cases;
use self::run_report::RunReport;
use crate::oracle::Oracle;

/// Makes a backend with a number of threads.
type Threaded = Arc<dyn Fn(usize) -> Backend + Send + Sync>;

/// Runs a call on the current thread in a changed floating-point environment, named as in profiles,
/// and changes it back; false, without the call, where there is no such change.
type Changer = Arc<dyn Fn(&str, &mut dyn FnMut()) -> bool + Send + Sync>;

/// What a backend computes on, for the record of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Hardware {
    /// The device: a CPU's or a GPU's name.
    pub device: Option<String>,
    /// The driver and its version.
    pub driver: Option<String>,
    /// The instruction set, or the architecture, of the kernels.
    pub isa: Option<String>,
}

/// A backend to check, and what it declares about itself.
#[derive(Clone)]
pub struct Registered {
    backend: Backend,
    name: Option<String>,
    hardware: Hardware,
    threaded: Option<Threaded>,
    declared: Declared,
    expected_failures: Vec<ExpectedFailure>,
}

/// Cases that a backend is known to fail.
#[derive(Debug, Clone)]
pub struct ExpectedFailure {
    cases: GlobMatcher,
    reason: String,
}

/// Backends, cases and how to run them.
#[derive(Clone)]
pub struct Suite {
    profile: Profile,
    backends: Vec<Registered>,
    filter: Option<GlobMatcher>,
    bounded: bool,
    stop_early: bool,
    changer: Option<Changer>,
    oracle: Oracle,
}

impl Registered {
    /// A backend.
    pub fn new(backend: Backend) -> Self {
        Registered {
            backend,
            name: None,
            hardware: Hardware::default(),
            threaded: None,
            declared: Declared::default(),
            expected_failures: Vec::new(),
        }
    }

    /// Another name than the backend's own: of several of one type, each needs its own.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Registered { name: Some(name.into()), ..self }
    }

    /// What the backend computes on.
    #[must_use]
    pub fn on(self, hardware: Hardware) -> Self {
        Registered { hardware, ..self }
    }

    /// How to make the backend with a number of threads; without it, cases that set the number
    /// count as unsupported.
    #[must_use]
    pub fn threads(self, make: impl Fn(usize) -> Backend + Send + Sync + 'static) -> Self {
        Registered { threaded: Some(Arc::new(make)), ..self }
    }

    /// Tile sizes in M and N: shapes one below, at and one above each are tested.
    #[must_use]
    pub fn tiles(mut self, m: &[usize], n: &[usize]) -> Self {
        self.declared.m = m.to_vec();
        self.declared.n = n.to_vec();
        self
    }

    /// Joint exponent spreads that bound the backend's kernels: each is tested, and one more.
    #[must_use]
    pub fn spreads(mut self, spreads: &[u32]) -> Self {
        self.declared.spreads = spreads.to_vec();
        self
    }

    /// Cases (a glob over ids) that the backend fails, and why. One that passes is a failure.
    ///
    /// # Errors
    /// A pattern that is no glob.
    pub fn expect_failure(mut self, cases: &str, reason: &str) -> Result<Self, PatternError> {
        let (cases, reason) = (glob(cases)?, reason.to_owned());
        self.expected_failures.push(ExpectedFailure { cases, reason });
        Ok(self)
    }

    /// The name in reports: the backend's own, if no other was given.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.backend.name())
    }

    /// What the backend computes on.
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// The backend.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The reason why this case is expected to fail, if it is.
    fn expected_failure(&self, case: &str) -> Option<&str> {
        let matching = self.expected_failures.iter().find(|e| e.cases.is_match(case));
        matching.map(|e| e.reason.as_str())
    }
}

impl Suite {
    /// A suite without backends.
    pub fn new(profile: Profile) -> Self {
        Suite {
            profile,
            backends: Vec::new(),
            filter: None,
            bounded: false,
            stop_early: false,
            changer: None,
            oracle: Oracle::default(),
        }
    }

    /// With one more backend.
    #[must_use]
    pub fn with(mut self, backend: Registered) -> Self {
        self.backends.push(backend);
        self
    }

    /// Only cases whose id matches a glob; `*` matches `/` too.
    ///
    /// # Errors
    /// A pattern that is no glob.
    pub fn matching(self, filter: &str) -> Result<Self, PatternError> {
        Ok(Suite { filter: Some(glob(filter)?), ..self })
    }

    /// Only the f32 outputs of matmuls, graded by their distance from the exact value, against
    /// [`outcome::BOUND`], instead of bit for bit: for hardware that accumulates in floating point.
    #[must_use]
    pub fn bounded(self) -> Self {
        Suite { bounded: true, ..self }
    }

    /// How to run a call in a changed floating-point environment (C9), which takes `unsafe`: as
    /// [`registry::changed_environment`](crate::registry::changed_environment). Without it those
    /// cases count as unsupported.
    #[must_use]
    pub fn environment(
        self,
        run: impl Fn(&str, &mut dyn FnMut()) -> bool + Send + Sync + 'static,
    ) -> Self {
        Suite { changer: Some(Arc::new(run)), ..self }
    }

    /// Checks no backend any further that has failed a case, and no pairs.
    #[must_use]
    pub fn stop_early(self) -> Self {
        Suite { stop_early: true, ..self }
    }

    /// Profile quick, or one in `share` of its drawn cases, on one backend, with cases that do not
    /// depend on its tiles: so runs on two machines can be compared by their
    /// [digests](RunReport::digest).
    pub fn alike(backend: Backend, share: usize) -> Self {
        // Tiles and spreads of the portable and the WASM kernels, wherever it runs.
        let registered = Registered::new(backend).named("backend");
        let registered = registered.tiles(&[4, 24, 64], &[8, 16]).spreads(&[6, 8, 14, 40]);
        Suite::new(Profile::quick().one_in(share)).with(registered)
    }

    /// The cases, in order.
    pub fn cases(&self) -> Vec<Case> {
        let mut declared = Declared::default();
        for backend in &self.backends {
            declared.m.extend(&backend.declared.m);
            declared.n.extend(&backend.declared.n);
            declared.spreads.extend(&backend.declared.spreads);
        }
        // What most kernels have: tiles of 4 x 8; int8 and int16 folds, one f64.
        declared.m.push(4);
        declared.n.push(8);
        declared.spreads.extend([3, 11, 22, 40]);
        for list in [&mut declared.m, &mut declared.n] {
            list.sort_unstable();
            list.dedup();
        }
        declared.spreads.sort_unstable();
        declared.spreads.dedup();
        let mut cases = cases(&self.profile, &declared);
        cases.retain(|case| self.filter.as_ref().is_none_or(|f| f.is_match(&case.id)));
        if self.bounded {
            cases.retain(is_gradable);
        }
        cases
    }

    /// Runs every case.
    pub fn run(&self) -> RunReport {
        self.run_with(|_, _| {})
    }

    /// Runs every case, telling how many are done and how many there are.
    pub fn run_with(&self, progress: impl Fn(usize, usize)) -> RunReport {
        runner::run(self, &self.cases(), progress)
    }
}

/// Has the case an f32 output of one matmul?
fn is_gradable(case: &Case) -> bool {
    match &case.kind {
        Kind::Matmul(m) => {
            let alpha_alone = !m.row_scales && !m.bias;
            m.output == FloatType::F32
                && alpha_alone
                && !matches!(m.way, Way::Split(_) | Way::Into(_))
        }
        _ => false,
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &Option<String>| part.as_deref().unwrap_or("not stated").to_owned();
        let Hardware { device, driver, isa } = self;
        write!(f, "device {}, driver {}, isa {}", part(device), part(driver), part(isa))
    }
}

fn glob(pattern: &str) -> Result<GlobMatcher, PatternError> {
    Ok(GlobBuilder::new(pattern).literal_separator(false).build()?.compile_matcher())
}
