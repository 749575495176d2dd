#!/usr/bin/env bash
# A sweep as a SLURM array: every job is a worker, and all of them share one folder of results.
#
#   sbatch --array=0-7 experiments/launch/slurm_array.sh experiments/survey.py /shared/survey /shared/archives [more flags of bdjax sweep]
#
# Jobs may start and end whenever they like: a cell of one that is killed passes on to the others, and the array can be submitted again.
#SBATCH --job-name=bdjax
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
file=$1 out=$2 data=$3
shift 3
srun bdjax sweep "$file" --out "$out" --data-dir "$data" "$@"
