#!/usr/bin/env bash
# Builds the stand-in for libcuda.so.1 from the emulator and the kernels, with g++ (or $CXX).
#
#   build.sh OUT              OUT/libcuda.so.1 with every kernel in ../kernels
#   build.sh --test OUT       OUT/emulator_test, the emulator's own tests with their own kernels
#
# Contraction is off and fma is the machine's own, so the IEEE operations are those of the device.
# Objects are rebuilt only where something changed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

test=0
if [[ ${1:-} == --test ]]; then test=1; shift; fi
out=${1:?usage: build.sh [--test] OUT}
mkdir -p "$out/objects"
out=$(cd "$out" && pwd)

compiler=${CXX:-g++}
flags=(-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -ffp-contract=off -fno-strict-aliasing
    -DFP4_EMULATOR=1 -DFP4_SM=90)
# Kernel sources are CUDA first: what g++ finds unused in one of the two builds is no defect.
kernel_flags=(-x c++ -fsanitize=alignment,bounds,shift-exponent -fno-sanitize-recover=all
    -Wno-unused-function -Wno-unused-variable -Wno-unused-parameter -Wno-unknown-pragmas)
[[ $(uname -m) == x86_64 ]] && flags+=(-mavx2 -mfma -mpopcnt -mlzcnt -mbmi)

objects=() jobs=()
# compile SOURCE [FLAG...]: queues one object, if it is older than any header or its source.
compile() {
    local source=$1 object
    shift
    object=$out/objects/$(basename "$(dirname "$source")")_$(basename "$source").o
    objects+=("$object")
    if [[ ! -e $object ]] || [[ -n $(find "$source" "$here" "$here/../kernels" -newer "$object" \
        \( -name '*.hpp' -o -name '*.cuh' -o -path "$source" -o -name build.sh \) -print -quit) ]]; then
        jobs+=("$compiler ${flags[*]} $* -c '$source' -o '$object'")
    fi
}

for source in "$here"/*.cpp; do compile "$source"; done
if ((test)); then
    for source in "$here"/tests/*.cpp; do compile "$source"; done
    kernels=("$here"/tests/*.cu)
else
    kernels=("$here"/../kernels/*.cu)
fi
for source in "${kernels[@]}"; do compile "$source" "${kernel_flags[@]}"; done

if ((${#jobs[@]} > 0)); then
    printf '%s\0' "${jobs[@]}" | xargs -0 -P "$(nproc)" -I{} bash -c '{}'
fi
if ((test)); then
    "$compiler" -o "$out/emulator_test" "${objects[@]}" -pthread
    echo "built emulator_test: ${#kernels[@]} kernel files," \
        "${#jobs[@]} of ${#objects[@]} objects compiled"
else
    # Only the driver's functions leave the library, not what templates of the standard library
    # make.
    echo '{ global: cu*; fp4_emulator_*; local: *; };' >"$out/objects/exports"
    "$compiler" -shared -Wl,--version-script="$out/objects/exports" -Wl,-z,defs -Wl,-soname,libcuda.so.1 -o "$out/libcuda.so.1" "${objects[@]}" -pthread
    ln -sf libcuda.so.1 "$out/libcuda.so"
    echo "built libcuda.so.1: ${#kernels[@]} kernel files," \
        "${#jobs[@]} of ${#objects[@]} objects compiled"
fi
