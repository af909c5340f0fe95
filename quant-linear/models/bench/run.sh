#!/usr/bin/env bash
# The decoder beside llama.cpp (npm's node-llama-cpp, which carries it prebuilt), in one run:
# processes alternate, each encoding in one of its own, for its memory. Prints medians as a table.
#     quant-linear/models/bench/run.sh MODEL.gguf [ROUNDS]
# Needs node, npm and python3. An idle machine; nothing is timed that is not printed.
set -euo pipefail
model=$(realpath "$1")
rounds=${2:-5}
cd "$(dirname "${BASH_SOURCE[0]}")"
prefill=512 decode=128

manifest=../Cargo.toml
cargo build --release --quiet --manifest-path "$manifest" --example decoder
target=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp llama.mjs "$scratch"
(cd "$scratch" && npm init -y >/dev/null && npm install --silent --ignore-scripts node-llama-cpp@3.22.1)

for ((round = 0; round < rounds; round++)); do
    for threads in 1 2; do
        (cd "$scratch" && node llama.mjs "$model" $threads $prefill $decode)
        for encoding in mxfp4-fp4 nvfp4-fp4 mxfp4-mxint8 nvfp4-mxint8; do
            "$target/release/examples/decoder" bench "$model" --encodings $encoding --threads $threads \
                --prefill $prefill --decode $decode --runs 2 --json | tail -n 1
        done
    done
done >"$scratch/runs"

grep -m 1 'model name' /proc/cpuinfo || true
python3 - "$scratch/runs" <<'PYTHON'
import json, statistics, sys
runs = [json.loads(line) for line in open(sys.argv[1])]
median = lambda rows, key: statistics.median(row[key] for row in rows)
print("| | threads | prefill tok/s | over llama.cpp | decode tok/s | over | peak MB | resident MB | over weights and cache |")
print("|---|---|---|---|---|---|---|---|---|")
for threads in (1, 2):
    base = [r for r in runs if r["encoding"] == "llama.cpp" and r["threads"] == threads]
    for name in dict.fromkeys(r["encoding"] for r in runs):
        rows = [r for r in runs if r["encoding"] == name and r["threads"] == threads]
        cells = [name, threads]
        for key in ("prefill", "decode"):
            ratio = median(rows, key) / median(base, key)
            cells += [f"{median(rows, key):.0f}", f"{ratio:.2f}"]
        cells += [f"{median(rows, k) / 1e6:.0f}" for k in ("peak", "resident")]
        held = rows[0].get("weight_bytes")
        cells.append(f"{median(rows, 'resident') / (held + rows[0]['cache_bytes']):.2f}" if held else "")
        print("| " + " | ".join(map(str, cells)) + " |")
print(f"\n{len(runs)} runs, medians")
PYTHON
