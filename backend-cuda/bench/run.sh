#!/usr/bin/env bash
# Everything that needs a GPU, in one go: checks, then speed, then a table. Under 25 minutes; every
# stage has its own time limit, and what a stage has printed is kept whatever happens after.
#
#   run.sh [--out DIR] [--full]     on a machine with a GPU; the table is DIR/BENCHMARKS.md
#   run.sh --prepare DIR            builds what a machine with neither network nor Rust needs
#   run.sh --from DIR               uses that instead of building
#   run.sh --emulated DIR the same stages on the stand-in libcuda.so.1 in DIR, small: shows
#                                   that the script works; its times mean nothing and say so
#   run.sh --dry-run                prints the stages
#
# Python needs numpy, for the peers' answers; PyTorch and Triton for their rows, else
# nvidia-cublas (pip). Stages: device (what there is), build, tests (the crate's, graphs among
# them, and those of few rows on packed weights, on Hopper), conformance (quick, as routed and
# with the folded, the decode and the wgmma kernels forced; full with --full), memcheck and
# racecheck by compute-sanitizer on the small bench, bench (benches/gpu.rs), peers (peers.py:
# cuBLAS and Triton), table (table.py). A stage that cannot run says why; the table repeats it.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

out=$root/target/gpu-bench from= prepare= emulated= full=0 dry=0
while (($#)); do
    case $1 in
        --out) out=${2:?}; shift ;;
        --from) from=$(cd "${2:?}" && pwd); shift ;;
        --prepare) prepare=${2:?}; shift ;;
        --emulated) emulated=$(cd "${2:?}" && pwd); shift ;;
        --full) full=1 ;;
        --dry-run) dry=1 ;;
        *) echo "run.sh: unknown argument $1; see the top of the file" >&2; exit 2 ;;
    esac
    shift
done

# The programs, into $1: conform, gpu, and the tests that need a device, as tests_lib, tests_graph
# and tests_wgmma_rs.
build() {
    local to=$1 list pair
    mkdir -p "$to" && to=$(cd "$to" && pwd) && cd "$root" || return 1
    list=$(cargo build --release -p fp4-backend-cuda --example conform --message-format=json &&
        cargo bench -p fp4-backend-cuda --bench gpu --no-run --message-format=json &&
        cargo test --release -p fp4-backend-cuda --features emulated --lib --test graph --test wgmma_rs --no-run --message-format=json) || return 1
    for pair in conform:conform gpu:gpu fp4_backend_cuda:tests_lib graph:tests_graph wgmma_rs:tests_wgmma_rs; do
        cp "$(grep -oE '"executable":"[^"]*/'"${pair%:*}"'(-[0-9a-f]+)?"' <<<"$list" | tail -1 | cut -d'"' -f4)" "$to/${pair#*:}" || return 1
    done
    ls -l "$to"
}

if [[ -n $prepare ]]; then
    build "$prepare" && echo "run.sh: carry $prepare and the folder bench/ to the machine; there: run.sh --from"
    exit
fi

mkdir -p "$out" && out=$(cd "$out" && pwd)
programs=${from:-$out/programs}
summary=$out/stages.txt
: >"$summary"
failed=0
whole=1440 # seconds for all of it; the table's own are kept back

# stage NAME SECONDS COMMAND...: output in NAME.log, one line in the summary.
stage() {
    local name=$1 limit=$2 status started=$SECONDS
    local left=$((whole - SECONDS))
    shift 2
    if [[ $name != table ]] && ((left < limit)); then limit=$((left > 1 ? left : 1)); fi
    if ((dry)); then
        echo "$name (at most $limit s): $*"
        return
    fi
    echo "== $name"
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    case $status in
        0) echo "$name: ok, $((SECONDS - started)) s" ;;
        77) status=0 && echo "$name: not run, $(tail -1 "$out/$name.log")" ;;
        124 | 137) echo "$name: FAILED, over its limit of $limit s; what it printed is kept" ;;
        *) echo "$name: FAILED, exit $status: $(grep -v '^$' "$out/$name.log" | tail -1)" ;;
    esac >"$out/$name.outcome"
    tee -a "$summary" <"$out/$name.outcome"
    rm "$out/$name.outcome"
    ((status == 0)) || failed=1
}

skip() { echo "$1: not run, $2" | tee -a "$summary"; }

export -f build
export root
small=()
if [[ -n $emulated ]]; then
    export LD_LIBRARY_PATH=$emulated${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    small=(--small)
    skip device "this is the emulator: no number below says anything about a GPU"
elif command -v nvidia-smi >/dev/null || ((dry)); then
    stage device 60 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv,noheader
else
    echo "run.sh: no nvidia-smi, so no GPU; --emulated DIR or --dry-run shows the script without one" >&2
    exit 1
fi

if [[ -z $from ]]; then stage build 420 bash -c "build '$programs'"; fi
# One test at a time, as the device is shared.
stage tests-graph 60 "$programs/tests_graph" --test-threads 1
stage tests-lib 60 "$programs/tests_lib" --test-threads 1
# Without the test that has the emulator be short of memory.
rs=("$programs/tests_wgmma_rs" --test-threads 1)
[[ -n $emulated ]] || rs+=(--skip without_memory)
if [[ -n $emulated ]] || ((dry)) || nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | grep -qx '9\.0'; then
    stage tests-wgmma-rs 60 "${rs[@]}"
else
    skip tests-wgmma-rs "these kernels are Hopper's"
fi
for kernel in auto folded decode wgmma wgmma-rs; do
    stage "conformance-quick-$kernel" 150 "$programs/conform" quick "$kernel"
done
if ! ((dry)) && [[ -n $emulated ]]; then
    skip sanitizer "compute-sanitizer needs a device"
elif ! ((dry)) && ! command -v compute-sanitizer >/dev/null; then
    skip sanitizer "compute-sanitizer is not installed"
else
    for tool in memcheck racecheck; do
        stage "$tool" 150 compute-sanitizer --tool "$tool" --error-exitcode 9 "$programs/gpu" --small
    done
fi
stage bench 330 "$programs/gpu" "${small[@]}"
if [[ -n $emulated ]] && ! ((dry)); then
    # The copy and the arithmetic of cuBLAS's arguments, by a stand-in.
    stage standin 60 g++ -shared -fPIC -O2 -o "$out/libcublas.so" "$here/cublas_standin.cpp"
    FP4_CUBLAS=$out/libcublas.so stage peers 60 python3 "$here/peers.py" --small --no-torch
else
    stage peers 300 python3 "$here/peers.py"
fi
# Last of what takes long: it has the time that is left.
if ((full)); then stage conformance-full 600 "$programs/conform" full; fi
stage table 30 python3 "$here/table.py" "$out"
((dry)) && exit 0
cat "$out/table.log"
exit $failed
