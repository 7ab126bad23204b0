#!/bin/bash
# Two nodes of four processes each; the first process reads MODEL and writes OUT, so only its node needs them.
# sbatch --export=ALL,MODEL=/data/my-model,OUT=/data/my-model-w4 examples/cluster/slurm.sh
#SBATCH --job-name=compress
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue

set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / 4))

# Requeued after a preemption, the same command goes on from the last finished block.
srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" --max-restarts 0 \
  -m compress_cli run "$MODEL" -r w4-gptq -o "$OUT" --quiet
