#!/usr/bin/env bash
# Train on GPU nodes under Slurm: a process for each GPU.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --cpus-per-task=12 --gpus-per-node=8 scripts/slurm.sh \
#       --config=configs/long.py:large --config.workdir=SHARED/run --config.mesh=data=-1,fsdp=8
#
# As many tasks on a node as GPUs, and among them the node's CPUs, which read and decode: without
# these two options Slurm gives each node one CPU, and has no room for the other processes.
#
# Submit from the top of the checkout, whose .venv holds requirements.txt and "jax[cuda13]"
# (PYTHON=... names another python). The work directory and the data lie on a disk that all nodes
# share. Add what your site wants (--partition, --account, --time).
#
# Two minutes before the time limit, and when it is pre-empted, the run saves, stops and is queued
# again; started again it goes on, on as many nodes as it then gets. If one process dies, Slurm ends
# the others.
#SBATCH --job-name=long_vivit
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

usage() { sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"; }

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
gpus=${SLURM_GPUS_ON_NODE:-}
if [ -z "${SLURM_JOB_ID:-}" ] || [ -z "$gpus" ]; then
  echo 'error: to be submitted with sbatch, with --gpus-per-node' >&2
  usage >&2
  exit 2
fi
tasks=${SLURM_NTASKS_PER_NODE:-$gpus}  # set where --ntasks-per-node was given
if [ "$tasks" != "$gpus" ]; then
  echo "error: $gpus GPUs on a node and $tasks tasks; submit with --ntasks-per-node=$gpus" >&2
  exit 2
fi

# Each process sees all GPUs of its node and takes the one of its own number: no binding. srun does
# not take over --cpus-per-task by itself since Slurm 22.05.
status=0
srun --ntasks-per-node="$gpus" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  --gpu-bind=none --kill-on-bad-exit=1 --label \
  "${PYTHON:-.venv/bin/python}" -m long_vivit.train --multihost "$@" || status=$?
if [ "$status" -eq 143 ]; then  # 128 + SIGTERM: stopped on request, and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
