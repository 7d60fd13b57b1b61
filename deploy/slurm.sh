#!/bin/bash
# Unlearn every group on the GPUs of several machines: sbatch deploy/slurm.sh MODEL SET
# Or another command that takes --ray, such as scoring:
#   sbatch deploy/slurm.sh MODEL SET attribute /shared/pictures --out /shared/results --table --effort quick
# Submitted again after a stop, it goes on. The page: docs/how-to/many-machines.md
#SBATCH --job-name=guda
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
model=${1:?the model}
group_set=${2:?the group set}
shift 2

# On a file system that all machines see.
export GUDA_HOME=${GUDA_HOME:-$HOME/guda}
export GUDA_CACHE=${GUDA_CACHE:-$GUDA_HOME/cache}
export RAY_USAGE_STATS_ENABLED=0

# Whoever reaches a Ray cluster without a token may run anything on it.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000))

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$first:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" -- \
    guda "${@:-unlearn}" --model "$model" --set "$group_set" --ray "$first:$port"
