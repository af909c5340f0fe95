#!/usr/bin/env python3
"""Puts the logs of run.sh into one table, OUT/BENCHMARKS.md, and prints it. Rows are the goals."""

import datetime
import json
import pathlib
import sys


NOTES = [
    "Ours and the peers' calls are captured in CUDA graphs, of 8 calls each, and replayed: no launch from the host is "
    "in a time. Ours is timed by the host around batches of replays that end with one synchronization, the peers "
    "by two events of the device.",
    "With 128 rows of A and fewer, ours and the peers' calls take the weight in turn from 8 copies, so that it comes from "
    "device memory and not from the L2 cache. Larger products use one weight. With 17 to 128 rows every call of ours "
    "quantizes its bf16 activations.",
    'Prefill rows begin with a prepared weight (on Hopper folded to int8, once) and quantized activations. '
    'Those "from packed" fold the packed weight and quantize bf16 activations in every call. "Dequantize + cuBLAS" '
    "expands both packed operands to bf16 in every call: of our rows, \"from packed\" is the like of it. dot_scaled "
    "reads both operands packed and expands them in the kernel.",
    "dot_scaled is the best of the tiles and pipeline depths (3 and 4 stages) in TILES of peers.py, which are few; for "
    "16 rows of A tiles are 16 x 128, 16 x 64 and 16 x 32. It does not split K, and ours does.",
    '"cuBLAS fp8" accumulates in full f32 as far as the hardware goes (use_fast_accum=False of torch._scaled_mm), '
    '"fast accumulation" does not; with fewer than 16 rows, fp8 multiplies 16.',
    "The peers' outputs are compared with f64 sums within 2^-8 of the output plus 2^-12 (bf16 operands) or 2^-10 (fp8) of "
    "the sum of the terms' sizes; ours are compared bit for bit.",
]


def rows_of(path):
    """{row: values} of the JSON lines of a log; nothing if there is no log."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("{"):
            value = json.loads(line)
            found[value["row"]] = value
    return found


def ratio(ours, peer, what="seconds"):
    if ours and peer and what in ours and what in peer:
        return peer[what] / ours[what]
    return None


def main():
    out = pathlib.Path(sys.argv[1])
    ours, peers = rows_of(out / "bench.log"), rows_of(out / "peers.log")
    emulated = any(row.get("emulated") for row in ours.values())
    copy = max(
        (r["bytes_per_second"] for r in (ours.get("copy"), peers.get("torch copy")) if r), default=None
    )

    # (what, row of ours, how it is judged, at least, aim for)
    goals = [
        ("MXFP4 prefill, Gaussian", "mxfp4 prefill gaussian", "cublas bf16 m8192", 1.0, 1.5),
        ("MXFP4 prefill, outliers", "mxfp4 prefill outliers", "cublas bf16 m8192", 0.6, 1.0),
        ("NVFP4 prefill", "nvfp4 prefill gaussian", "cublas bf16 m8192", 0.35, 0.6),
        ("MXFP4 prefill / cuBLAS fp8", "mxfp4 prefill gaussian", "cublas fp8 m8192", None, None),
        ("MXFP4 prefill / cuBLAS fp8, fast accumulation", "mxfp4 prefill gaussian", "cublas fp8 fast m8192", None, None),
        ("MXFP4 prefill / Triton dot_scaled", "mxfp4 prefill gaussian", "triton dot_scaled m8192", 1.0, 2.0),
        ("MXFP4 prefill / dequantize + cuBLAS", "mxfp4 prefill gaussian", "triton dequantize + cublas m8192", 1.0, 2.0),
        ("MXFP4 prefill from packed / dequantize + cuBLAS", "mxfp4 prefill packed", "triton dequantize + cublas m8192", None, None),
        ("MXFP4 prefill from packed / Triton dot_scaled", "mxfp4 prefill packed", "triton dot_scaled m8192", None, None),
        ("NVFP4 prefill from packed / cuBLAS bf16", "nvfp4 prefill packed", "cublas bf16 m8192", None, None),
        ("MXFP4 decode 16 / Triton dot_scaled", "mxfp4 decode m16", "triton dot_scaled m16", 1.0, 2.0),
        ("MXFP4 decode 16 / cuBLAS bf16", "mxfp4 decode m16", "cublas bf16 m16", None, None),
    ]
    goals += [(f"{f.upper()} decode M = {m}", f"{f} decode m{m}", "copy", 0.6, 0.85) for f in ("mxfp4", "nvfp4") for m in (1, 4, 16)]
    # The goals are those for 64 and 128 rows.
    for f in ("mxfp4", "nvfp4", "mxint8 mxfp4", "mxint8 nvfp4"):
        for m in (17, 32, 64, 128):
            judged = (1.5, 2.5) if m >= 64 and f == "mxfp4" else (None, None)
            what = f"{f.upper().replace(' ', ' by ')} M = {m}, quantize included"
            goals += [(what, f"{f} few m{m} gaussian", f"cublas bf16 m{m}", *judged),
                      (f"{what}, outliers", f"{f} few m{m} outliers", f"cublas bf16 m{m}", None, None)]
    goals += [(f"{f.upper()} transform (32) + quantize", f"{f} transform quantize", "copy", 0.5, 0.8) for f in ("mxfp4", "nvfp4")]

    goals += [(f"{f.upper()} transform (32) + quantize + fold", f"{f} transform quantize fold", "copy", None, None) for f in ("mxfp4", "nvfp4")]

    # MXINT8 activations: no goals yet.
    for f in ("mxfp4", "nvfp4"):
        goals += [
            (f"MXINT8 by {f.upper()} prefill", f"mxint8 {f} prefill gaussian", "cublas bf16 m8192", None, None),
            (f"MXINT8 by {f.upper()} prefill, outliers", f"mxint8 {f} prefill outliers", "cublas bf16 m8192", None, None),
            (f"MXINT8 by {f.upper()} prefill from packed", f"mxint8 {f} prefill packed", "cublas bf16 m8192", None, None),
        ]
        goals += [(f"MXINT8 by {f.upper()} decode M = {m}", f"mxint8 {f} decode m{m}", "copy", None, None) for m in (1, 4, 16)]
    goals += [("MXINT8 transform (32) + quantize", "mxint8 transform quantize", "copy", None, None)]

    lines = [f"# Benchmarks, {datetime.date.today()}", ""]
    if emulated:
        lines += ["**Run on the emulator: these times say nothing about a GPU.**", ""]
    device = ours.get("device", {})
    torch = peers.get("torch", {})
    log = out / "device.log"
    if log.exists():
        lines += [f"Device, driver, memory, clocks: {log.read_text().strip()}", ""]
    lines += [f"Backend on: {device.get('name', 'no device')}, compute capability {device.get('sm', '?')}. "
              f"Peers: PyTorch {torch.get('version', 'absent')}.", ""]
    if copy:
        lines += [f"Copy inside device memory: {copy / 1e9:.0f} GB/s read and written.", ""]
    lines += ["| work | time | rate | ratio to the peer | at least | aim for |", "|---|---|---|---|---|---|"]
    measured = 0
    for what, name, peer_name, least, aim in goals:
        row = ours.get(name)
        if not row:
            lines.append(f"| {what} | not measured | | | {least or ''} | {aim or ''} |")
            continue
        measured += 1
        rate = f"{row['tops']:.1f} TOPS" if "tops" in row else ""
        if peer_name == "copy":
            speed = row.get("bytes_per_second", row.get("weight_bytes_per_second"))
            rate = f"{speed / 1e9:.1f} GB/s"
            value = speed / copy if copy else None
            against = "of copy"
        else:
            value = ratio(row, peers.get(peer_name))
            against = f"x {peer_name.rsplit(' m', 1)[0]}"
        shown = f"{value:.2f} {against}" if value else peers.get(peer_name, {}).get("error", "peer not measured")
        verdict = "" if emulated or value is None or least is None else " (met)" if value >= least else " (missed)"
        lines.append(f"| {what} | {row['seconds'] * 1e6:.1f} us | {rate} | {shown}{verdict} | {least or ''} | {aim or ''} |")
    lines += ["", "How to read it:", "", *(f"- {note}" for note in NOTES)]
    lines += ["", "Checked values and paths taken:", ""]
    for name, row in ours.items():
        if "checked" in row:
            tiles = row.get("tiles", {"left": 0})
            left = f"; {tiles['left']} of {tiles['all']} tiles left to another kernel" if tiles["left"] else ""
            lines.append(f"- {name}: {row['checked']} equal the reference bit for bit, {row['replayed']} the same "
                         f"after the timed replays; {row.get('paths', '')}".rstrip("; ") + left)
    lines += ["", "Peers:", ""]
    for name, row in peers.items():
        if "tops" in row:
            lines.append(f"- {name}: {row['seconds'] * 1e6:.1f} us, {row['tops']:.1f} TOPS {row.get('tile', '')}")
        elif "error" in row:
            lines.append(f"- {name}: {row['error']}")
    lines += ["", "Stages:", "", "```text", (out / "stages.txt").read_text().rstrip(), "```", ""]
    text = "\n".join(lines)
    (out / "BENCHMARKS.md").write_text(text)
    print(text)
    return 0 if measured else 1


sys.exit(main())
