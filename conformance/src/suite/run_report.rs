//! What a run found, as text, JSON or JUnit.
//!
//! Counts are per *subject*: a quantizer, a matmul, a pair of both, or the core. Every check of a
//! case on a subject is exactly one of passed, bounded, failed, expected failure, unsupported.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

use super::case::{Case, Clause};
use super::outcome::{BOUND, Digest, Mismatch, Outcome};
use super::{Hardware, Registered};
use crate::report::Counts;
use crate::text::Shown;

/// What a case was run on; backends by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Functions of the core.
    Core,
    /// A quantizer alone.
    Quantizer(usize),
    /// A matmul alone.
    Matmul(usize),
    /// A quantizer and a matmul.
    Pair(usize, usize),
}

impl Subject {
    /// The backends that take part.
    pub(super) fn backends(self) -> impl Iterator<Item = usize> {
        let (a, b) = match self {
            Subject::Core => (None, None),
            Subject::Quantizer(q) => (Some(q), None),
            Subject::Matmul(m) => (Some(m), None),
            Subject::Pair(q, m) => (Some(q), (q != m).then_some(m)),
        };
        a.into_iter().chain(b)
    }
}

/// Counts of one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Equal bit for bit.
    pub passed: u64,
    /// Within the bound; not exact.
    pub bounded: u64,
    /// Different, or an error.
    pub failed: u64,
    /// Failed as expected.
    pub expected_failures: u64,
    /// Not supported: not a pass.
    pub unsupported: u64,
    /// Values compared.
    pub values: u64,
}

/// A case that a subject failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// The subject: a backend's name, or two as `quantizer x matmul`.
    pub subject: String,
    /// What differs; `None` for an error.
    pub mismatch: Option<Mismatch>,
    /// One line: what differs, the error, or that an expected failure passed.
    pub message: String,
    /// The command that runs just this case.
    pub replay: String,
}

/// Where and by what the run was made.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Version of the suite.
    pub suite: String,
    /// Operating system and architecture.
    pub platform: String,
    /// The CPU's name, as far as the system tells.
    pub cpu: String,
    /// Features of the CPU that backends ask about.
    pub cpu_features: Vec<&'static str>,
    /// Threads of the default pool.
    pub threads: usize,
    /// Commit of the working directory, if it is a checkout.
    pub commit: Option<String>,
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct RunReport {
    profile: String,
    backends: Vec<String>,
    hardware: Vec<Hardware>,
    is_bounded: bool,
    environment: Environment,
    tallies: BTreeMap<Subject, Tally>,
    clauses: BTreeMap<Clause, u64>,
    failures: Vec<Failure>,
    first_failures: BTreeMap<usize, usize>,
    unsupported: BTreeMap<(String, String), u64>,
    expected: BTreeMap<(String, String), u64>,
    cases: u64,
    worst: f64,
    digest: u64,
}

/// Failures of one subject that the text report prints in full.
const PRINTED: usize = 20;

impl RunReport {
    pub(super) fn new(profile: &str, backends: &[Registered], is_bounded: bool) -> Self {
        RunReport {
            profile: profile.to_owned(),
            backends: backends.iter().map(|backend| backend.name().to_owned()).collect(),
            hardware: backends.iter().map(|backend| backend.hardware().clone()).collect(),
            is_bounded,
            environment: Environment::here(),
            tallies: BTreeMap::new(),
            clauses: BTreeMap::new(),
            failures: Vec::new(),
            first_failures: BTreeMap::new(),
            unsupported: BTreeMap::new(),
            expected: BTreeMap::new(),
            cases: 0,
            worst: 0.0,
            digest: 0,
        }
    }

    /// Adds an outcome; true if it is a failure.
    pub(super) fn add(
        &mut self,
        case: &Case,
        subject: Subject,
        outcome: Outcome,
        expected_failure: Option<&str>,
    ) -> bool {
        let name = self.subject_name(subject);
        let tally = self.tallies.entry(subject).or_default();
        let mut mismatch = None;
        let message = match outcome {
            Outcome::Passed { values: 0, .. } | Outcome::Bounded { values: 0, .. } => return false,
            Outcome::Passed { values, .. } | Outcome::Bounded { values, .. } => {
                tally.values += values;
                if let Outcome::Passed { digest, .. } = outcome {
                    let mut all = Digest(digest);
                    all.add(format!("{} {subject:?}", case.id).as_bytes());
                    self.digest = self.digest.wrapping_add(all.0);
                }
                self.cases += 1;
                for clause in &case.clauses {
                    *self.clauses.entry(clause).or_default() += 1;
                }
                if let Outcome::Bounded { worst, .. } = outcome {
                    self.worst = self.worst.max(worst);
                }
                let Some(reason) = expected_failure else {
                    match outcome {
                        Outcome::Bounded { .. } => tally.bounded += 1,
                        _ => tally.passed += 1,
                    }
                    return false;
                };
                format!("passes, but is expected to fail ({reason}): remove the expectation")
            }
            Outcome::Unsupported { reason } => {
                tally.unsupported += 1;
                *self.unsupported.entry((name, reason)).or_default() += 1;
                return false;
            }
            Outcome::Differs(_) | Outcome::Error { .. } if expected_failure.is_some() => {
                tally.expected_failures += 1;
                self.cases += 1;
                let reason = expected_failure.unwrap_or_default().to_owned();
                *self.expected.entry((name, reason)).or_default() += 1;
                return false;
            }
            Outcome::Differs(found) => {
                tally.values += found.compared;
                let message = found.to_string();
                mismatch = Some(*found);
                message
            }
            Outcome::Error { message } => format!("error: {message}"),
        };
        tally.failed += 1;
        self.cases += 1;
        for backend in subject.backends() {
            self.first_failures.entry(backend).or_insert(self.failures.len());
        }
        let replay = self.replay(&case.id, subject);
        let case = case.id.clone();
        self.failures.push(Failure { case, subject: name, mismatch, message, replay });
        true
    }

    fn subject_name(&self, subject: Subject) -> String {
        match subject {
            Subject::Core => "core".into(),
            Subject::Quantizer(i) | Subject::Matmul(i) => self.backends[i].clone(),
            Subject::Pair(q, m) => format!("{} x {}", self.backends[q], self.backends[m]),
        }
    }

    fn replay(&self, case: &str, subject: Subject) -> String {
        let grade = if self.is_bounded { " --grade bounded" } else { "" };
        let backends: String =
            subject.backends().map(|b| format!(" --backend {}", self.backends[b])).collect();
        format!("fp4-conformance run --profile {}{grade}{backends} --filter '{case}'", self.profile)
    }

    /// True if something was compared and nothing failed.
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.counts().values > 0
    }

    /// Cases checked on subjects, values compared, and values that differ.
    pub fn counts(&self) -> Counts {
        let values = self.tallies.values().map(|tally| tally.values).sum();
        let differ = self.failures.iter().filter_map(|f| f.mismatch.as_ref()).map(|m| m.differ);
        let others = self.failures.iter().filter(|f| f.mismatch.is_none()).count() as u64;
        Counts { cases: self.cases, values, differ: differ.sum::<u64>() + others }
    }

    /// A digest of every value that was compared and is equal: runs of the same cases on two
    /// machines have the same one, whatever the order, if every value is the same.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// What was run on what.
    pub fn tallies(&self) -> &BTreeMap<Subject, Tally> {
        &self.tallies
    }

    /// Cases that failed.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// The first failure that registered backend `index` took part in.
    pub fn first_failure(&self, index: usize) -> Option<&Failure> {
        self.first_failures.get(&index).map(|&at| &self.failures[at])
    }

    /// Subject and reason of what was not supported, and how often.
    pub fn unsupported(&self) -> &BTreeMap<(String, String), u64> {
        &self.unsupported
    }

    /// How often each clause was checked and held.
    pub fn clauses(&self) -> &BTreeMap<Clause, u64> {
        &self.clauses
    }

    /// The report as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let counted = |map: &BTreeMap<(String, String), u64>| -> Vec<serde_json::Value> {
            map.iter()
                .map(|((subject, reason), n)| {
                    serde_json::json!({ "subject": subject, "reason": reason, "cases": n })
                })
                .collect()
        };
        let counts = self.counts();
        let kind = |subject: Subject| match subject {
            Subject::Core => "core",
            Subject::Quantizer(_) => "quantizer",
            Subject::Matmul(_) => "matmul",
            Subject::Pair(..) => "pair",
        };
        let tallies: Vec<_> = (self.tallies.iter())
            .map(|(&subject, tally)| {
                serde_json::json!({
                    "kind": kind(subject), "subject": self.subject_name(subject), "tally": tally
                })
            })
            .collect();
        let backends: Vec<_> = (self.backends.iter().zip(&self.hardware))
            .map(|(name, hardware)| serde_json::json!({ "name": name, "hardware": hardware }))
            .collect();
        serde_json::json!({
            "schema": "fp4-conformance-report/1",
            "profile": self.profile,
            "grade": if self.is_bounded { "bounded" } else { "exact" },
            "environment": self.environment,
            "backends": backends,
            "cases": counts.cases, "values": counts.values, "differ": counts.differ,
            "subjects": tallies,
            "clauses": self.clauses,
            "failures": self.failures,
            "unsupported": counted(&self.unsupported),
            "expected_failures": counted(&self.expected),
        })
    }

    /// The report as JUnit XML: one suite for each subject; passes are counted, failures listed.
    pub fn to_junit(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
        for (&subject, tally) in &self.tallies {
            let name = self.subject_name(subject);
            let tests = tally.passed + tally.bounded + tally.failed + tally.expected_failures;
            xml += &format!(
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n",
                escape(&format!("{subject:?} {name}")),
                tests + tally.unsupported,
                tally.failed,
                tally.unsupported + tally.expected_failures,
            );
            xml += "    <properties>\n";
            for (property, value) in self.properties(subject) {
                let (property, value) = (escape(&property), escape(&value));
                xml += &format!("      <property name=\"{property}\" value=\"{value}\"/>\n");
            }
            xml += "    </properties>\n";
            let pass = format!("{} cases, {} values", tally.passed + tally.bounded, tally.values);
            xml += &format!("    <testcase name=\"{}\"/>\n", escape(&pass));
            let is_pair = matches!(subject, Subject::Pair(..));
            for f in &self.failures {
                if f.subject == name && f.case.starts_with("pair/") == is_pair {
                    xml += &format!(
                        "    <testcase name=\"{}\"><failure message=\"{}\">{}</failure></testcase>\n",
                        escape(&f.case),
                        escape(&f.message),
                        escape(&f.replay)
                    );
                }
            }
            xml += "  </testsuite>\n";
        }
        xml + "</testsuites>\n"
    }

    /// What the record says of a subject: the environment, and what its backends computed on.
    fn properties(&self, subject: Subject) -> Vec<(String, String)> {
        let Environment { suite, platform, cpu, cpu_features, threads, commit } = &self.environment;
        let mut properties: Vec<(String, String)> = [
            ("suite", suite.clone()),
            ("profile", self.profile.clone()),
            ("platform", platform.clone()),
            ("cpu", cpu.clone()),
            ("cpu_features", cpu_features.join(" ")),
            ("threads", threads.to_string()),
            ("commit", commit.clone().unwrap_or_else(|| "unknown".into())),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let backends = subject.backends();
        properties.extend(
            backends
                .map(|b| (format!("backend {}", self.backends[b]), self.hardware[b].to_string())),
        );
        properties
    }

    /// Quantizers down, matmuls across, passed of run in each cell; what ran alone beside them.
    fn matrix(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        let cell = |subject: Subject| {
            self.tallies.get(&subject).map_or_else(|| "-".to_owned(), ToString::to_string)
        };
        let mut header = vec!["quantizer \\ matmul".to_owned(), "quantizer alone".into()];
        header.extend(self.backends.iter().cloned());
        table.set_header(header);
        let mut alone = vec!["matmul alone".to_owned(), String::new()];
        alone.extend((0..self.backends.len()).map(|m| cell(Subject::Matmul(m))));
        table.add_row(alone);
        for (q, name) in self.backends.iter().enumerate() {
            let mut row = vec![name.clone(), cell(Subject::Quantizer(q))];
            row.extend((0..self.backends.len()).map(|m| cell(Subject::Pair(q, m))));
            table.add_row(row);
        }
        table
    }
}

impl Environment {
    fn here() -> Self {
        let git =
            std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
        let commit = git.ok().filter(|output| output.status.success());
        Environment {
            suite: env!("CARGO_PKG_VERSION").to_owned(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: cpu_name(),
            cpu_features: cpu_features(),
            threads: rayon::current_num_threads(),
            commit: commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        }
    }
}

/// The CPU's name where the system has a `/proc/cpuinfo` that tells, else the architecture.
pub(crate) fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let features = [
        ("sse4.1", is_x86_feature_detected!("sse4.1")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512vbmi", is_x86_feature_detected!("avx512vbmi")),
    ];
    features.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    // NEON is part of aarch64; elsewhere nothing is asked.
    if cfg!(target_arch = "aarch64") { vec!["neon"] } else { Vec::new() }
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    // XML has no control characters, escaped or not.
    for c in Shown(text).to_string().chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&apos;",
            c => out.push(c),
        }
    }
    out
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.passed + self.bounded + self.failed + self.expected_failures;
        match self.bounded {
            0 => write!(f, "{}/{run}", self.passed)?,
            bounded => write!(f, "{bounded}/{run} bounded")?,
        }
        match self.unsupported {
            0 => Ok(()),
            unsupported => write!(f, " ({unsupported} unsupported)"),
        }
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Environment { suite, platform, cpu, cpu_features, threads, commit } = &self.environment;
        let commit = commit.as_deref().unwrap_or("unknown");
        writeln!(
            f,
            "suite {suite}, profile {}, {platform}, {cpu}, cpu features [{}], {threads} threads, \
             commit {commit}",
            Shown(&self.profile),
            cpu_features.join(" ")
        )?;
        for (name, hardware) in self.backends.iter().zip(&self.hardware) {
            writeln!(f, "backend {name}: {hardware}")?;
        }
        writeln!(f, "{}", self.matrix())?;
        if let Some(core) = self.tallies.get(&Subject::Core) {
            writeln!(f, "core: {core}")?;
        }
        let mut printed: BTreeMap<&str, usize> = BTreeMap::new();
        for failure in &self.failures {
            let printed = printed.entry(&failure.subject).or_default();
            *printed += 1;
            if *printed <= PRINTED {
                let Failure { case, subject, message, replay, .. } = failure;
                let [message, replay] = [message, replay].map(|text| Shown(text));
                writeln!(f, "FAILED {case} on {subject}\n  {message}\n  replay: {replay}")?;
            }
        }
        for (subject, failures) in printed.into_iter().filter(|(_, n)| *n > PRINTED) {
            writeln!(f, "and {} more failures on {subject}", failures - PRINTED)?;
        }
        for ((subject, reason), n) in &self.unsupported {
            writeln!(f, "unsupported on {subject}: {reason} ({n} cases, not passed)")?;
        }
        for ((subject, reason), n) in &self.expected {
            writeln!(f, "expected failure on {subject}: {} ({n} cases)", Shown(reason))?;
        }
        if self.is_bounded {
            writeln!(
                f,
                "bounded, not exact: largest error {:.4} of its bound\n{BOUND}",
                self.worst
            )?;
        }
        write!(f, "conformance: {}", self.counts())
    }
}
