#!/usr/bin/env bash
# One job over all hosts of a TPU slice: launch/tpu_pod.sh TPU_NAME ZONE --config=configs/full.py --workdir=/shared/run
# Run it from a machine with gcloud; the repository with its .venv (pip install -e ".[tpu]") must be in ~/ehrwear_jax on
# every host, or where EHRWEAR_REPO says, and the workdir on a file system that all hosts mount. A job whose exit code
# says that this helps is started again; a slice that was preempted for good is yours to make anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/restart.sh"
if [ "$#" -lt 3 ]; then
  echo "usage: launch/tpu_pod.sh TPU_NAME ZONE --config=... [main's flags]" >&2
  exit 1
fi
name="$1" zone="$2"
shift 2

# main finds the other hosts through the TPU's own environment.
command="cd ${EHRWEAR_REPO:-ehrwear_jax} && exec .venv/bin/python -m ehrwear_jax.main $(printf '%q ' "$@")"
run_until_done gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
