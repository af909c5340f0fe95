#!/usr/bin/env python3
"""Do files that `fp4 convert` writes load in their layouts' own libraries, values equal?

    check.py [--fp4 PATH] [--target DIR] [--only LAYOUT,..] [--results FILE]

For each checkpoint in quant-linear/tests/vectors and each layout that can hold it:

    fp4 convert SOURCE WRITTEN --to LAYOUT
    fp4 dequantize WRITTEN  ->  ours            load.py LAYOUT WRITTEN  ->  theirs
    every value of theirs == the value of ours, bit for bit (any NaN equals any NaN)

load.py runs in an environment of its own, made under DIR from requirements/NAME.txt, and calls only
code of the library. A library that cannot be installed or run is named with its own message.

Exit code: 0 if all that was loaded is equal, 1 if a value differs, a file is refused that should
load, or nothing was compared, 2 for bad usage.
"""

import argparse
import array
import datetime
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
VECTORS = ROOT / "quant-linear" / "tests" / "vectors"

# Layout: the requirements that its library is installed from.
LAYOUTS = {
    "compressed-tensors": "torch",
    "auto-round": "torch",
    "modelopt": "torch",
    "comfyui": "torch",
    "quark": "torch",
    "gpt-oss": "torch",
    "deepseek": "torch",
    "torchao": "torch",
    "fp-quant": "torch",
    "mlx": "mlx",
    "gguf": "gguf",
}

# How `fp4 convert` says that a layout has no place for what a source holds.
NO_PLACE = ("cannot hold", "has one format for all layers", "which GGUF has no type for")

# What a library refuses although the file is right: (layout, source): why. One that loads is a
# failure too, so that its line goes.
EMBEDDING = "takes linear layers only, and MLX quantized the embedding too"
KNOWN = {
    ("quark", "h_mlx_mxfp4.safetensors"): f"Quark's import {EMBEDDING}",
    ("auto-round", "h_mlx_mxfp4.safetensors"): f"AutoRound's loader {EMBEDDING}",
}


def run(*command, **more):
    """Runs a command to its end; never raises for what it answers."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


# ---------------------------------------------------------------- environments


def environment(name, target):
    """The Python of an environment with these requirements, or why there is none."""
    wanted = HERE / "requirements" / f"{name}.txt"
    folder = target / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = folder / "requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return python, None
    print(f"installing {wanted.relative_to(ROOT)}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    # What is pinned is complete, and some packages ask for more than is used here.
    pip = run(
        python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps", "-r", wanted
    )
    if pip.returncode:
        return None, last_line(pip.stderr)
    shutil.copy(wanted, stamp)
    return python, None


# ---------------------------------------------------------------- sources


def sources(work):
    """The checkpoints, each as a folder with `config.json` or a .gguf file."""
    for path in sorted([*VECTORS.glob("[fh]_*.safetensors"), *VECTORS.glob("h_*.gguf")]):
        if path.stem.endswith("_ref") or path.stem.startswith("h_moe3d"):
            continue
        if path.suffix == ".gguf":
            yield path.name, path
            continue
        folder = work / "sources" / path.stem
        folder.mkdir(parents=True)
        for other in VECTORS.glob(f"{path.stem}.*.json"):
            shutil.copy(other, folder / other.name[len(path.stem) + 1 :])
        index = folder / "model.safetensors.index.json"
        shard = "model.safetensors"
        if index.exists():
            (shard,) = set(json.loads(index.read_text())["weight_map"].values())
        shutil.copy(path, folder / shard)
        yield path.name, folder
    yield f"{GPT_OSS}, experts of its _ref", gpt_oss_model(work / "sources" / "gpt-oss")


GPT_OSS = "h_moe3d_bf16_gptoss"


def gpt_oss_model(folder):
    """A whole gpt-oss model in MXFP4: the dense one, with the codes and scales of its _ref."""
    folder.mkdir()
    shutil.copy(VECTORS / f"{GPT_OSS}.config.json", folder / "config.json")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    dense = entries(VECTORS / f"{GPT_OSS}.safetensors")
    for name, (_, shape, data) in entries(VECTORS / f"{GPT_OSS}_ref.safetensors").items():
        module, _, part = name.rpartition(".mx.")
        if part == "codes":
            experts, rows, half = shape
            dense[f"{module}_blocks"] = ("U8", [experts, rows, half // 16, 16], data)
        elif part == "scales":
            dense[f"{module}_scales"] = ("U8", shape, data)
            del dense[module]
    header, data = {}, b""
    for name, (dtype, shape, each) in dense.items():
        offsets = [len(data), len(data) + len(each)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += each
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


# ---------------------------------------------------------------- values


def entries(path):
    """The tensors of a safetensors file: {name: (dtype, shape, bytes)}."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    data = data[8 + length :]
    return {
        name: (tensor["dtype"], tensor["shape"], data[slice(*tensor["data_offsets"])])
        for name, tensor in header.items()
    }


def tensors(path):
    """Bits of the f32 tensors of a safetensors file: {name: (shape, array of u32)}."""
    found = {}
    for name, (dtype, shape, data) in entries(path).items():
        if dtype == "F32":
            bits = array.array("I", data)
            if sys.byteorder == "big":
                bits.byteswap()
            found[name] = (shape, bits)
    return found


def is_nan(bits):
    return bits & 0x7FFF_FFFF > 0x7F80_0000


def place(bits):
    """Where an f32 stands among all: neighbours are 1 apart, -0 is 1 below +0."""
    return -(bits & 0x7FFF_FFFF) - 1 if bits >> 31 else bits


def of_name(ours, name):
    """The tensor of this name. `fp4 dequantize` makes NAME.0, NAME.1, .. one tensor again."""
    expert = re.fullmatch(r"(.+)\.(\d+)\.weight", name)
    if name in ours or not expert:
        return ours.get(name)
    stacked = ours.get(expert[1]) or ours.get(f"{expert[1]}.weight")
    if stacked is None:
        return None
    (_, *shape), bits = stacked
    each = shape[0] * shape[1]
    return shape, bits[int(expert[2]) * each :][:each]


def compare(ours, theirs):
    """How many values were compared and differ, the most ulps; or why they cannot be compared."""
    count = differ = most = 0
    first = None
    for name, (shape, right) in theirs.items():
        mine = of_name(ours, name)
        if mine is None:
            return None, f"fp4 dequantize has no f32 tensor `{name}`"
        expected, left = mine
        if shape != expected:
            return None, f"`{name}` is {expected} to fp4 and {shape} to the library"
        count += len(left)
        if left == right:
            continue
        for at, (a, b) in enumerate(zip(left, right)):
            if a == b or is_nan(a) and is_nan(b):
                continue
            differ += 1
            most = max(most, abs(place(a) - place(b)))
            first = first or f"{name}[{at}]: {a:08x} to fp4, {b:08x} to the library"
    return (count, differ, most, first), None


# ---------------------------------------------------------------- the run


def written(name, source, layout, fp4, work, number):
    """A job for a source in a layout, or None where the layout cannot hold it."""
    folder = work / layout / f"{number:02}"
    folder.parent.mkdir(exist_ok=True)
    output = folder.with_suffix(".gguf") if layout == "gguf" else folder
    made = run(fp4, "convert", source, output, "--to", layout, "--allow-changed", "--json")
    if made.returncode:
        said = made.stderr.strip()
        if any(text in said for text in NO_PLACE):
            return None
        return {"source": name, "broken": f"fp4 convert: {last_line(said)}"}
    ours = folder.with_suffix(".ours.safetensors")
    dense = run(fp4, "dequantize", output, "-o", ours, "--dtype", "f32")
    if dense.returncode:
        return {"source": name, "broken": f"fp4 dequantize: {last_line(dense.stderr)}"}
    values = json.loads(made.stdout)["totals"]["values"]
    theirs = folder.with_suffix(".theirs.safetensors")
    return {"source": name, "in": str(output), "out": str(theirs), "ours": ours, "values": values}


def verdict(layout, job, said):
    """The row of a job: (text, values compared, failed)."""
    if "broken" in job:
        return job["broken"], 0, True
    known = KNOWN.get((layout, job["source"]))
    if known and "error" in said:
        return f"not loaded: {known}: {said['error']}", 0, False
    if known:
        return f"LOADS NOW: strike it from KNOWN: {known}", 0, True
    if "error" in said:
        cannot = said["error"].startswith("Cannot: ")
        text = said["error"].removeprefix("Cannot: ")
        return ("not loaded: " if cannot else "REFUSED: ") + text, 0, not cannot
    result, why = compare(tensors(job["ours"]), tensors(Path(job["out"])))
    if why:
        return f"DIFFERS: {why}", 0, True
    count, differ, most, first = result
    if count != job["values"]:
        return f"DIFFERS: the library has {count} values, fp4 wrote {job['values']}", count, True
    if differ:
        return f"DIFFERS: {differ} of {count} values, by up to {most} ulp; {first}", count, True
    return f"equal: {count} values, 0 differ, max 0 ulp; {said['how']}", count, False


def layout_rows(layout, python, jobs, work):
    """Loads all jobs of a layout in one process of its library."""
    runnable = [job for job in jobs if "in" in job]
    listed = work / f"{layout}.json"
    listed.write_text(json.dumps([{"in": job["in"], "out": job["out"]} for job in runnable]))
    # Quark compiles an extension at its first use; ninja is among what is installed.
    paths = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "TORCH_EXTENSIONS_DIR": str(work.parent / "extensions"),
    }
    done = run(python, HERE / "load.py", layout, listed, env={**os.environ, **paths})
    (work / f"{layout}.log").write_text(done.stderr)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    if len(said) < len(runnable):
        said += [{"error": f"load.py ended: {last_line(done.stderr)}"}] * (
            len(runnable) - len(said)
        )
    answers = iter(said)
    rows = [
        (job["source"], *verdict(layout, job, next(answers) if "in" in job else {})) for job in jobs
    ]
    versions = next(
        (each["versions"] for each in said if "versions" in each), "its library did not start"
    )
    return versions, rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    built = ROOT / "target" / "release" / "fp4"
    parser.add_argument(
        "--fp4", type=Path, default=built, help="the command [default: target/release/fp4]"
    )
    parser.add_argument(
        "--target", type=Path, default=ROOT / "target" / "peers", help="where environments go"
    )
    parser.add_argument("--only", default=",".join(LAYOUTS), help="these layouts only")
    parser.add_argument("--results", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    chosen = args.only.split(",")
    for layout in chosen:
        if layout not in LAYOUTS:
            parser.error(f"--only has `{layout}`; expected some of {', '.join(LAYOUTS)}")
    if not args.fp4.is_file():
        parser.error(f"there is no {args.fp4}; build it: cargo build --release --bin fp4")

    # What libraries compile runs in folders of its own.
    args.target = args.target.resolve()
    work = args.target / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found = list(sources(work))
    lines = [f"{datetime.date.today()}, Python {platform.python_version()}, {platform.machine()}"]
    rows_of = total = failed = equal = unavailable = 0
    for layout in chosen:
        python, why = environment(LAYOUTS[layout], args.target)
        jobs = [
            written(name, path, layout, args.fp4, work, i) for i, (name, path) in enumerate(found)
        ]
        jobs = [job for job in jobs if job]
        if why:
            lines += [f"{layout}: COULD NOT BE HAD: {why}"]
            unavailable += 1
            continue
        versions, rows = layout_rows(layout, python, jobs, work)
        lines.append(f"{layout} ({versions})")
        for source, text, values, bad in rows:
            text = re.sub(re.escape(str(args.target)), "TARGET", " ".join(text.split()))
            lines.append(f"  {source:45} {text[:300]}")
            rows_of += 1
            total += values
            failed += bad
            equal += text.startswith("equal")
    lines.append(
        f"{rows_of} written files, {total} values compared: {equal} equal, {failed} failed, "
        f"{rows_of - equal - failed} that the library cannot load by design, "
        f"{unavailable} libraries not had"
    )
    print("\n".join(lines))
    if args.results:
        args.results.write_text("\n".join(lines) + "\n")
    return 0 if equal and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
