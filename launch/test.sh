#!/usr/bin/env bash
# Lint, check types and test on the CPU: launch/test.sh [pytest arguments]
# Makes or reuses .venv; needs Python >= 3.11. Tests marked slow or long are left out.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
ensure_env test

cd "$REPO"
export JAX_PLATFORMS=cpu
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# One file per worker at a time, so that a file's fixtures are built once; in the order of tests/conftest.py.
exec "$PYTHON" -m pytest -n auto --dist loadfile --no-loadscope-reorder -q "$@"
