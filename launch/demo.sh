#!/usr/bin/env bash
# The whole path on a simulated cohort, in minutes on a CPU: launch/demo.sh [main's flags]
# Makes or reuses .venv; needs Python >= 3.11. Ends with the results and the path of the report.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
ensure_env

cd "$REPO"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec "$PYTHON" -m ehrwear_jax.main --config=configs/tiny.py "$@"
