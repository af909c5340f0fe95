//! A large model through `fp4 quantize` under a cap on memory: time, rate against the disk's own
//! copy, peak memory; the same after kills; and whether all outputs have the same bytes.
//!
//! ```sh
//! cargo build --release -p fp4-cli
//! cargo run --release -p fp4-cli --example size -- target/release/fp4 FOLDER 8   # GB of tensors
//! ```
//!
//! In FOLDER, which must not be there yet, it makes a sharded model of BF16 tensors: no zeros, no
//! holes, no two tensors alike. Then, each with a cold cache where the system lets us drop it:
//!
//! ```text
//! copy                   cp of the model and a flush: what the disk can do
//! quantize, 1 thread     NVFP4 (two passes) and MXFP4 (one), --memory 1GB
//! quantize, 2 threads
//! killed and resumed     killed three times on its way, each time with --resume
//! ```
//!
//! Peak memory is the largest resident set of the process (`VmHWM`). Linux only. Exits with 1 if
//! bytes differ or a peak is above the cap. Where the disk has less than 20 GB free, the model is
//! smaller, and the first line says so.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

/// `--memory`, in bytes.
const CAP: u64 = 1_000_000_000;

/// Rows and columns of a block's weights: a decoder of 2048 features.
const SHAPES: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 2048, 2048),
    ("self_attn.k_proj", 512, 2048),
    ("self_attn.v_proj", 512, 2048),
    ("self_attn.o_proj", 2048, 2048),
    ("mlp.gate_proj", 5632, 2048),
    ("mlp.up_proj", 5632, 2048),
    ("mlp.down_proj", 2048, 5632),
];

/// BF16 values of a bell-like distribution, two bytes each.
struct Values(u64);

impl Values {
    fn next(&mut self) -> u64 {
        // Xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for pair in bytes.chunks_exact_mut(4) {
            let bits = self.next();
            let part = |shift: u32| f32::from((bits >> shift) as u16 as i16) / 32768.0;
            let values = [part(0) + part(16), part(32) + part(48)];
            for (out, value) in pair.chunks_exact_mut(2).zip(values) {
                out.copy_from_slice(&(value * 0.02).to_bits().to_le_bytes()[2..]);
            }
        }
    }
}

/// Writes a shard of these tensors.
fn shard(path: &Path, tensors: &[(String, Vec<usize>)], values: &mut Values) -> Result<u64> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut buffer = vec![0; 1 << 20];
    let mut left = end;
    while left > 0 {
        let part = left.min(buffer.len());
        values.fill(&mut buffer[..part]);
        file.write_all(&buffer[..part])?;
        left -= part;
    }
    file.into_inner().context("writing a shard")?.sync_all()?;
    Ok(end as u64)
}

/// Makes a model of about `bytes`, in eight shards; its bytes.
fn model(folder: &Path, bytes: u64) -> Result<u64> {
    fs::create_dir(folder)?;
    let block: u64 = SHAPES.iter().map(|(_, rows, k)| 2 * (rows * k) as u64).sum();
    let blocks = (bytes / block).max(8) as usize;
    let (mut values, mut total, mut map) = (Values(11), 0, serde_json::Map::new());
    for number in 0..8 {
        let name = format!("model-{:05}-of-00008.safetensors", number + 1);
        let mut tensors = vec![];
        if number == 0 {
            tensors.push(("model.embed_tokens.weight".to_string(), vec![4096, 2048]));
        }
        for block in (0..blocks).filter(|block| block * 8 / blocks == number) {
            let prefix = format!("model.layers.{block}");
            tensors.extend(
                SHAPES
                    .iter()
                    .map(|(name, rows, k)| (format!("{prefix}.{name}.weight"), vec![*rows, *k])),
            );
            tensors.push((format!("{prefix}.input_layernorm.weight"), vec![2048]));
        }
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        total += shard(&folder.join(name), &tensors, &mut values)?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
    fs::write(folder.join("config.json"), r#"{ "model_type": "llama" }"#)?;
    Ok(total)
}

/// Drops the cache of files, if the system lets us.
fn drop_cache() -> bool {
    let _ = Command::new("sync").status();
    fs::write("/proc/sys/vm/drop_caches", "1").is_ok()
}

/// A process that is watched.
struct Watched {
    child: Child,
    begun: Instant,
    /// The largest resident set seen, in bytes.
    peak: u64,
}

impl Watched {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdout(Stdio::null()).spawn().context("starting fp4")?;
        Ok(Watched { child, begun: Instant::now(), peak: 0 })
    }

    /// Waits for its end, or kills it after some time; true if it came to its end.
    fn end(&mut self, kill_after: Option<Duration>) -> Result<bool> {
        let status = format!("/proc/{}/status", self.child.id());
        loop {
            // The kernel keeps the peak, so it does not matter when it is read, but a dead process
            // has none.
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            self.peak = self.peak.max(1024 * kib.unwrap_or(0));
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "fp4 has ended with {status}");
                return Ok(true);
            }
            if kill_after.is_some_and(|after| self.begun.elapsed() > after) {
                self.child.kill()?;
                self.child.wait()?;
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What is compared: seconds and peak of each run.
struct Bench {
    fp4: PathBuf,
    folder: PathBuf,
    /// Bytes of the model's tensors.
    bytes: u64,
    /// Seconds that a copy takes.
    copy: f64,
    passed: bool,
}

impl Bench {
    fn row(&self, what: &str, seconds: f64, peak: Option<u64>) {
        let rate = self.bytes as f64 / 1e6 / seconds;
        let peak = peak.map_or("-".into(), |peak| format!("{:.0}", peak as f64 / 1e6));
        let times = seconds / self.copy;
        println!("| {what:<36} | {seconds:>8.1} | {rate:>8.0} | {times:>13.2} | {peak:>11} |");
    }

    fn command(&self, out: &str, format: &str, threads: u16) -> Command {
        let mut command = Command::new(&self.fp4);
        command.arg("quantize").arg(self.folder.join("in")).arg("-o").arg(self.folder.join(out));
        command.args(["--format", format, "--memory", &CAP.to_string()]);
        command.args(["--threads", &threads.to_string()]);
        command
    }

    fn judge(&mut self, peak: u64) {
        self.passed &= peak <= CAP;
    }

    /// A run from its beginning to its end; its seconds.
    fn whole(&mut self, out: &str, format: &str, threads: u16) -> Result<f64> {
        drop_cache();
        let mut run = Watched::start(&mut self.command(out, format, threads))?;
        run.end(None)?;
        let seconds = run.begun.elapsed().as_secs_f64();
        let s = if threads == 1 { "" } else { "s" };
        self.row(&format!("quantize, {format}, {threads} thread{s}"), seconds, Some(run.peak));
        self.judge(run.peak);
        Ok(seconds)
    }

    /// A run that is killed after a quarter of `seconds`, three times, and then comes to its end.
    fn killed(&mut self, out: &str, format: &str, threads: u16, seconds: f64) -> Result<()> {
        drop_cache();
        let (begun, mut peak, mut kills) = (Instant::now(), 0, 0);
        loop {
            let mut command = self.command(out, format, threads);
            let mut run = Watched::start(command.arg("--resume"))?;
            let after = (kills < 3).then(|| Duration::from_secs_f64(seconds / 4.0));
            let ended = run.end(after)?;
            peak = peak.max(run.peak);
            if ended {
                break;
            }
            kills += 1;
        }
        let what = format!("{format}, {threads} threads, killed {kills} times");
        self.row(&what, begun.elapsed().as_secs_f64(), Some(peak));
        self.judge(peak);
        Ok(())
    }

    fn same(&mut self, a: &str, b: &str) -> Result<()> {
        let (a, b) = (self.folder.join(a), self.folder.join(b));
        let same = same_folders(&a, &b)?;
        let says = if same { "the same bytes" } else { "OTHER BYTES" };
        println!("{} and {}: {says}", a.display(), b.display());
        self.passed &= same;
        Ok(())
    }
}

fn same_folders(a: &Path, b: &Path) -> Result<bool> {
    let names = |folder: &Path| -> Result<Vec<_>> {
        let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        let mut names: Vec<_> = entries.iter().map(fs::DirEntry::file_name).collect();
        names.sort();
        Ok(names)
    };
    if names(a)? != names(b)? {
        return Ok(false);
    }
    for name in names(a)? {
        let mut files = [File::open(a.join(&name))?, File::open(b.join(&name))?];
        let mut parts = [vec![0; 1 << 20], vec![0; 1 << 20]];
        let len = files[0].metadata()?.len();
        if len != files[1].metadata()?.len() {
            return Ok(false);
        }
        let mut left = len as usize;
        while left > 0 {
            let part = left.min(1 << 20);
            for (file, buffer) in files.iter_mut().zip(&mut parts) {
                file.read_exact(&mut buffer[..part])?;
            }
            if parts[0][..part] != parts[1][..part] {
                return Ok(false);
            }
            left -= part;
        }
    }
    Ok(true)
}

/// Bytes that are free where `folder` is.
fn free(folder: &Path) -> Result<u64> {
    let output = Command::new("df").args(["-Pk"]).arg(folder).output().context("running df")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let blocks = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3));
    let blocks = blocks.and_then(|blocks| blocks.parse::<u64>().ok());
    Ok(1024 * blocks.context("df gives no number of free blocks")?)
}

fn copy(from: &Path, to: &Path) -> Result<f64> {
    drop_cache();
    let begun = Instant::now();
    let copied = Command::new("cp").args(["-r", "--reflink=never"]).args([from, to]).status()?;
    ensure!(copied.success() && Command::new("sync").arg("-f").arg(to).status()?.success());
    let seconds = begun.elapsed().as_secs_f64();
    fs::remove_dir_all(to)?;
    Ok(seconds)
}

fn run(fp4: PathBuf, folder: PathBuf, gb: f64) -> Result<bool> {
    fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
    let (free, mut wanted) = (free(&folder)?, gb * 1e9);
    if free < 20_000_000_000 && wanted > free as f64 / 3.0 {
        println!("scaled down: the disk has {:.1} GB free, under 20", free as f64 / 1e9);
        wanted = free as f64 / 3.0;
    }
    let input = folder.join("in");
    let bytes = model(&input, wanted as u64)?;
    let cold = if drop_cache() { "cold" } else { "warm (it cannot be dropped)" };
    println!(
        "{:.2} GB of BF16 in 8 shards; a cap of {:.0} MB; {} CPUs; cache {cold}",
        bytes as f64 / 1e9,
        CAP as f64 / 1e6,
        std::thread::available_parallelism()?
    );
    println!();
    println!("| what | seconds | MB/s in | times the copy | peak MB |");
    println!("|---|---:|---:|---:|---:|");
    let seconds = copy(&input, &folder.join("copy"))?;
    let mut bench = Bench { fp4, folder, bytes, copy: seconds, passed: true };
    bench.row("copy (cp, flushed)", seconds, None);
    let one = bench.whole("nvfp4-1", "nvfp4", 1)?;
    let two = bench.whole("nvfp4-2", "nvfp4", 2)?;
    bench.killed("nvfp4-killed", "nvfp4", 2, two)?;
    bench.whole("mxfp4-1", "mxfp4", 1)?;
    bench.whole("mxfp4-2", "mxfp4", 2)?;
    bench.row("copy again", copy(&input, &bench.folder.join("copy"))?, None);
    println!();
    println!("2 threads over 1, nvfp4: {:.2} times as fast", one / two);
    for (a, b) in [("nvfp4-1", "nvfp4-2"), ("nvfp4-1", "nvfp4-killed"), ("mxfp4-1", "mxfp4-2")] {
        bench.same(a, b)?;
    }
    fs::remove_dir_all(&bench.folder)?;
    Ok(bench.passed)
}

fn main() -> Result<ExitCode> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [fp4, folder, gb] = &args[..] else {
        bail!("expected three arguments: the fp4 command, a folder to make, and GB of tensors");
    };
    let gb = gb.parse::<f64>().with_context(|| format!("`{gb}` is no number of GB"))?;
    let passed = run(fp4.into(), folder.into(), gb)?;
    println!("{}", if passed { "passed" } else { "FAILED: other bytes, or memory above the cap" });
    Ok(ExitCode::from(u8::from(!passed)))
}
