#!/usr/bin/env bash
# Train on a TPU VM slice of Google Cloud, from your own machine: a process on each of its workers.
#
#   scripts/tpu.sh NAME ZONE setup             copy what is committed here, install it on all workers
#   scripts/tpu.sh NAME ZONE train FLAGS...    start `python -m long_vivit.train --multihost FLAGS`
#   scripts/tpu.sh NAME ZONE log               follow what the first worker prints
#   scripts/tpu.sh NAME ZONE stop              save and stop; the same `train` goes on from there
#
# First create the slice:
#
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-32 \
#       --version=v2-alpha-tpuv5-lite
#
# That image is Ubuntu 22.04 with Python 3.10, too old for this: where python3 is not 3.11 to 3.13,
# `setup` installs uv with pip, and with it a Python 3.12 for .venv alone.
#
# --config.workdir and --config.data.dir must lie on a disk that all workers share (Filestore, or a
# bucket mounted with gcsfuse), under the same path. Workers find each other by themselves. A slice
# that was pre-empted is created, set up and started again with the same flags: the run goes on.
set -euo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; }

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
if [ $# -lt 3 ]; then usage >&2; exit 2; fi
name=$1 zone=$2 action=$3
shift 3

on() {  # on WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

case "$action" in
  setup)
    archive=$(mktemp -d)/long_vivit.tar.gz
    trap 'rm -rf "$(dirname "$archive")"' EXIT
    git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$name": --zone="$zone" --worker=all
    on all 'mkdir -p long_vivit && tar -xzf long_vivit.tar.gz -C long_vivit && cd long_vivit &&
      fits="import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" &&
      if python3 -c "$fits"; then python3 -m venv .venv
      else
        echo "$(python3 --version) is not 3.11 to 3.13: uv brings 3.12" &&
        python3 -m pip install -q --user uv &&
        python3 -m uv venv -q --seed --allow-existing --python 3.12 .venv
      fi && .venv/bin/python -m pip install -q -r requirements.txt "jax[tpu]"'
    ;;
  train)
    flags=''
    if [ $# -gt 0 ]; then flags=$(printf ' %q' "$@"); fi
    # Not tied to the connection, so that a lost one does not end the run.
    on all "cd long_vivit && { setsid nohup .venv/bin/python -m long_vivit.train --multihost$flags \
> train.log 2>&1 < /dev/null & echo \$! > train.pid; }"
    ;;
  log) on 0 'tail -n +1 -f long_vivit/train.log' ;;
  stop) on all "kill -TERM \$(cat long_vivit/train.pid)" ;;
  *) echo "error: no action '$action'" >&2; usage >&2; exit 2 ;;
esac
