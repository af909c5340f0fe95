//! The driver that writes models: order, memory, errors, panics, and going on after an end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use quant_linear::Error;
use quant_linear::atomic::{Kind, partial};
use quant_linear::checkpoint::Listing;
use quant_linear::model::stream::{
    self, Contents, Event, Inputs, Job, Layout, Memory, Output, Progress, Sink,
};
use quant_linear::sharded::InProcess;

/// A file of `parts` bytes after its header.
struct Bytes {
    parts: u64,
}

impl Layout for Bytes {
    fn header(&self) -> &[u8] {
        b"head"
    }

    fn file_len(&self) -> u64 {
        4 + self.parts
    }

    fn position(&self, name: &str) -> Option<u64> {
        let part = name.parse::<u64>().ok()?;
        (part < self.parts).then_some(4 + part)
    }
}

/// Counts what jobs do.
#[derive(Default)]
struct Counts {
    held: AtomicU64,
    most: AtomicU64,
    run: AtomicUsize,
}

/// Writes the byte of its name.
struct Part<'c> {
    name: String,
    file: usize,
    memory: u64,
    counts: &'c Counts,
    what: What,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Write,
    Fail,
    Panic,
}

impl Job for Part<'_> {
    type Outcome = f64;

    fn name(&self) -> &str {
        &self.name
    }

    fn file(&self) -> usize {
        self.file
    }

    fn work(&self) -> u64 {
        1
    }

    fn memory(&self) -> u64 {
        self.memory
    }

    fn run(&self, sink: &Sink<'_>, progress: &Progress<'_>) -> Result<f64, Error> {
        self.counts.run.fetch_add(1, Ordering::SeqCst);
        let held = self.counts.held.fetch_add(self.memory, Ordering::SeqCst) + self.memory;
        self.counts.most.fetch_max(held, Ordering::SeqCst);
        // Later ones end earlier.
        let part = self.name.parse::<u64>().unwrap();
        std::thread::sleep(Duration::from_micros(2000 - 100 * part.min(20)));
        self.counts.held.fetch_sub(self.memory, Ordering::SeqCst);
        match self.what {
            What::Write => sink.write(sink.position(&self.name)?, &[part as u8 + 1])?,
            What::Fail => return Err(Error::MissingTensor { name: self.name.clone() }),
            What::Panic => panic!("a job has panicked"),
        }
        progress.bytes(1);
        Ok(part as f64 / 3.0)
    }
}

const PARTS: u64 = 12;
const FILES: [&str; 3] = ["a", "b", "c"];

/// Jobs for two files; the third has none.
fn jobs(counts: &Counts, memory: impl Fn(u64) -> u64) -> Vec<Part<'_>> {
    let parts = (0..2).flat_map(|file| (0..PARTS).map(move |part| (file, part)));
    parts
        .map(|(file, part)| Part {
            name: part.to_string(),
            file,
            memory: memory(part),
            counts,
            what: What::Write,
        })
        .collect()
}

/// A folder at `place`, under a setting if it is to be continued.
fn output<'a>(path: &'a Path, resume: Option<&str>) -> Output<'a> {
    let settings = resume.map(|setting| ("setting".to_string(), setting.to_string()));
    Output {
        path,
        kind: Kind::Folder,
        replace: false,
        resume: resume.is_some(),
        settings: settings.into_iter().collect(),
    }
}

struct Seen {
    working: Vec<String>,
    done: Vec<(usize, String, f64)>,
    bytes: u64,
    kept: u64,
}

/// Writes a folder on `threads` threads.
fn write(
    place: &Path,
    jobs: &[Part<'_>],
    memory: u64,
    threads: usize,
    resume: Option<&str>,
) -> (Result<(), Error>, Seen) {
    let (full, empty) = (Bytes { parts: PARTS }, Bytes { parts: 0 });
    let layouts: [&dyn Layout; 3] = [&full, &full, &empty];
    let root = place.parent().unwrap().join("in");
    let listing = Listing { files: vec![(PathBuf::from("other"), 5)], ..Listing::default() };
    let contents = Contents {
        files: FILES.into_iter().zip(layouts).collect(),
        carried: Some((&root, &listing)),
        generated: vec![("config", b"{}".to_vec()), ("index", b"[]".to_vec())],
    };
    let output = output(place, resume);
    let mut inputs = Inputs::default();
    inputs.add(&root.join("other")).unwrap();
    let mut seen = Seen { working: vec![], done: vec![], bytes: 0, kept: 0 };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    // The observer is no part of what moves to other threads.
    let written = std::thread::scope(|scope| {
        let seen = &mut seen;
        let run = move || {
            let on = &mut |event: Event<'_, Part<'_>>| match event {
                Event::Working(name) => seen.working.push(name.into()),
                Event::Bytes(more) => seen.bytes += more,
                Event::Kept(bytes) => seen.kept += bytes,
                Event::Done(job, outcome) => seen.done.push((job.file, job.name.clone(), outcome)),
            };
            stream::write(&contents, jobs, &output, Memory { bytes: memory }, &inputs, on)
        };
        // On one of the pool's threads if it has one: that must not wait for itself.
        match threads {
            1 => pool.install(run),
            _ => scope.spawn(run).join().unwrap_or_else(|p| std::panic::resume_unwind(p)),
        }
    });
    (written, seen)
}

fn root() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("in")).unwrap();
    fs::write(root.path().join("in/other"), "other").unwrap();
    let out = root.path().join("out");
    (root, out)
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_whole(out: &Path) {
    assert_eq!(names(out), ["a", "b", "c", "config", "index", "other"]);
    let full: Vec<u8> = b"head".iter().copied().chain(1..=PARTS as u8).collect();
    for (name, bytes) in [("a", &full[..]), ("b", &full), ("c", b"head"), ("other", b"other")] {
        assert_eq!(fs::read(out.join(name)).unwrap(), bytes, "{name}");
    }
}

#[test]
fn jobs_in_parallel_are_told_of_in_order_and_the_index_is_written_last() {
    for threads in [1, 2, 4] {
        let (root, out) = root();
        let counts = Counts::default();
        let (written, seen) = write(&out, &jobs(&counts, |_| 1), 100, threads, None);
        written.unwrap();
        assert_whole(&out);
        let expected: Vec<_> = (0..2)
            .flat_map(|file| (0..PARTS).map(move |p| (file, p.to_string(), p as f64 / 3.0)))
            .collect();
        assert_eq!(seen.done, expected, "{threads} threads");
        assert_eq!((seen.bytes, seen.kept), (2 * PARTS + 5, 0));
        assert_eq!(seen.working[seen.working.len() - 3..], ["other", "config", "index"]);
        assert_eq!(names(root.path()), ["in", "out"]);
    }
}

#[test]
fn jobs_wait_until_their_memory_fits_and_one_alone_may_take_more() {
    let most = |limit, memory: fn(u64) -> u64| {
        let (_root, out) = root();
        let counts = Counts::default();
        write(&out, &jobs(&counts, memory), limit, 4, None).0.unwrap();
        assert_whole(&out);
        counts.most.into_inner()
    };
    let (two, alone, all) =
        (most(7, |_| 3), most(7, |p| if p == 5 { 50 } else { 1 }), most(99, |_| 3));
    assert!((3..=6).contains(&two), "{two}");
    assert_eq!(alone, 50, "beside it there is nothing");
    assert!((6..=12).contains(&all), "{all}");
}

#[test]
fn an_error_or_a_panic_of_a_job_ends_the_run_and_leaves_nothing() {
    for threads in [1, 4] {
        let (root, out) = root();
        let counts = Counts::default();
        let mut jobs = jobs(&counts, |_| 1);
        jobs[3].what = What::Fail;
        let (written, seen) = write(&out, &jobs, 100, threads, None);
        let error = written.unwrap_err().to_string();
        assert!(error.contains("tensor `3` is missing"), "{error}");
        assert!(seen.done.len() <= 3);
        assert!(counts.run.load(Ordering::SeqCst) <= 3 + 4, "the rest is not begun");
        assert_eq!(names(root.path()), ["in"]);

        jobs[3].what = What::Panic;
        let run = || write(&out, &jobs, 100, threads, None);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).err().unwrap();
        assert_eq!(panic.downcast_ref(), Some(&"a job has panicked"));
        assert_eq!(names(root.path()), ["in"]);
    }
}

#[test]
fn of_several_errors_that_of_the_first_job_is_told_however_they_are_timed() {
    for _ in 0..5 {
        let (_root, out) = root();
        let counts = Counts::default();
        let mut jobs = jobs(&counts, |_| 1);
        // Of two that run at once the later ends first.
        jobs[..4].iter_mut().for_each(|job| job.what = What::Fail);
        let error = write(&out, &jobs, 100, 4, None).0.unwrap_err().to_string();
        assert!(error.contains("tensor `0` is missing"), "{error}");
    }
}

#[test]
fn what_is_done_is_kept_and_not_done_again() {
    let (root, out) = root();
    let counts = Counts::default();
    let mut all = jobs(&counts, |_| 1);
    let last = all.len() - 1;
    all[last].what = What::Fail;
    // One thread: all others have ended when the last one fails.
    let (written, first) = write(&out, &all, 100, 1, Some("x"));
    written.unwrap_err();
    assert_eq!(names(root.path()), [".out.fp4-partial", "in"]);
    let ran = counts.run.load(Ordering::SeqCst);
    assert!(ran as u64 > PARTS);

    // Nothing but what is missing, and all is told of, in order, with the same outcomes.
    all[last].what = What::Write;
    let (written, second) = write(&out, &all, 100, 2, Some("x"));
    written.unwrap();
    assert_whole(&out);
    assert_eq!(second.kept, 2 * PARTS - 1);
    assert_eq!(counts.run.load(Ordering::SeqCst), ran + 1);
    assert_eq!(second.done[..first.done.len()], first.done);
    assert_eq!(second.done.len() as u64, 2 * PARTS);
    assert_eq!(names(root.path()), ["in", "out"]);
}

#[test]
fn a_run_with_other_settings_or_input_is_refused_and_changes_nothing() {
    let (root, out) = root();
    let counts = Counts::default();
    let mut all = jobs(&counts, |_| 1);
    let last = all.len() - 1;
    all[last].what = What::Fail;
    write(&out, &all, 100, 2, Some("x")).0.unwrap_err();
    let journal = fs::read(partial(&out).join("journal")).unwrap();
    all[last].what = What::Write;
    let refused = |said: &str| {
        let error = write(&out, &all, 100, 2, Some("y")).0.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert!(
            error.contains(".out.fp4-partial was begun with other input or settings"),
            "{error}"
        );
        assert_eq!(fs::read(partial(&out).join("journal")).unwrap(), journal);
        assert!(!out.exists());
    };
    refused("setting was `x` and is `y` now");
    fs::write(root.path().join("in/other"), "OTHER").unwrap();
    let error = write(&out, &all, 100, 2, Some("x")).0.unwrap_err().to_string();
    assert!(error.contains("other was `5 bytes, changed at"), "{error}");
    // Where nothing is done, there is nothing to be refused.
    fs::remove_dir_all(partial(&out)).unwrap();
    all[0].what = What::Fail;
    write(&out, &all, 100, 1, Some("x")).0.unwrap_err();
    assert_eq!(names(root.path()), ["in"]);
}

#[test]
fn a_file_that_is_gone_from_what_is_kept_is_refused() {
    let (_root, out) = root();
    let counts = Counts::default();
    let mut all = jobs(&counts, |_| 1);
    let last = all.len() - 1;
    all[last].what = What::Fail;
    write(&out, &all, 100, 2, Some("x")).0.unwrap_err();
    all[last].what = What::Write;
    fs::remove_file(partial(&out).join("new/a")).unwrap();
    let error = write(&out, &all, 100, 2, Some("x")).0.unwrap_err().to_string();
    assert!(error.contains("new/a") && error.contains("is gone"), "{error}");
    assert!(!out.exists());
}

/// Writes a folder by a rank for each of `ranks`: its setting, and whether it is to be continued.
fn write_over(place: &Path, jobs: &[Part<'_>], ranks: &[(&str, bool)]) -> Vec<Result<(), Error>> {
    let (full, empty) = (Bytes { parts: PARTS }, Bytes { parts: 0 });
    let root = place.parent().unwrap().join("in");
    let on_rank = |comm: InProcess, (setting, resume): (&str, bool)| {
        let layouts: [&dyn Layout; 3] = [&full, &full, &empty];
        let listing = Listing { files: vec![(PathBuf::from("other"), 5)], ..Listing::default() };
        let contents = Contents {
            files: FILES.into_iter().zip(layouts).collect(),
            carried: Some((&root, &listing)),
            generated: vec![("config", b"{}".to_vec()), ("index", b"[]".to_vec())],
        };
        let output = Output { resume, ..output(place, Some(setting)) };
        let mut inputs = Inputs::default();
        inputs.add(&root.join("other")).unwrap();
        let memory = Memory { bytes: 100 };
        stream::write_over(&contents, jobs, &output, memory, &inputs, &comm, &mut |_| ())
    };
    std::thread::scope(|scope| {
        let on_rank = &on_rank;
        let threads: Vec<_> = InProcess::ranks(ranks.len())
            .into_iter()
            .zip(ranks)
            .map(|(comm, &rank)| scope.spawn(move || on_rank(comm, rank)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn ranks_with_other_settings_are_refused_also_where_nothing_is_to_be_continued() {
    let (_root, out) = root();
    let counts = Counts::default();
    let all = jobs(&counts, |_| 1);
    for (ranks, what) in [
        ([("x", false), ("y", false)], "setting was `x` and is `y`"),
        ([("x", true), ("y", true)], "setting was `x` and is `y`"),
        ([("x", false), ("x", true)], "--resume was `false` and is `true`"),
    ] {
        for error in write_over(&out, &all, &ranks) {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("rank 1"), "{error}");
        }
        assert!(!out.exists() && counts.run.load(Ordering::SeqCst) == 0);
    }
    write_over(&out, &all, &[("x", false); 3]).into_iter().for_each(Result::unwrap);
    assert_whole(&out);
}

#[test]
fn ranks_refuse_to_go_on_with_a_file_that_is_gone() {
    let (_root, out) = root();
    let counts = Counts::default();
    let mut all = jobs(&counts, |_| 1);
    let last = all.len() - 1;
    all[last].what = What::Fail;
    write(&out, &all, 100, 2, Some("x")).0.unwrap_err();
    all[last].what = What::Write;
    let kept = fs::read(partial(&out).join("new/a")).unwrap();
    fs::remove_file(partial(&out).join("new/a")).unwrap();
    let mut errors = write_over(&out, &all, &[("x", true); 2]).into_iter().map(Result::unwrap_err);
    let error = errors.next().unwrap().to_string();
    assert!(error.contains("new/a") && error.contains("is gone"), "{error}");
    assert!(errors.next().is_some() && !out.exists());
    // With it they do.
    fs::write(partial(&out).join("new/a"), kept).unwrap();
    write_over(&out, &all, &[("x", true); 2]).into_iter().for_each(Result::unwrap);
    assert_whole(&out);
}

#[test]
fn ranks_that_fail_leave_what_is_done_and_nothing_if_nothing_is() {
    let (_root, out) = root();
    let counts = Counts::default();
    let mut all = jobs(&counts, |_| 1);
    all.iter_mut().for_each(|job| job.what = What::Fail);
    write_over(&out, &all, &[("x", true)]).remove(0).unwrap_err();
    assert!(!partial(&out).exists());
    let last = all.len() - 1;
    all[..last].iter_mut().for_each(|job| job.what = What::Write);
    write_over(&out, &all, &[("x", true)]).remove(0).unwrap_err();
    assert!(partial(&out).join("new/a").exists());
    all[last].what = What::Write;
    let before = counts.run.load(Ordering::SeqCst);
    write_over(&out, &all, &[("x", true)]).remove(0).unwrap();
    assert_whole(&out);
    // What was done is not done again.
    assert!(counts.run.load(Ordering::SeqCst) - before < all.len());
}

#[test]
fn an_input_that_changes_during_the_run_is_an_error() {
    for resume in [None, Some("x")] {
        let (root, out) = root();
        let (full, other) = (Bytes { parts: PARTS }, root.path().join("in/other"));
        let counts = Counts::default();
        let mut jobs = jobs(&counts, |_| 1);
        jobs.truncate(PARTS as usize);
        let contents =
            Contents { files: vec![("a", &full as &dyn Layout)], carried: None, generated: vec![] };
        let mut inputs = Inputs::default();
        inputs.add(&other).unwrap();
        let output = Output { kind: Kind::File, ..output(&out, resume) };
        let memory = Memory::default();
        let error = stream::write(&contents, &jobs, &output, memory, &inputs, &mut |event| {
            if let Event::Done(job, _) = event
                && job.name == "7"
            {
                fs::write(&other, "longer than before").unwrap();
            }
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("it has changed since this run began"), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn what_was_begun_and_has_nothing_done_is_begun_anew() {
    let (root, out) = root();
    let new = partial(&out).join("new");
    fs::create_dir_all(&new).unwrap();
    fs::write(new.join("a file of other settings"), "old").unwrap();
    // Killed within its first line.
    fs::write(partial(&out).join("journal"), r#"[["version","#).unwrap();
    let counts = Counts::default();
    write(&out, &jobs(&counts, |_| 1), 100, 2, Some("x")).0.unwrap();
    assert_whole(&out);
    assert_eq!(names(root.path()), ["in", "out"]);
}
