#!/usr/bin/env bash
# A sweep on a Cloud TPU that exists, one VM or all hosts of a pod slice, which run each cell together; start it from your own machine.
#
#   experiments/launch/tpu_vm.sh NAME ZONE experiments/survey.py gs://bucket/survey /home/me/archives [more flags of bdjax sweep]
#
# Every host needs the checkout in ~/bdjax, what tpu_setup.sh installs, and the archives in the folder that is named. The command ends
# with the connection; the same one goes on.
set -euo pipefail
name=$1 zone=$2 file=$3 out=$4 data=$5
shift 5
sweep=$(printf ' %q' "$file" --out "$out" --data-dir "$data" --coordinator auto "$@")
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "cd bdjax && ../bdjax-env/bin/bdjax sweep$sweep"
