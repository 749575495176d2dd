#!/usr/bin/env bash
# A sweep on all hosts of a TPU pod slice, which run each cell together; start it from your own machine.
#
#   experiments/launch/tpu_vm.sh NAME ZONE experiments/survey.py /shared/survey /shared/archives [more flags of bdjax sweep]
#
# Every host needs bdjax (pip install "bdjax[tpu]"), the checkout in its home folder and the two folders under the same paths.
set -euo pipefail
name=$1 zone=$2 file=$3 out=$4 data=$5
shift 5
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "cd bdjax && bdjax sweep '$file' --out '$out' --data-dir '$data' --coordinator auto $*"
