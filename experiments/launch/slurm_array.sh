#!/usr/bin/env bash
# A sweep as a SLURM array: every job is a worker, and all of them share one folder of results.
#
#   sbatch --array=0-7 experiments/launch/slurm_array.sh experiments/survey.py /shared/survey /shared/archives [more flags of bdjax sweep]
#
# Jobs may start and end whenever they like: a cell of one that is killed passes on to the others, which go on with it at its last
# snapshot. One that comes to its time limit queues itself again, until the sweep is finished.
#SBATCH --job-name=bdjax
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
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
srun bdjax sweep "$file" --out "$out" --data-dir "$data" "$@" &
step=$!
while [ "$heard" ]; do # a signal ends the wait, not the sweep
  heard="" code=0
  wait "$step" || code=$?
done
if [ "$ending" ] && [ "$code" = 143 ]; then scontrol requeue Incomplete "$job"; fi
exit "$code"
