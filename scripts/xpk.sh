#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster, submitted with xpk (https://github.com/AI-Hypercomputer/xpk).
#
#   IMAGE=REGISTRY/long_vivit STORAGE=NAME \
#     scripts/xpk.sh CLUSTER WORKLOAD v5litepod-256 2 --config=configs/long.py:large \
#       --config.workdir=/shared/run --config.data.dir=/shared/data --config.mesh=dcn=2,data=-1,fsdp=8
#
# CLUSTER is one of `xpk cluster list`; WORKLOAD a new name; then the type of a slice, the number of
# slices, and the flags of long_vivit.train. Slices are joined by a slow network: give `dcn` of the
# mesh their number, so that only gradients cross it.
#
# IMAGE     a base image with Python, requirements.txt and "jax[tpu]"; xpk lays this checkout on it
# STORAGE   a storage of the cluster (`xpk storage attach`), mounted where workdir and data lie
# RESTARTS  how often GKE starts the run again after a failure or pre-emption (50); it then goes on
# PROJECT, ZONE    of Google Cloud, where gcloud's own are others
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; }

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
if [ $# -lt 4 ] || [ -z "${IMAGE:-}" ]; then usage >&2; exit 2; fi
cluster=$1 workload=$2 slice=$3 slices=$4
shift 4
case "$slices" in *[!0-9]* | '' | 0) echo "error: '$slices' is no number of slices" >&2; exit 2 ;; esac

options=(--cluster="$cluster" --workload="$workload" --tpu-type="$slice" --num-slices="$slices")
options+=(--base-docker-image="$IMAGE" --script-dir="$(cd "$(dirname "$0")/.." && pwd)")
options+=(--max-restarts="${RESTARTS:-50}")
if [ -n "${STORAGE:-}" ]; then options+=(--storage="$STORAGE"); fi
if [ -n "${PROJECT:-}" ]; then options+=(--project="$PROJECT"); fi
if [ -n "${ZONE:-}" ]; then options+=(--zone="$ZONE"); fi

flags=''
if [ $# -gt 0 ]; then flags=$(printf ' %q' "$@"); fi
xpk workload create "${options[@]}" --command="python -m long_vivit.train --multihost$flags"
