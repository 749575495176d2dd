#!/usr/bin/env bash
# One population over the devices of several nodes: the processes of a SLURM job run each cell together.
#
#   sbatch --nodes=4 experiments/launch/slurm_together.sh experiments/survey.py /shared/survey /shared/archives [more flags of bdjax sweep]
#
# For cells whose members do not fit one node. Many small cells run faster as an array (slurm_array.sh): nobody waits for anybody there.
#SBATCH --job-name=bdjax
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
file=$1 out=$2 data=$3
shift 3
# Two minutes before the time limit the sweep is asked to stop: it gives its cell back, and the job is queued again. What SLURM preempts
# it queues again by itself, and what is cancelled stays so: then this shell only waits for the sweep to end.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
ending="" heard=yes
trap 'ending=yes heard=yes; scancel --signal=TERM "$job" || true' USR1 # srun itself would kill the sweep that it is to pass TERM to
trap 'heard=yes' TERM
srun bdjax sweep "$file" --out "$out" --data-dir "$data" --coordinator auto "$@" &
step=$!
while [ "$heard" ]; do # a signal ends the wait, not the sweep
  heard="" code=0
  wait "$step" || code=$?
done
if [ "$ending" ] && [ "$code" = 143 ]; then scontrol requeue Incomplete "$job"; fi
exit "$code"
