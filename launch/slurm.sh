#!/usr/bin/env bash
# One job over the GPUs of several nodes: sbatch --nodes=4 launch/slurm.sh --config=configs/full.py [main's flags]
# One process per node drives all its GPUs. The workdir must be on a file system that all nodes see, and .venv there too.
# Two minutes before the time limit, and on preemption, the run saves and ends; the job is then put in the queue again.
#SBATCH --job-name=ehrwear_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
# Slurm runs a copy of this file; the repository is where sbatch was called, unless said otherwise.
cd "${EHRWEAR_REPO:-${SLURM_SUBMIT_DIR:-.}}"
source launch/restart.sh

PYTHON="${EHRWEAR_PYTHON:-.venv/bin/python}"
code=0
# A process that is lost ends the step for all (--kill-on-bad-exit); the coordinator is the step's first node.
srun --kill-on-bad-exit=1 "$PYTHON" -m ehrwear_jax.main "$@" || code=$?
if worth_restarting "$code"; then
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${EHRWEAR_MAX_RESTARTS:-100}" ]; then
    echo "ehrwear_jax: exit code $code after ${SLURM_RESTART_COUNT} restarts, giving up" >&2
    exit "$code"
  fi
  echo "ehrwear_jax: exit code $code, back to the queue" >&2
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
