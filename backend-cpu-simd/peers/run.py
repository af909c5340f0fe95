#!/usr/bin/env python3
"""Compares this backend with other libraries, and with the tree before, in one run and one table.

    run.py [--quick] [--before COMMIT] [--json FILE] [--minilm MODEL] [--target DIR]
    run.py --table FILE                     the tables again, of what --json wrote
    --write, with either: into BENCHMARKS.md, in the place of those that are there

It installs what it needs into DIR (target/compare of this folder if not given; it may be deleted): ggml's prebuilt
libraries from npm, MKL and ONNX Runtime from PyPI. It builds the workers beside this file (candle with
`-C target-cpu=native`; with --before ours a second time, in a copy of that commit), and asks them in turn: at each
shape every worker is timed in two rounds, between measurements of the rooflines, and the faster round counts. Markdown
is printed; what is missing is named there, with the reason."""

import argparse
import collections
import datetime
import json
import os
import pathlib
import platform
import select
import shutil
import subprocess
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
TREE = HERE.parent.parent
NPM = "@node-llama-cpp/linux-x64@3.22.1"
PIP = ["mkl==2026.2.0", "intel-openmp==2026.2.0", "tbb==2023.2.0", "onnxruntime==1.32.0"]
FORMATS = ["mxfp4", "nvfp4"]
LAYERS = FORMATS + ["mxint8-mxfp4", "mxint8-nvfp4"]
PRODUCTS = [f"product-{name}" for name in FORMATS]
# Column, worker, work, whose time it is compared with.
PEERS = [
    ("ggml MXFP4", "libraries", "ggml-mxfp4", "mxfp4"),
    ("ggml NVFP4", "libraries", "ggml-nvfp4", "nvfp4"),
    ("ggml Q4_0", "libraries", "ggml-q4_0", "mxfp4"),
    ("ggml Q4_K", "libraries", "ggml-q4_K", "mxfp4"),
    ("candle Q4_K", "candle", "candle-q4_K", "mxfp4"),
    ("ONNX Runtime 4-bit", "libraries", "onnxruntime-4bit", "mxfp4"),
    ("MKL int8", "mkl-vnni", "mkl-int8", "mxfp4"),
    ("MKL int8, AMX", "mkl-amx", "mkl-int8", "mxfp4"),
    ("gemm f32", "libraries", "gemm-f32", "mxfp4"),
]
ROOFS = ["vpdpbusd-512", "vpdpbusd-256", "vpmaddubsw-256"]
SETS = ["avx512-vnni", "avx-vnni", "avx2", "portable"]
ROUNDS = 2


class Failure(Exception):
    """What went wrong, in words for the user."""


def call(command, **options):
    """Runs a command; its output is shown only if it fails."""
    print("+", *command, file=sys.stderr, flush=True)
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        raise Failure(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def install(target):
    """What the workers load, as environment variables, and {what: why it could not be had}."""
    environment, missing = {"MKL_THREADING_LAYER": "INTEL", "KMP_BLOCKTIME": "1"}, {}
    try:
        libraries = target / "package/bins/linux-x64"
        if not libraries.is_dir():
            name = call(["npm", "pack", "--silent", NPM], cwd=target).split()[-1]
            with tarfile.open(target / name) as archive:
                archive.extractall(target, filter="data")
        environment["FP4_GGML"] = str(libraries)
    except (Failure, OSError) as error:
        missing["ggml"] = str(error)
    try:
        venv = target / "venv"
        if not (venv / "installed").exists():
            call([sys.executable, "-m", "venv", venv])
            call([venv / "bin/pip", "install", "--quiet", "--no-deps", *PIP])
            (venv / "installed").touch()
        environment["FP4_MKL"] = environment["LD_LIBRARY_PATH"] = str(venv / "lib")
        found = list(venv.glob("lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*"))
        environment["FP4_ONNXRUNTIME"] = str(found[0]) if found else ""
    except (Failure, OSError) as error:
        missing["MKL and ONNX Runtime"] = str(error)
    return environment, missing


def build(target, before, without):
    """{worker: its program}, and {worker: why it could not be built}."""
    programs, missing = {}, {}

    def cargo(name, folder, to, flags=""):
        command = ["cargo", "build", "--release", "-p", f"fp4-peers-{name}", "--target-dir", to]
        # Flags of the user's would make the builds differ from those that users get.
        environment = {**os.environ, "RUSTFLAGS": flags}
        call(command, cwd=folder, env=environment)
        return to / f"release/fp4-peers-{name}"

    programs["ours"] = cargo("ours", HERE, target / "build")
    others = [("libraries", "build", ""), ("candle", "native", "-C target-cpu=native")]
    for name, to, flags in others:
        if name in without:
            missing[name] = "left out by --without"
            continue
        try:
            programs[name] = cargo(name, HERE, target / to, flags)
        except Failure as error:
            missing[name] = str(error)
    if "libraries" in programs:
        programs["mkl-vnni"] = programs["libraries"]
        if "amx_int8" in pathlib.Path("/proc/cpuinfo").read_text():
            programs["mkl-amx"] = programs["libraries"]
        else:
            missing["MKL int8, AMX"] = "this CPU has no AMX"
    if before:
        commit = call(["git", "-C", TREE, "rev-parse", "--verify", f"{before}^{{commit}}"]).strip()
        copy = target / f"before-{commit}"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        archive = subprocess.run(["git", "-C", TREE, "archive", commit], stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", copy], input=archive.stdout, check=True)
        # The same bench, on the other library.
        for name in ("peers", "benches/common"):
            shutil.rmtree(copy / "backend-cpu-simd" / name, ignore_errors=True)
            source = TREE / "backend-cpu-simd" / name
            ignored = shutil.ignore_patterns("target")
            shutil.copytree(source, copy / "backend-cpu-simd" / name, ignore=ignored)
        programs["before"] = cargo("ours", copy / "backend-cpu-simd/peers", target / "before-build")
    return programs, missing


class Worker:
    """A program that times what it is asked for, started again if it dies."""

    LIMIT = 300

    def __init__(self, program, environment, log):
        self.program, self.environment, self.log = program, dict(environment), log
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [str(self.program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **self.environment},
            bufsize=0,
        )

    def ask(self, line):
        """The answer, or None and how the program ended."""
        if self.process is None:
            self.start()
        answer = b""
        try:
            self.process.stdin.write(line.encode() + b"\n")
            while not answer.endswith(b"\n"):
                ready, _, _ = select.select([self.process.stdout], [], [], self.LIMIT)
                part = os.read(self.process.stdout.fileno(), 4096) if ready else b""
                if not part:
                    break
                answer += part
        except BrokenPipeError:
            pass
        if answer.endswith(b"\n"):
            return answer.decode().strip(), None
        self.stop()
        code = self.process.wait()
        self.process = None
        return None, f"ended by signal {-code}" if code < 0 else f"ended with {code}"

    def stop(self):
        if self.process:
            self.process.kill()


class Run:
    """All measurements of one run."""

    def __init__(self, programs, environment, log, before):
        self.results, self.notes, self.before = [], {}, before
        own = {
            # Byte products on the vector units; without the variable on AMX's, where there are any.
            "mkl-vnni": {"MKL_ENABLE_INSTRUCTIONS": "AVX512_E1"},
        }
        self.workers = {
            name: Worker(program, {**environment, **own.get(name, {})}, log) for name, program in programs.items()
        }

    def measure(self, shape, threads, state, works, budget):
        """Times works (worker, work) at M, N, K, in rounds."""
        best = {}
        for _ in range(ROUNDS):
            for worker, work in works:
                found = self.once(worker, work, shape, threads, state, budget)
                before = best.get((worker, work))
                if found and (before is None or found["seconds"] < before["seconds"]):
                    best[worker, work] = found
        self.results.extend(best.values())

    def once(self, name, work, shape, threads, state, budget):
        worker = self.workers.get(name)
        if worker is None:
            return None
        line = f"{work} {shape[0]} {shape[1]} {shape[2]} {threads} {state} {budget}"
        answer, end = worker.ask(line)
        ty = work.removeprefix("ggml-")
        without = worker.environment.get("FP4_GGML_WITHOUT_AMX", "").split(",")
        if end and ty != work and ty not in without:
            worker.environment["FP4_GGML_WITHOUT_AMX"] = ",".join([*filter(None, without), ty])
            self.note(f"ggml {ty}", f"without AMX: with it, the process {end}")
            answer, end = worker.ask(line)
        if end:
            self.note(work, f"none at {shape}, {threads} threads, {state}: the process {end}")
            return None
        words = answer.split(maxsplit=2)
        if words[0] == "none":
            reason = answer.removeprefix("none ")
            # `ours` has bits to be checked: no row may be missing without a word.
            absent = work in ROOFS or "@" in work
            if name in ("ours", "before") and not absent:
                raise Failure(f"{name}, {line}: {reason}")
            self.note(work, reason)
            return None
        return {
            "worker": name,
            "work": work,
            "m": shape[0],
            "n": shape[1],
            "k": shape[2],
            "threads": threads,
            "state": state,
            "seconds": float(words[0]),
            "amount": float(words[1]),
            "remark": words[2] if len(words) > 2 else "",
        }

    def note(self, what, text):
        notes = self.notes.setdefault(what, [])
        if text not in notes:
            notes.append(text)


def shapes(quick):
    """(M, N, K), in the order of the table."""
    named = [(m, n, k) for n, k in ((512, 64), (512, 128), (384, 384), (1024, 1024)) for m in (1, 8, 128)]
    square = [(m, 4096, 4096) for m in ((1, 8, 128) if quick else (1, 8, 16, 32, 64, 128, 512))]
    if quick:
        return named + square
    grid = [
        (m, n, k)
        for n in (64, 128, 384, 1024, 4096, 11008, 14336)
        for k in (64, 128, 384, 1024, 4096)
        for m in (1, 8, 128)
    ]
    return sorted({*named, *square, *grid}, key=lambda shape: (shape[1], shape[2], shape[0]))


def measure(run, quick, threads):
    """Everything, in the order in which the workers keep the most."""
    budget = 12 if quick else 25
    ours = [name for name in ("before", "ours") if name in run.workers]
    peers = [(worker, work) for _, worker, work, _ in PEERS]
    all_shapes = shapes(quick)
    for number, shape in enumerate(all_shapes, 1):
        for count in threads:
            print(f"{number} of {len(all_shapes)}: {shape}, {count} threads", file=sys.stderr, flush=True)
            own = LAYERS + PRODUCTS if count == 1 or shape[1:] == (4096, 4096) else FORMATS
            works = [("ours", roof) for roof in ROOFS + ["read"]]
            works += [(name, work) for work in own for name in ours] + peers
            run.measure(shape, count, "hot", works, budget)
    for m in (1, 8, 128):
        print(f"instruction sets, M = {m}", file=sys.stderr, flush=True)
        works = [("ours", roof) for roof in ROOFS + ["read"]]
        works += [(name, f"{work}@{isa}") for isa in SETS for work in PRODUCTS for name in ours]
        run.measure((m, 4096, 4096), 1, "hot", works, budget)
    for count in threads:
        print(f"cold weights, data of other kinds, quantization: {count} threads", file=sys.stderr, flush=True)
        works = [("ours", "read")] + [(name, work) for work in FORMATS + PRODUCTS for name in ours]
        works += [("libraries", f"ggml-{name}") for name in FORMATS + ["q4_0", "q4_K"]]
        run.measure((1, 4096, 4096), count, "cold", works, 8 * budget)
        works = [("ours", "vpdpbusd-512")]
        works += [(name, f"{work}/outliers-t4") for work in PRODUCTS for name in ours]
        run.measure((128, 4096, 4096), count, "hot", works, 2 * budget)
        works = [(name, f"quantize-{to}") for to in FORMATS + ["mxint8"] for name in ours]
        run.measure((512, 1, 4096), count, "hot", works, 2 * budget)


def minilm(model):
    """Sentences a second by (format, activations), of one thread, without a transform."""
    command = ["cargo", "run", "--release", "-p", "quant-linear-models", "--example", "minilm", "--"]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    print("+", *command, "--model", model, "--json", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, "--model", model, "--json"], cwd=TREE, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    rows = json.loads(done.stdout)["rows"]
    return {r["format"]: r["sentences_per_second"] for r in rows if r["transform"] == "none" and "int8" not in
            r["activations"] and "rows" not in r["activations"]}


class Results:
    """Finds measurements."""

    def __init__(self, report):
        self.report, self.of = report, {}
        for row in report["results"]:
            key = (row["worker"], row["work"], row["m"], row["n"], row["k"], row["threads"], row["state"])
            before = self.of.get(key)
            if before is None or row["seconds"] < before["seconds"]:
                self.of[key] = row

    def seconds(self, work, shape, threads=1, state="hot", worker="ours"):
        row = self.of.get((worker, work, *shape, threads, state))
        return row and row["seconds"]

    def rate(self, work, shape, threads=1, state="hot", worker="ours"):
        """In 10^9 a second."""
        row = self.of.get((worker, work, *shape, threads, state))
        return row and row["amount"] / row["seconds"] / 1e9

    def roof(self, shape, threads=1):
        """The widest dot product that there is, measured beside this shape."""
        return next(filter(None, (self.rate(roof, shape, threads) for roof in ROOFS)), None)

    def fraction(self, work, shape, threads=1, state="hot", worker="ours"):
        """Of the roofline: reading the weight for few rows, dot products for many."""
        seconds = self.seconds(work, shape, threads, state, worker)
        m, n, k = shape
        if m >= 8:
            rate, roof = seconds and m * n * k / seconds / 1e9, self.roof(shape, threads)
        else:
            scales = n * k / (16 if "nvfp4" in work else 32)
            rate, roof = seconds and (n * k / 2 + scales) / seconds / 1e9, self.rate("read", shape, threads, state)
        return rate and roof and rate / roof

    def over(self, peer, ours, shape, threads=1, state="hot"):
        """How many times as long the peer takes, of (worker, work)."""
        mine, other = self.seconds(ours, shape, threads, state), self.seconds(peer[1], shape, threads, state, peer[0])
        return mine and other and other / mine


def percent(value):
    return "-" if value is None else f"{value:.0%}"


def times(value):
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def microseconds(value):
    return "-" if value is None else f"{value * 1e6:.1f}" if value < 1e-3 else f"{value * 1e6:.0f}"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def named(shape, state="hot"):
    return " x ".join(map(str, shape)) + (", cold" if state == "cold" else "")


def goals(results):
    """Rows (goal, at least, aim, before, reached, verdict)."""
    square = (128, 4096, 4096)
    rows = []

    def goal(what, value, least, aim, show, before=None):
        if value is None:
            verdict = "not measured"
        elif value < least:
            verdict = "missed"
        else:
            verdict = "met, aim included" if aim is not None and value >= aim else "met"
        shown = [show(x) if x is not None else "-" for x in (least, aim, before, value)]
        rows.append([what, *shown, verdict])

    def both(what, work, shape, least, aim, state="hot"):
        before = results.fraction(work, shape, 1, state, "before")
        goal(what, results.fraction(work, shape, 1, state), least, aim, percent, before)

    small = [(512, 64), (512, 128), (384, 384)]
    limits = {"mxfp4": [(0.35, 0.5), (0.5, 0.65), (0.65, 0.8)], "nvfp4": [(0.3, 0.45), (0.42, 0.55), (0.55, 0.65)]}
    for work in FORMATS:
        for (n, k), (least, aim) in zip(small, limits[work]):
            both(f"layer, {work.upper()}, 128 x {n} x {k}, of vpdpbusd", work, (128, n, k), least, aim)
    for work, least, aim in (("mxfp4", 0.85, 0.92), ("nvfp4", 0.68, 0.72)):
        for m in (128, 512):
            both(f"product, {work.upper()}, {m} x 4096 x 4096, of vpdpbusd", f"product-{work}", (m, 4096, 4096), least, aim)
    for work, least, aim in (("mxfp4", 0.78, 0.85), ("nvfp4", 0.6, 0.66)):
        what = f"the same at M = 128, outlier channels on A, t4 on W, {work.upper()}"
        both(what, f"product-{work}/outliers-t4", square, least, aim)
    for state, least, aim, read in (("cold", 0.9, 0.97, "DRAM"), ("hot", 0.8, 0.9, "L3")):
        for work in FORMATS:
            what = f"decode, {work.upper()}, M = 1, {state}, of a read of {read}"
            both(what, f"product-{work}", (1, 4096, 4096), least, aim, state)
    read = results.rate("read", (1, 4096, 4096))
    dram = results.rate("read", (1, 4096, 4096), 1, "cold")
    for work, least in (("mxfp4", 20), ("nvfp4", 18)):
        what = f"quantize f32 to {work.upper()}, GB/s" + (f" (the cache gives {read:.0f})" if read else "")
        key = (f"quantize-{work}", (512, 1, 4096))
        goal(what, results.rate(*key), least, dram, lambda x: f"{x:.1f}", results.rate(*key, worker="before"))

    def scaling(work, shape, worker="ours"):
        one, two = (results.seconds(work, shape, threads, "hot", worker) for threads in (1, 2))
        return one and two and one / two

    found = {key[2:5] for key in results.of if key[0] == "ours" and key[1] == "mxfp4" and key[5] == 2}
    for what, chosen, least in (
        ("4096 x 4096, M >= 64", {s for s in found if s[1:] == (4096, 4096) and s[0] >= 64}, 1.95),
        ("128 x 384 x 384", {s for s in found if s == (128, 384, 384)}, 1.4),
        ("any shape", found, 0.98),
    ):
        values = [(scaling(work, shape), work, shape) for shape in chosen for work in FORMATS]
        value, work, shape = min((v for v in values if v[0]), default=(None, "", ()))
        where = f" (worst: {work.upper()}, {named(shape)})" if value else ""
        before = value and scaling(work, shape, "before")
        goal(f"two threads over one, layer, {what}{where}", value, least, None, times, before)

    wide = (results.rate(ROOFS[0], square) or 0) > 1.5 * (results.rate(ROOFS[1], square) or 1e9)
    against = {
        "mxfp4": [(1.5, 2.2), (2, 3), (2.2, 3), (5, 7) if wide else (3.1, 3.3)],
        "nvfp4": [(5, 8), (7, 10), (9, 12), (12, 20) if wide else (10, 11)],
    }

    def ggml(what, work, shape, least, aim, state="hot"):
        theirs = results.seconds(f"ggml-{work}", shape, 1, state, "libraries")
        before, ours = (results.seconds(work, shape, 1, state, name) for name in ("before", "ours"))
        ratio = [theirs and x and theirs / x for x in (ours, before)]
        goal(what, ratio[0], least, aim, times, ratio[1])

    for work in FORMATS:
        for (n, k), (least, aim) in zip(small + [(4096, 4096)], against[work]):
            ggml(f"layer over ggml's {work.upper()}, 128 x {n} x {k}", work, (128, n, k), least, aim)
    for work in FORMATS:
        ggml(f"the same, 1 x 4096 x 4096, cold, {work.upper()}", work, (1, 4096, 4096), 1.6, None, "cold")
    speeds = results.report.get("minilm") or {}
    for work in FORMATS:
        value = speeds.get(work) and speeds[work] / speeds["f32"]
        goal(f"MiniLM, 40 sentences, {work.upper()} over f32", value, 1.6, 2.5, times)
    return rows


def render(report):
    """The markdown."""
    results = Results(report)
    measured = {key[2:] for key in results.of if key[0] == "ours" and key[1] == "mxfp4"}
    order = sorted(measured, key=lambda s: (s[3], s[1], s[2], s[0], s[4] == "cold"))
    has_before = any(key[0] == "before" for key in results.of)
    ages = [True, False] if has_before else [False]
    text = [f"Measured on {report['date']}: {report['machine']}.", f"Command: `{report['command']}`, {report['took']} s."]
    if report["before"]:
        text.append(f"*Before* is commit {report['before']}, built and timed in the same run.")
    for name, rows in (("missing", report["missing"].items()), ("note", report["notes"].items())):
        for what, why in rows:
            why = why if isinstance(why, str) else "; ".join(why)
            text.append(f"{what}: {'not had: ' if name == 'missing' else ''}{' '.join(why.split())[:400]}.")
    variants = collections.defaultdict(set)
    for key, row in results.of.items():
        if key[0] == "libraries" and key[1].startswith("ggml-"):
            variants[key[1].removeprefix("ggml-")].add(row["remark"])
    if variants:
        ways = ", ".join(f"{ty}: {' or '.join(sorted(ways))}" for ty, ways in variants.items())
        text.append(f"ggml's form of the weight, the fastest that it has at each shape: {ways} ({report['ggml']}).")
    out = ["  \n".join(text)]
    roofs = []
    for work, state in [*((roof, "hot") for roof in ROOFS), ("read", "hot"), ("read", "cold")]:
        for threads in sorted({s[3] for s in measured}):
            rates = sorted(
                row["amount"] / row["seconds"] / 1e9
                for key, row in results.of.items()
                if key[1] == work and key[0] == "ours" and key[5:] == (threads, state)
                and (work != "read" or key[3:5] == (4096, 4096))
            )
            if rates:
                unit = "GB/s" if work == "read" else "GMAC/s"
                what = f"{work}, {state} (4096 x 4096)" if work == "read" else work
                spread = [f"{rates[at]:.0f} {unit}" for at in (0, len(rates) // 2, -1)]
                roofs.append([what, threads, *spread])
    out += ["### Rooflines", table(["", "threads", "lowest", "middle", "highest"], roofs)]
    header = ["work", "at least", "aim", "before", "reached", ""]
    out += ["### Goals", "One thread unless said.", table(header, goals(results))]
    for threads in sorted({s[3] for s in measured}):
        counted = "One thread" if threads == 1 else f"{threads} threads"
        header = ["M x N x K", "MXFP4, us", "of roofline", "NVFP4, us", "of roofline"]
        header += ["over before: MXFP4", "NVFP4"] if has_before else []
        header += [column for column, *_ in PEERS]
        rows = []
        for m, n, k, count, state in order:
            shape = (m, n, k)
            if count != threads:
                continue
            row = [named(shape, state)]
            for work in FORMATS:
                row += [microseconds(results.seconds(work, shape, threads, state))]
                row += [percent(results.fraction(work, shape, threads, state))]
            if has_before:
                row += [times(results.over(("before", work), work, shape, threads, state)) for work in FORMATS]
            row += [times(results.over((w, work), ours, shape, threads, state)) for _, w, work, ours in PEERS]
            rows.append(row)
        out += [f"### Layers: {counted.lower()}, f32 in and out", table(header, rows)]
    header = ["M x N x K", "threads"]
    others = PRODUCTS + ["mxint8-mxfp4", "mxint8-nvfp4"]
    for name in ("product MXFP4", "product NVFP4", "MXINT8 by MXFP4", "MXINT8 by NVFP4"):
        header += [f"{name}, us", "of roofline", *(["over before"] if has_before else [])]
    rows = []
    for m, n, k, threads, state in order:
        shape, row = (m, n, k), []
        if results.seconds(PRODUCTS[0], shape, threads, state) is None:
            continue
        for work in others:
            row += [microseconds(results.seconds(work, shape, threads, state))]
            row += [percent(results.fraction(work, shape, threads, state))]
            row += [times(results.over(("before", work), work, shape, threads, state))] if has_before else []
        rows.append([named(shape, state), threads, *row])
    out += ["### Products of packed operands, and layers with MXINT8 activations", table(header, rows)]
    out += ["### Instruction sets", "Products of packed operands, one thread, M x 4096 x 4096, hot; of the roofline of "
            "the set's own instruction from M = 8."]
    header = ["kernels", "format", *(f"M = {m}{' before' if old else ''}" for m in (1, 8, 128) for old in ages)]
    roofs, rows = dict(zip(SETS, ROOFS)), []
    for isa in SETS:
        for work in FORMATS:
            row = []
            for shape in [(m, 4096, 4096) for m in (1, 8, 128)]:
                for old in ages:
                    key = (f"product-{work}@{isa}", shape, 1, "hot", "before" if old else "ours")
                    rate, roof = results.rate(*key), roofs.get(isa) and results.rate(roofs[isa], shape)
                    share = results.fraction(*key) if shape[0] < 8 else rate and roof and rate / roof
                    row.append("-" if rate is None else f"{rate:.0f} GMAC/s" + (f", {percent(share)}" if share else ""))
            if set(row) != {"-"}:
                rows.append([isa, work.upper(), *row])
    out.append(table(header, rows))
    return "\n\n".join(out) + "\n"


def show(report, write):
    """Prints the tables, and puts them between their marks in BENCHMARKS.md if that is asked for."""
    text, page = render(report), HERE.parent / "BENCHMARKS.md"
    if write:
        before, begin, rest = page.read_text().partition("<!-- run.py: begin -->\n")
        _, end, after = rest.partition("<!-- run.py: end -->")
        if not begin or not end:
            raise Failure(f"{page}: the marks are missing between which the tables belong")
        page.write_text(f"{before}{begin}{text}{end}{after}")
    print(text)


def machine():
    """The CPU and how busy it is, in words."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        family = f"family {fields['cpu family']}, model {fields['model']}"
        cpu = f"{fields['model name']} ({family}), {os.cpu_count()} cores"
    except (OSError, KeyError):
        cpu = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    load = os.getloadavg()[0]
    rust = call(["rustc", "--version"]).split()[1]
    return f"{cpu}, {platform.system()}, Rust {rust}, release profile; {load:.1f} other processes running at its start"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the shapes of the goals: two minutes")
    parser.add_argument("--before", metavar="COMMIT", help="time this commit's library too")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write all measurements there")
    parser.add_argument("--minilm", metavar="MODEL", help="the folder of all-MiniLM-L6-v2: time its encoder too")
    parser.add_argument("--target", metavar="DIR", type=pathlib.Path, default=HERE / "target/compare")
    parser.add_argument("--without", metavar="WORKER", action="append", default=[], help="candle or libraries")
    parser.add_argument("--threads", metavar="LIST", default="1,2", help="such as 1 or 1,2")
    parser.add_argument("--write", action="store_true", help="put the tables into BENCHMARKS.md")
    parser.add_argument("--table", metavar="FILE", type=pathlib.Path, help="print the tables of this --json file")
    options = parser.parse_args()
    if options.table:
        show(json.loads(options.table.read_text()), options.write)
        return
    threads = [int(word) for word in options.threads.split(",")]
    target = options.target.resolve()
    target.mkdir(parents=True, exist_ok=True)
    environment, missing = install(target)
    programs, unbuilt = build(target, options.before, options.without)
    missing.update(unbuilt)
    described, start = machine(), datetime.datetime.now(datetime.timezone.utc)
    with open(target / "workers.log", "w") as log:
        run = Run(programs, environment, log, options.before)
        try:
            measure(run, options.quick, threads)
        finally:
            for worker in run.workers.values():
                worker.stop()
    took = round((datetime.datetime.now(datetime.timezone.utc) - start).total_seconds())
    variant = [line for line in (target / "workers.log").read_text(errors="replace").splitlines() if "libggml-cpu-" in line]
    shown = [word if "/" not in word else pathlib.Path(word).name for word in sys.argv[1:]]
    report = {
        "date": f"{start:%Y-%m-%d %H:%M} UTC",
        "machine": described,
        "command": " ".join(["backend-cpu-simd/peers/run.py", *shown]),
        "took": took,
        "before": options.before,
        "missing": missing,
        "notes": run.notes,
        "ggml": variant[0].rsplit("/", 1)[-1] if variant else "no library of ggml's",
        "minilm": minilm(options.minilm) if options.minilm else None,
        "results": run.results,
    }
    if options.json:
        options.json.write_text(json.dumps(report) + "\n")
    show(report, options.write)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"run.py: {failure}")
