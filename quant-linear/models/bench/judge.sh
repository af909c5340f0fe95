#!/usr/bin/env bash
# Judges the pipeline on a real model: quantizes it by each of a list of settings and prints for
# each a row of a table: perplexity or cosines beside f32's, the mean layerwise loss of weight and
# activations and its ratio to rounding to nearest, and the seconds that quantizing took.
#
# usage: judge.sh lm MODEL.gguf CALIBRATION-TEXT TEST-TEXT [SETTINGS-FILE]
#        judge.sh encoder MODEL-FOLDER CALIBRATION-TEXT [SETTINGS-FILE]
#
# A line of the settings file is the options of one `fp4 quantize`; without the file, all of
# {mxfp4, nvfp4} x {none, random, hadamard, wush} x {rtn, gptq}. What is made goes with the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export CARGO_TARGET_DIR

kind=$1 model=$2 text=$3
shift 3
if [[ $kind == lm ]]; then
    test=$1
    shift
fi
settings=${1:-}
cargo build --release -p fp4-cli -p quant-linear-models --bin fp4 --example decoder --example minilm --quiet
bin=$CARGO_TARGET_DIR/release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [[ -z $settings ]]; then
    settings=$work/settings
    for format in mxfp4 nvfp4; do
        for transform in none random hadamard wush; do
            for method in rtn gptq; do
                echo "--format $format --transform $transform --method $method"
            done
        done
    done >"$settings"
fi

before=$(date +%s)
"$bin/fp4" calibrate "$model" --data "$text" -o "$work/calibration" --json >"$work/calibrated"
echo "calibrated in $(($(date +%s) - before)) s: $(cat "$work/calibrated")"
# judged PATH...: the model's quality with these layers.
judged() {
    if [[ $kind == lm ]]; then
        "$bin/examples/decoder" perplexity "$model" --text "$test" --tokens 3072 --window 1024 --json "$@" |
            python3 -c 'import json, sys; print("%.3f" % json.load(sys.stdin)[0]["perplexity"])'
    else
        "$bin/examples/minilm" --model "$model" "$@" --json | python3 -c '
import json, sys
row = json.load(sys.stdin)["rows"][-1]
print("%.4f %.4f %d/%d" % (row["cosine_mean"], row["cosine_min"], row["neighbours_agreeing"], row["sentences"]))'
    fi
}
if [[ $kind == lm ]]; then
    dense=$(judged --encodings f32)
    echo "| settings | perplexity | over f32 ($dense) | loss of weights | weights + activations | of rtn | s |"
    echo "|---|---|---|---|---|---|---|"
else
    echo "| settings | cosine mean, least, same neighbour | loss of weights | weights + activations | of rtn | s |"
    echo "|---|---|---|---|---|---|"
fi
while read -r line; do
    rm -rf "$work/out"
    before=$(date +%s)
    # shellcheck disable=SC2086  # a line is several options
    "$bin/fp4" quantize "$model" --calib "$work/calibration" $line -o "$work/out" --json >"$work/report"
    took=$(($(date +%s) - before))
    if [[ $kind == lm ]]; then
        found=$(judged --layers "$work/out" --encodings stored)
        found="$found | $(python3 -c "print('%.3f' % ($found / $dense))")"
    else
        found=$(judged --layers "$work/out")
    fi
    losses=$(python3 - "$work/report" <<'PYTHON'
import json, sys
loss = json.load(open(sys.argv[1]))["totals"]["mean_loss"]
print("%.5f | %.5f | %.3f" % (loss["weight"], loss["layer"], loss["layer"] / loss["before"]))
PYTHON
    )
    echo "| \`$line\` | $found | $losses | $took |"
done <"$settings"
