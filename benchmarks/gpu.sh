#!/usr/bin/env bash
# Run the CUDA tests, the benchmark and the article's experiment on a machine with a GPU:
#   ARCHIVES=folder/of/archives benchmarks/gpu.sh
# The machine needs Python >= 3.11.4, torch >= 2.11 and torchvision, but no network and no Snakemake.
# A second call with the same folders continues where the time limit ended the first one.
# Options are variables; paths are relative to the repository:
#   OUTPUT    folder of the results: tables, logs and machine.json, a few MB (results/gpu)
#   WORK      folder of images, arrays and checkpoints, several GB (results/gpu-work)
#   LIMIT     time limit in seconds (3600)
#   ARCHIVES  folder of the data sets' archives, named as in the configuration (.)
#   CONFIG    overlays on config/config.yaml, separated by spaces
#   JOBS      sessions that are trained side by side (1)
#   DEVICE    cuda, or cpu to try this script (cuda)
#   PARTS     parts of the benchmark, separated by spaces; see benchmarks/run_parts.py (the
#             parts that use the GPU)
#   BENCHMARK_CONFIG  overlays on benchmarks/config.yaml
#   WHEELS    folder of wheels of the Python packages that the machine lacks
#   PYTHON    interpreter (python3)
set -uo pipefail
cd "$(dirname "$0")/.."

: "${OUTPUT:=results/gpu}" "${WORK:=results/gpu-work}" "${LIMIT:=3600}" "${ARCHIVES:=.}"
: "${DEVICE:=cuda}" "${PYTHON:=python3}" "${PARTS=loop step data_path sharing peers}"
: "${JOBS:=1}" "${CONFIG=}" "${BENCHMARK_CONFIG=}" "${WHEELS=}"
read -ra CONFIG <<<"$CONFIG"
read -ra BENCHMARK_CONFIG <<<"$BENCHMARK_CONFIG"
read -ra PARTS <<<"$PARTS"

status=0
mkdir -p "$OUTPUT" "$WORK"
export PYTHONPATH="$PWD:$PWD/workflow/scripts:$(realpath "$WORK")/packages${PYTHONPATH:+:$PYTHONPATH}"

remaining() { # seconds of the time limit
    echo $((LIMIT > SECONDS ? LIMIT - SECONDS : 1))
}

step() { # NAME COMMAND...: run a command, whose output also goes to NAME.log
    "${@:2}" 2>&1 | tee -a "$OUTPUT/$1.log" || {
        echo "$1 failed: see $OUTPUT/$1.log" >&2
        status=1
    }
}

if [ -n "$WHEELS" ] && [ ! -d "$WORK/packages" ]; then
    step packages "$PYTHON" -m pip install --quiet --no-index --no-deps \
        --target "$WORK/packages" "$WHEELS"/*.whl
fi

if [ -e "$WORK/tested" ]; then
    echo "The CUDA tests ran in an earlier call: see $OUTPUT/tests.log"
elif "$PYTHON" -c "import pytest" 2>/dev/null; then
    step tests timeout "$(remaining)" "$PYTHON" -m pytest -p no:cacheprovider tests/training/test_cuda.py
    [ "$status" = 0 ] && touch "$WORK/tested"
else
    echo "pytest is missing: the CUDA tests did not run." | tee -a "$OUTPUT/tests.log"
fi

step benchmark "$PYTHON" -m benchmarks.run_parts --parts "${PARTS[@]}" --device "$DEVICE" \
    --configfile "${BENCHMARK_CONFIG[@]}" --seconds "$(remaining)" \
    --work "$WORK/benchmark" --output "$OUTPUT" --log "$WORK/benchmark.log"

step article "$PYTHON" -m benchmarks.run_experiment --device "$DEVICE" --configfile "${CONFIG[@]}" \
    --archives "$ARCHIVES" --jobs "$JOBS" --seconds "$(remaining)" \
    --work "$WORK/article" --output "$OUTPUT/article" --log "$WORK/article.log"
exit "$status"
