#!/bin/bash
# A training run that survives preemption and time limits: sbatch configs/scale/slurm.sh CONFIG [FLAG…], such as
#   sbatch configs/scale/slurm.sh configs/recipes/gpt2.yaml --data.corpus text/
# For many GPUs, one task each: --nodes, --ntasks-per-node and --gpus-per-node here, and the same numbers as
# --trainer.num_nodes and --trainer.devices below, with --config configs/scale/ddp.yaml or fsdp.yaml.
#SBATCH --job-name=tinytf
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120

# Two minutes before the time limit SLURM sends SIGUSR1 to the tasks. Each finishes its step, the run is saved, and all
# exit with 138 (128 + 10). The job then requeues itself, and resumes when it is started again.
# --kill-on-bad-exit: if one task dies, the others are ended. That may send SIGTERM (143) to a task that has saved and is
# about to exit with 138.
srun --kill-on-bad-exit=1 tinytf fit --config "${1:-configs/base.yaml}" --config configs/scale/slurm-requeue.yaml "${@:2}"
code=$?
if [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
