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
set -euo pipefail
file=$1 out=$2 data=$3
shift 3
srun bdjax sweep "$file" --out "$out" --data-dir "$data" --coordinator auto "$@"
