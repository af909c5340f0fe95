//! What every worker of the comparison does. `run.py` starts the workers, and asks one at a time
//! over its standard input:
//!
//! ```text
//! WHAT M N K THREADS STATE MILLISECONDS        mxfp4 128 4096 4096 1 hot 60
//! ```
//!
//! The worker prepares that product (m, k) by (n, k), compares its answer with the dense one, times
//! it and answers with a line: seconds of a call, what a call does (multiply-adds, or bytes read)
//! and a remark, or `none` and the reason. What it prepared it keeps until the shape, the number of
//! threads or the state (`hot`: the same weights again; `cold`: weights that left the cache)
//! changes, so that rounds in which the workers take turns cost nothing more.

#[path = "../../../benches/common/clock.rs"]
mod clock;
#[path = "../../../benches/common/data.rs"]
mod data;

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

pub use clock::{Clock, fastest, last_level_cache};
pub use data::{Data, Rng, values};

/// Distinct rows of a weight; those after them repeat them. Formats that take seconds to write a
/// large matrix are written once for these, and no time depends on it.
pub const DISTINCT: usize = 256;

/// What `run.py` asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The work: the worker's names.
    pub what: String,
    /// Rows of the activations.
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// What is summed over.
    pub k: usize,
    /// Threads to use.
    pub threads: usize,
    /// True if the weights have left the cache.
    pub cold: bool,
    budget: Duration,
}

impl FromStr for Task {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[what, m, n, k, threads, state, budget] = &words[..] else {
            return Err(format!("{line:?} has {} words, not 7", words.len()));
        };
        let number = |word: &str| match word.parse::<usize>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{line:?}: {word:?} is not a count")),
        };
        Ok(Task {
            what: what.into(),
            m: number(m)?,
            n: number(n)?,
            k: number(k)?,
            threads: number(threads)?,
            cold: match state {
                "cold" => true,
                "hot" => false,
                _ => return Err(format!("{line:?}: {state:?} is neither hot nor cold")),
            },
            budget: Duration::from_millis(number(budget)? as u64),
        })
    }
}

impl Task {
    /// The activations, (m, k).
    pub fn activations(&self, data: Data) -> Vec<f32> {
        values(&mut Rng(8), data, self.m, self.k)
    }

    /// The weight's distinct rows, (up to [`DISTINCT`], k).
    pub fn distinct(&self, data: Data) -> Vec<f32> {
        values(&mut Rng(9), data, self.n.min(DISTINCT), self.k)
    }

    /// The weight: `n` rows of the same length, of which the first are given.
    pub fn repeated<T: Copy>(&self, rows: &[T]) -> Vec<T> {
        let row = rows.len() / self.n.min(DISTINCT);
        rows.iter().copied().cycle().take(self.n * row).collect()
    }

    /// The dense product's last row, of what no library has quantized.
    pub fn expected(&self, data: [Data; 2]) -> Vec<f32> {
        let (a, w) = (self.activations(data[0]), self.distinct(data[1]));
        let a = &a[(self.m - 1) * self.k..];
        let row = |w: &[f32]| a.iter().zip(w).map(|(&a, &w)| a * w).sum::<f32>();
        let rows: Vec<f32> = w.chunks_exact(self.k).map(row).collect();
        self.repeated(&rows)
    }

    /// Compares a last row with the dense one: each operand of 4 bits leaves a few percent.
    ///
    /// # Errors
    /// How much more noise there is.
    pub fn check(&self, y: &[f32], expected: &[f32], operands: u8) -> Result<(), String> {
        assert_eq!(y.len(), expected.len(), "a row of the output");
        let square = |x: f32| f64::from(x).powi(2);
        let noise: f64 = y.iter().zip(expected).map(|(&y, &e)| square(y - e)).sum();
        let power: f64 = expected.iter().map(|&e| square(e)).sum();
        if noise < 0.04 * f64::from(operands) * power {
            return Ok(());
        }
        Err(format!("a wrong answer: noise {noise:.3e} beside a signal of {power:.3e}"))
    }

    /// Multiply-adds of the product.
    pub fn macs(&self) -> f64 {
        self.m as f64 * self.n as f64 * self.k as f64
    }

    /// A weight's copies that do not fit into the last-level cache together, if the weight is to be
    /// cold; else one.
    pub fn copies(&self, bytes: usize, cache: usize) -> usize {
        if self.cold { (2 * cache).div_ceil(bytes).max(2) } else { 1 }
    }
}

/// A product that is prepared.
pub trait Work {
    /// Does it once, with the next copy of the weight.
    fn run(&mut self);

    /// Does it once and compares the answer.
    ///
    /// # Errors
    /// How the answer is wrong.
    fn check(&mut self) -> Result<(), String>;

    /// What [`run`](Self::run) does: multiply-adds, or bytes read where that is the work.
    fn amount(&self) -> f64;

    /// In what way it is done, if there are several.
    fn remark(&self) -> String {
        String::new()
    }

    /// Seconds of the fastest sample.
    fn time(&mut self, clock: Clock, budget: Duration) -> f64 {
        fastest(clock, budget, || self.run())
    }
}

/// Answers `run.py` until it closes the standard input. `make` prepares a product or tells why
/// there is none.
pub fn serve<'w>(
    mut make: impl FnMut(&Task) -> Result<Box<dyn Work + 'w>, String>,
) -> std::io::Result<()> {
    let mut prepared: HashMap<String, Result<Box<dyn Work + 'w>, String>> = HashMap::new();
    let mut of = None;
    for line in std::io::stdin().lock().lines() {
        let answer = line?.parse::<Task>().and_then(|task| {
            let Task { m, n, k, threads, cold, .. } = task;
            if of != Some((m, n, k, threads, cold)) {
                prepared.clear();
                of = Some((m, n, k, threads, cold));
            }
            let work = prepared.entry(task.what.clone()).or_insert_with(|| {
                let mut work = make(&task)?;
                work.check()?;
                Ok(work)
            });
            let work = work.as_mut().map_err(|why| why.clone())?;
            let start = Instant::now();
            let before = Clock::Process.now(start);
            let seconds = work.time(Clock::of(threads), task.budget);
            let (all, wall) = (Clock::Process.now(start) - before, start.elapsed().as_secs_f64());
            // The thread's clock does not see threads which a library has on its own.
            if threads == 1 && all > 1.2 * wall + 2e-3 {
                return Err(format!("it used {:.1} threads, not 1", all / wall));
            }
            Ok(format!("{seconds:e} {} {}", work.amount(), work.remark()))
        });
        let answer = answer.unwrap_or_else(|why| format!("none {}", why.replace('\n', " ")));
        println!("{}", answer.trim_end());
        std::io::stdout().flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(line: &str) -> Task {
        line.parse().expect("a task")
    }

    #[test]
    fn a_line_names_the_work_shape_threads_state_and_budget() {
        let task = task("ggml-q4_K 8 512 64 2 cold 30");
        let Task { what, m, n, k, threads, cold, budget } = task;
        assert_eq!((&what[..], m, n, k, threads, cold), ("ggml-q4_K", 8, 512, 64, 2, true));
        assert_eq!(budget, Duration::from_millis(30));
    }

    #[test]
    fn a_bad_line_is_refused_with_what_was_given() {
        for (line, said) in [
            ("mxfp4 8 512 64 2 cold", "6 words, not 7"),
            ("mxfp4 8 0 64 2 cold 30", "\"0\" is not a count"),
            ("mxfp4 8 -1 64 2 cold 30", "\"-1\" is not a count"),
            ("mxfp4 8 512 64 2 warm 30", "\"warm\" is neither hot nor cold"),
        ] {
            let error = line.parse::<Task>().expect_err(line);
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[test]
    fn a_weight_repeats_its_distinct_rows() {
        let task = task("w 1 600 32 1 hot 1");
        let rows = task.distinct(Data::Gaussian);
        let w = task.repeated(&rows);
        assert_eq!((rows.len(), w.len()), (256 * 32, 600 * 32));
        assert_eq!(w[512 * 32..], rows[..88 * 32]);
    }

    #[test]
    fn the_dense_row_passes_and_other_rows_do_not() {
        let task = task("w 3 40 64 1 hot 1");
        let mut y = task.expected([Data::Gaussian; 2]);
        let expected = y.clone();
        let (a, w) = (task.activations(Data::Gaussian), task.distinct(Data::Gaussian));
        let one: f32 = a[2 * 64..].iter().zip(&w[5 * 64..6 * 64]).map(|(a, w)| a * w).sum();
        assert_eq!(y[5], one);
        assert_eq!(task.check(&y, &expected, 1), Ok(()));
        y.rotate_left(1);
        assert!(task.check(&y, &expected, 1).expect_err("rotated").starts_with("a wrong answer"));
        y.fill(f32::NAN);
        assert!(task.check(&y, &expected, 1).is_err());
    }

    #[test]
    fn cold_weights_fill_the_cache_twice() {
        assert_eq!(task("w 1 1 32 1 hot 1").copies(100, 1000), 1);
        assert_eq!(task("w 1 1 32 1 cold 1").copies(100, 1000), 20);
        assert_eq!(task("w 1 1 32 1 cold 1").copies(1 << 20, 1000), 2);
    }
}
