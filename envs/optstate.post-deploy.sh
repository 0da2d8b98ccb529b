#!/usr/bin/env bash
# Snakemake runs this in the project's root, with the new environment active.
set -euo pipefail
uv pip sync --python "$CONDA_PREFIX/bin/python" --compile-bytecode envs/requirements.lock
